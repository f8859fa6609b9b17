"""What an examination finds: how it stands with one thing, in words, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How it stands."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Parameters
    ----------
    area
        What was looked at: configuration, data folder, database, decoders, ...
    subject
        Which one of these: a route, a peer, a transfer syntax.
    words
        How it stands.
    advice
        What to do; "" where all is well.
    """

    level: Level
    area: str
    subject: str
    words: str
    advice: str = ""
