"""Published weights in other formats, turned into safetensors by a person, off-line; nothing in them is executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Reader -> module:function; the function takes the folder of the members and the options, and returns the tensors.
READERS: Mapping[str, str] = {
    # one line each, sorted
}
