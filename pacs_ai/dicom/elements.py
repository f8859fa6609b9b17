"""How the elements of a data set are encoded (PS3.5 chapter 7): tags that frame others, VRs, headers."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import repeater_has_tag

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_DELIMITATION = 0xFFFEE00D
SEQUENCE_DELIMITATION = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010

#: Value representations with a length of 16 bits (PS3.5 Table 7.1-2).
SHORT_VR = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
#: Those of today with a length of 32 bits.
LONG_VR = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")


class Layout(NamedTuple):
    """How element headers are packed in one byte order."""

    explicit: struct.Struct
    implicit: struct.Struct
    length: struct.Struct


LITTLE = Layout(struct.Struct("<HH2sH"), struct.Struct("<HHL"), struct.Struct("<L"))
BIG = Layout(struct.Struct(">HH2sH"), struct.Struct(">HHL"), struct.Struct(">L"))
#: No header of an element is longer: tag, VR, two bytes that mean nothing, length (PS3.5 7.1.2).
HEADER_BYTES = 12


def name_of(tag: int) -> str:
    """Return a tag as the Standard writes it, "(gggg,eeee)"."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def may_hold_items(tag: int) -> bool:
    """Tell whether an element in implicit VR may be a sequence: known to be one, or not known (PS3.5 7.1.3, 7.8)."""
    if tag in SEQUENCE_TAGS:
        return True
    group, number = tag >> 16, tag & 0xFFFF
    if group % 2:
        return number > 0xFF  # below it are private creators
    return number != 0 and tag not in DicomDictionary and not repeater_has_tag(tag)
