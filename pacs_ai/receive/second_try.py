"""Give an instance its file and its row that could have no row when it came, and was set aside: a later release may.

Its header is read again, by this release, from the file that was set aside (`pacs_ai.store.aside`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.dicom import part10
from pacs_ai.dicom.attributes import read_header
from pacs_ai.errors import NotUnderstood
from pacs_ai.store import aside
from pacs_ai.store.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.store.files import Files


def index(path: Path, files: Files, record: Callable[[Sequence[Arrival]], object]) -> Arrival:
    """Index a file that was set aside, and delete it there; return its arrival.

    Where it was sent again meanwhile, its row is there, and stays as it is.

    Raises
    ------
    Transient
        The disk is short, or the database away.
    NotUnderstood, OSError
        It is not the file that was set aside, or not a whole one.
    Exception
        Whatever kept it from having a row still does.
    """
    arrival = aside.arrival_of(path)
    raw = path.read_bytes()
    if sha256_of([raw]) != arrival.sha256:
        raise NotUnderstood("its bytes are not those that were set aside")
    header = read_header(part10.split(raw).data_set, arrival.transfer_syntax_uid)
    arrival = replace(arrival, header=header)
    files.sync([files.write([raw], arrival.sha256)])
    record([arrival])
    aside.forget(path)
    return arrival
