"""The status codes with which a C-STORE or C-ECHO is answered, and what each means for the one who sent it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SUCCESS = 0x0000

# General failures, PS3.7 Annex C.
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_OBJECT_INSTANCE = 0x0112
NO_SUCH_EVENT_TYPE = 0x0113
INVALID_ARGUMENT_VALUE = 0x0115
INVALID_SOP_INSTANCE = 0x0117
NO_SUCH_SOP_CLASS = 0x0118
SOP_CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_ACTION_TYPE = 0x0123
NOT_AUTHORIZED = 0x0124
DUPLICATE_INVOCATION = 0x0210
UNRECOGNIZED_OPERATION = 0x0211
MISTYPED_ARGUMENT = 0x0212
RESOURCE_LIMITATION = 0x0213

# The Storage Service Class's own, PS3.4 Table B.2-1; of Axxx and Cxxx the last digits are the implementation's.
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
COERCION = 0xB000
ELEMENTS_DISCARDED = 0xB006
DATA_SET_MISMATCH_WARNING = 0xB007

# Neither final nor an answer to C-STORE, PS3.7 Annex C.
ATTRIBUTE_LIST_ERROR = 0x0107
ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116
CANCEL = 0xFE00
PENDING = 0xFF00
PENDING_WARNING = 0xFF01


class Category(StrEnum):
    """What to do about a status."""

    SUCCESS = "success"
    """The peer has the instance."""
    WARNING = "warning"
    """The peer has the instance, with a remark that should be kept."""
    TRANSIENT = "transient failure"
    """Send it again later."""
    PERMANENT = "permanent failure"
    """Sending it again will not help; a person has to look."""
    CANCEL = "cancel"
    """An operation was cancelled; never an answer to C-STORE."""
    PENDING = "pending"
    """More answers follow; never an answer to C-STORE."""


@dataclass(frozen=True)
class _Known:
    category: Category
    meaning: str


_EXACT = {
    SUCCESS: _Known(Category.SUCCESS, "stored"),
    DUPLICATE_SOP_INSTANCE: _Known(Category.SUCCESS, "the peer already holds this instance"),
    COERCION: _Known(Category.WARNING, "stored, with some attributes coerced by the peer"),
    ELEMENTS_DISCARDED: _Known(Category.WARNING, "stored, with some elements discarded by the peer"),
    DATA_SET_MISMATCH_WARNING: _Known(Category.WARNING, "stored, though the data set does not match its SOP class"),
    ATTRIBUTE_LIST_ERROR: _Known(Category.WARNING, "stored, though some attributes were not recognised"),
    ATTRIBUTE_VALUE_OUT_OF_RANGE: _Known(Category.WARNING, "stored, though an attribute's value is out of range"),
    PROCESSING_FAILURE: _Known(Category.PERMANENT, "the peer failed while processing the instance"),
    NO_SUCH_OBJECT_INSTANCE: _Known(Category.PERMANENT, "the peer does not know the instance"),
    INVALID_ARGUMENT_VALUE: _Known(Category.PERMANENT, "the peer found an argument of the command invalid"),
    INVALID_SOP_INSTANCE: _Known(Category.PERMANENT, "the peer found the SOP Instance UID invalid"),
    NO_SUCH_SOP_CLASS: _Known(Category.PERMANENT, "the peer does not know the SOP class"),
    SOP_CLASS_NOT_SUPPORTED: _Known(Category.PERMANENT, "the peer does not support the SOP class"),
    NOT_AUTHORIZED: _Known(Category.PERMANENT, "the peer does not allow this node to store"),
    DUPLICATE_INVOCATION: _Known(Category.PERMANENT, "the peer saw the Message ID twice"),
    UNRECOGNIZED_OPERATION: _Known(Category.PERMANENT, "the peer does not know the operation"),
    MISTYPED_ARGUMENT: _Known(Category.PERMANENT, "the peer found an argument of the command mistyped"),
    RESOURCE_LIMITATION: _Known(Category.TRANSIENT, "the peer is short of resources"),
    CANCEL: _Known(Category.CANCEL, "cancelled"),
    PENDING: _Known(Category.PENDING, "pending"),
    PENDING_WARNING: _Known(Category.PENDING, "pending, with a warning"),
}
_BY_MASK = (
    (0xFF00, 0xA700, _Known(Category.TRANSIENT, "the peer is out of resources")),
    (0xFF00, 0xA900, _Known(Category.PERMANENT, "the data set does not match its SOP class")),
    (0xF000, 0xA000, _Known(Category.PERMANENT, "the peer refused the instance")),
    (0xF000, 0xB000, _Known(Category.WARNING, "stored, with a warning")),
    (0xF000, 0xC000, _Known(Category.PERMANENT, "the peer cannot understand the data set")),
)
_UNKNOWN = _Known(Category.PERMANENT, "a status that the Standard does not define for storage")


def classify(code: int) -> Category:
    """Return what to do about a C-STORE status (PS3.4 B.2.3, PS3.7 Annex C); unknown codes are permanent failures."""
    return _known(code).category


def meaning(code: int) -> str:
    """Return what a C-STORE status says, in words and with its code: "the peer is out of resources (0xA700)"."""
    return f"{_known(code).meaning} (0x{code:04X})"


def _known(code: int) -> _Known:
    if code in _EXACT:
        return _EXACT[code]
    return next((known for mask, value, known in _BY_MASK if code & mask == value), _UNKNOWN)
