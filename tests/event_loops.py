"""Which event loop a test of the listening side runs on: half of them on uvloop's, half on Python's own."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable


def loop_for(test: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop for a test of that name, the same one each time."""
    return uvloop.new_event_loop if zlib.crc32(test.encode()) % 2 else asyncio.new_event_loop
