"""Reading attributes of data sets that strangers wrote: what cannot be read is refused, never a crash."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_description
from pydicom.errors import BytesLengthException

from pacs_ai.errors import Reason, Refused

#: What pydicom raises over malformed bytes; values are parsed when they are first asked for.
READING_FAULTS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def read_value(ds: Dataset, keyword: str) -> Any:
    """Return the value of an attribute, None where it is absent.

    Raises
    ------
    Refused
        Where the bytes of the value cannot be read.
    """
    try:
        return ds.get(keyword)
    except READING_FAULTS as fault:
        raise Refused(f"{dictionary_description(keyword)} cannot be read", Reason.UNREADABLE) from fault


def read_text(ds: Dataset, keyword: str) -> str:
    """Return the value as text, several values joined by a backslash (PS3.5 6.4), "" where absent or empty."""
    value = read_value(ds, keyword)
    if value is None:
        return ""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return str(value).strip()
    return "\\".join(str(each) for each in value).strip()


def read_whole(ds: Dataset, keyword: str, default: int | None = None) -> int:
    """Return one whole number; `default` where absent or empty.

    Raises
    ------
    Refused
        Where the attribute is missing without a default, or is no whole number.
    """
    value = read_value(ds, keyword)
    name = dictionary_description(keyword)
    if value is None or value == "":
        if default is None:
            raise Refused(f"{name} is missing", Reason.UNREADABLE)
        return default
    if not isinstance(value, int):
        raise Refused(f"{name} is not a whole number", Reason.UNREADABLE)
    return int(value)


def read_items(ds: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Return the items of a sequence, none where it is absent.

    Raises
    ------
    Refused
        Where the attribute is no sequence.
    """
    value = read_value(ds, keyword)
    items = tuple(value) if value is not None and not isinstance(value, str | bytes) else ()
    if not all(isinstance(item, Dataset) for item in items):
        raise Refused(f"{dictionary_description(keyword)} is not a sequence", Reason.UNREADABLE)
    return items
