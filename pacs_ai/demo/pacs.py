"""A small PACS for the demo: it listens on loopback, takes every DICOM object and keeps it as a file."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Self

from pydicom.uid import UID
from pynetdicom import AE, evt

from pacs_ai.dicom import contexts, status
from pacs_ai.dicom.attributes import is_uid

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

AE_TITLE = "DEMO_PACS"
_PDU_BYTES = 131_072


class DemoPacs:
    """A storage SCP on a free loopback port; use it in a ``with`` statement.

    Parameters
    ----------
    folder
        Where instances are kept, as ``<kind>-<SOP Instance UID>.dcm``; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._kept: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._ae = AE(AE_TITLE)

    def __enter__(self) -> Self:
        """Listen; `port` is known from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ae.supported_contexts = contexts.acceptor_contexts()
        self._ae.require_called_aet = True
        self._ae.maximum_pdu_size = _PDU_BYTES
        handlers = [(evt.EVT_CONN_OPEN, _send_at_once), (evt.EVT_C_STORE, self._store)]
        server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(server.server_address[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Abort what is open and listen no longer."""
        self._ae.shutdown()

    def kept(self) -> dict[str, Path]:
        """Return SOP Instance UID -> file of what was stored."""
        with self._lock:
            return dict(self._kept)

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if not is_uid(uid):
            return status.INVALID_SOP_INSTANCE
        kind = _kind(str(event.request.AffectedSOPClassUID))
        path = self.folder / f"{kind}-{uid}.dcm"
        partial = path.with_suffix(".part")
        try:
            partial.write_bytes(event.encoded_dataset())
            partial.replace(path)
        except OSError:
            return status.OUT_OF_RESOURCES
        with self._lock:
            self._kept[uid] = path
        return status.SUCCESS


def _kind(sop_class_uid: str) -> str:
    """Return a short word for a file name: what kind of object it is."""
    keyword = UID(sop_class_uid).keyword
    if keyword == "SegmentationStorage":
        return "SEG"
    if keyword.endswith("SRStorage"):
        return "text-SR" if "Text" in keyword else "SR"
    return "picture" if "SecondaryCapture" in keyword else "object"


def _send_at_once(event: evt.Event) -> None:
    """Answer without waiting for more to send: Nagle's algorithm costs 40 ms per instance."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
