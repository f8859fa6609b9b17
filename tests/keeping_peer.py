"""A small PACS for the tests: it keeps what it gets, and refuses, waits or goes away when told to."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from free_ports import free_port
from pydicom import Dataset
from pynetdicom import AE, evt

from pacs_ai.dicom import contexts

if TYPE_CHECKING:
    from pathlib import Path

    from pynetdicom.presentation import PresentationContext

#: Longer than any test keeps a C-STORE waiting.
_MOST_GATED_SECONDS = 280.0


@dataclass
class KeepingPeer:
    """A storage SCP on loopback that writes each instance to `folder`, unless it was told to answer otherwise.

    `statuses` maps a SOP Instance UID to the statuses of its next C-STOREs, first one first; afterwards and for all
    others it is `status`; a failure bears `comment`. What was answered with a failure is not kept. `stored` lists the
    SOP Instance UIDs of what was kept, in the order of arrival, a second time if it came a second time. While `gate`
    is not set, a C-STORE of a SOP class in `gated` (of any, where that is empty) waits for its answer.
    """

    folder: Path
    ae_title: str = "KEEPER"
    supported: list[PresentationContext] = field(default_factory=contexts.acceptor_contexts)
    port: int = 0
    status: int = 0x0000
    comment: str = ""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    associations: int = 0
    maximum_pdu_size: int = 131_072
    gate: threading.Event = field(default_factory=threading.Event)
    gated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.gate.set()
        self._changed = threading.Condition()
        self._server = None

    def start(self) -> None:
        """Listen, on the same port as before after a `stop`."""
        ae = AE(self.ae_title)
        ae.supported_contexts = self.supported
        ae.require_called_aet = True
        ae.maximum_associations = 50
        ae.maximum_pdu_size = self.maximum_pdu_size
        handlers = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_C_STORE, self._store),
        ]
        self.port = self.port or free_port()  # one that nobody else takes while it is stopped
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self) -> None:
        """Abort what is open and listen no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.ae.shutdown()
            self._server = None

    def path(self, sop_instance_uid: str) -> Path:
        """Return where the instance is kept."""
        return self.folder / f"{sop_instance_uid}.dcm"

    def wait_for(self, count: int, seconds: float = 60.0) -> list[str]:
        """Return `stored` as soon as it holds `count` instances; AssertionError after `seconds`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.stored) >= count, seconds), (
                f"{len(self.stored)} of {count} instances arrived within {seconds:g} s"
            )
            return list(self.stored)

    def _opened(self, event: evt.Event) -> None:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _accepted(self, event: evt.Event) -> None:
        with self._changed:
            self.associations += 1

    def _store(self, event: evt.Event) -> int | Dataset:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._changed:
            self.requests.append(uid)
        if not self.gated or event.request.AffectedSOPClassUID in self.gated:
            self.gate.wait(_MOST_GATED_SECONDS)
        with self._changed:
            planned = self.statuses.get(uid, [])
            status = planned.pop(0) if planned else self.status
        if status in {0x0000, 0xB000, 0xB006, 0xB007}:
            self.path(uid).write_bytes(event.encoded_dataset())
            with self._changed:
                self.stored.append(uid)
                self._changed.notify_all()
            return status
        return commented(status, self.comment)


def commented(status: int, comment: str) -> Dataset:
    """Return a response's status with an Error Comment (0000,0902)."""
    ds = Dataset()
    ds.Status = status
    if comment:
        ds.ErrorComment = comment
    return ds
