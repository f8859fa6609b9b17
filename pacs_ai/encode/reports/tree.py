"""The content tree of a report as bytes: what many items share, a concept or the algorithm, is written once.

pydicom writes an element in 50 us, a report of 100 groups in 0.8 s; a content tree has few kinds of element, all ASCII,
and half of it is repeated. A test holds these bytes equal to pydicom's.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from pydicom.multival import MultiValue

from pacs_ai.encode.encoded import Encoded, encoded
from pacs_ai.encode.explicit import element, sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom import DataElement, Dataset

    from pacs_ai.profiles import Encoding

CONTENT_SEQUENCE = 0x0040A730
#: struct's name of the binary value representations that content items have.
_BINARY: Mapping[str, str] = {"FL": "f", "FD": "d", "US": "H", "UL": "I"}


def encoded_report(encoding: Encoding, report: Dataset) -> Encoded:
    """Return an SR as a result object; the Content Sequence, the last of its elements, is written by `content_bytes`.

    Raises
    ------
    ValueError
        Where an element follows the Content Sequence, or a text is not ASCII.
    """
    if max(report.keys()) != CONTENT_SEQUENCE:
        raise ValueError("the Content Sequence must be the last element")
    content = content_bytes(report[CONTENT_SEQUENCE], {})
    head = report.copy()  # shallow
    del head.ContentSequence
    result = encoded(encoding, head, content)
    return replace(result, parts=(b"".join(result.parts),))


def content_bytes(given: DataElement, written: dict[int, bytes]) -> bytes:
    """Return an element in Explicit VR Little Endian; `written` holds the items that were written before, by id."""
    value = given.value
    if given.VR == "SQ":
        return sequence(given.tag, *(_item_bytes(one, written) for one in value))
    values = value if isinstance(value, MultiValue | list) else [value]
    if given.VR in _BINARY:
        packed = struct.pack(f"<{len(values)}{_BINARY[given.VR]}", *values)
    else:
        packed = "\\".join(str(one) for one in values).encode("ascii")
    return element(given.tag, given.VR.encode(), packed)


def _item_bytes(ds: Dataset, written: dict[int, bytes]) -> bytes:
    known = written.get(id(ds))
    if known is None:
        known = b"".join(content_bytes(ds[tag], written) for tag in sorted(ds.keys()))
        written[id(ds)] = known
    return known
