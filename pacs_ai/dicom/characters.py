"""Turn the bytes of a text value into text, by the character sets that DICOM defines and no others.

A peer names its character sets in Specific Character Set (0008,0005). Only the defined terms of PS3.3 C.12.1.1.2 are
looked up here; any other term is read as ISO 8859-1, so that no peer chooses a codec of the interpreter.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Defined term -> codec, for single values and for the first of several (PS3.3 Tables C.12-2 to C.12-5).
CODECS = {
    "": "latin_1",
    "ISO_IR 6": "latin_1",
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 127": "iso8859_6",
    "ISO_IR 126": "iso8859_7",
    "ISO_IR 138": "iso8859_8",
    "ISO_IR 148": "iso8859_9",
    "ISO_IR 203": "iso8859_15",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 166": "iso8859_11",
    "ISO_IR 192": "utf_8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}

#: Escape sequence -> codec of what follows it, and whether that codec reads the escape sequence itself.
_ESCAPES: dict[bytes, tuple[str, bool]] = {
    b"\x1b(J": ("shift_jis", False),
    b"\x1b)I": ("shift_jis", False),
    b"\x1b$B": ("iso2022_jp_2", True),
    b"\x1b$(D": ("iso2022_jp_2", True),
    b"\x1b$)C": ("euc_kr", False),
    b"\x1b$)A": ("gb2312", False),
    b"\x1b-A": ("latin_1", False),
    b"\x1b-B": ("iso8859_2", False),
    b"\x1b-C": ("iso8859_3", False),
    b"\x1b-D": ("iso8859_4", False),
    b"\x1b-L": ("iso8859_5", False),
    b"\x1b-G": ("iso8859_6", False),
    b"\x1b-F": ("iso8859_7", False),
    b"\x1b-H": ("iso8859_8", False),
    b"\x1b-M": ("iso8859_9", False),
    b"\x1b-T": ("iso8859_11", False),
    b"\x1b-b": ("iso8859_15", False),
}
_ESCAPE = re.compile(rb"\x1b(?:\$[()][A-D]|\$[AB]|[()-][A-Za-z])")
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\ufffd")


@lru_cache(maxsize=256)
def codec_of(specific_character_set: str) -> tuple[str, bool]:
    """Return the codec of the first term and whether escape sequences may switch to others (PS3.3 C.12.1.1.2)."""
    first, *further = (term.strip(" ") for term in specific_character_set.split("\\"))
    extended = first.startswith("ISO 2022 IR ") or bool(further)
    return CODECS.get(first.replace("ISO 2022 IR ", "ISO_IR "), "latin_1"), extended


def decode(raw: bytes, specific_character_set: str) -> str:
    """Return the text of a value; control characters and what the character set does not know become U+FFFD.

    Parameters
    ----------
    raw
        The bytes of the value, its several values still joined by backslashes.
    specific_character_set
        Value of (0008,0005), terms joined by backslashes; "" for the default repertoire.
    """
    codec, extended = codec_of(specific_character_set)
    raw = raw.rstrip(b"\0 ")
    text = _decode_escaped(raw, codec) if extended and b"\x1b" in raw else raw.decode(codec, "replace")
    return text if text.isprintable() else text.translate(_CONTROLS)


def _decode_escaped(raw: bytes, first: str) -> str:
    """Decode the runs between escape sequences, each by the set that its escape sequence designates (PS3.5 6.1.2.5)."""
    marks = list(_ESCAPE.finditer(raw))
    starts = [*[mark.start() for mark in marks], len(raw)]
    text = raw[: starts[0]].decode(first, "replace")
    for mark, end in zip(marks, starts[1:], strict=True):
        codec, keeps_escape = _ESCAPES.get(mark.group(), (first, False))
        run = raw[mark.start() if keeps_escape else mark.end() : end]
        text += run.decode(codec, "replace")
    return text
