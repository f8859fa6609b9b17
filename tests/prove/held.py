"""What the checker reads: the journals of those who spoke with the node, and what lies in its folder.

It imports nothing of the node.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Journals:
    """What the others wrote down while the node was killed again and again: one JSON object or line per event.

    Parameters
    ----------
    tries, acks
        What the sender sent, whatever the answer, and what of it was answered Success.
    asked, told
        What the sender asked the node to keep, and what it was then told.
    kept, committed
        What the destination took, and what it committed to where the node answered that Success.
    claims
        What the workers began.
    """

    tries: Path
    acks: Path
    asked: Path
    told: Path
    kept: Path
    committed: Path
    claims: Path

    @classmethod
    def within(cls, folder: Path) -> Self:
        """Return those of a folder."""
        return cls(**{field.name: folder / field.name for field in fields(cls)})

    @staticmethod
    def lines(path: Path) -> list[dict[str, Any]]:
        """Return a journal's objects."""
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Store:
    """What lies in the node's folder, read without its help."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, folder / "files"
        connection = sqlite3.connect(folder / "pacs_ai.sqlite")
        connection.row_factory = sqlite3.Row
        tables = (
            "study",
            "series",
            "instance",
            "association",
            "association_series",
            "job",
            "job_source",
            "job_destination",
            "result",
            "delivery",
            "pledge",
            "journal",
        )
        try:
            self.sound = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            self.sound += [f"{row[0]} points nowhere" for row in connection.execute("PRAGMA foreign_key_check")]
            self.rows = {name: [dict(r) for r in connection.execute(f"SELECT * FROM {name}")] for name in tables}
        finally:
            connection.close()
        self._data_sets: dict[str, str] = {}

    def data_set_sha256(self, sha256: str) -> str:
        """Return the digest of a file's data set; a word where the file is missing or damaged."""
        if sha256 not in self._data_sets:
            try:
                raw = (self.files / sha256[:2] / sha256).read_bytes()
            except OSError as error:
                return str(error.strerror)
            if hashlib.sha256(raw).hexdigest() != sha256:
                return "damaged"
            start = 144 + int.from_bytes(raw[140:144], "little")
            self._data_sets[sha256] = hashlib.sha256(raw[start:]).hexdigest()
        return self._data_sets[sha256]
