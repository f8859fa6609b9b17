"""Peers and instances that the integration tests share: a small PACS that keeps what it gets, and files to send it."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from pacs_ai.deliver.scu import Outgoing
from pacs_ai.dicom import contexts
from pacs_ai.dicom.identifiers import derive_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pynetdicom.presentation import PresentationContext


@dataclass
class KeepingPeer:
    """A storage SCP on loopback that writes each instance to `folder`, unless it was told to answer otherwise.

    `statuses` maps a SOP Instance UID to the statuses of its next C-STOREs, first one first; afterwards and for all
    others it is `status`. What was answered with a failure is not kept. `stored` lists the SOP Instance UIDs of what
    was kept, in the order of arrival, a second time if it came a second time.
    """

    folder: Path
    ae_title: str = "KEEPER"
    supported: list[PresentationContext] = field(default_factory=contexts.acceptor_contexts)
    port: int = 0
    status: int = 0x0000
    statuses: dict[str, list[int]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    associations: int = 0
    maximum_pdu_size: int = 131_072

    def __post_init__(self) -> None:
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
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        """Abort what is open and listen no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.ae.shutdown()
            self._server = None

    def path(self, sop_instance_uid: str) -> Path:
        """Return where the instance is kept."""
        return self.folder / f"{sop_instance_uid}.dcm"

    def wait_for(self, count: int, seconds: float = 30.0) -> list[str]:
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

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._changed:
            self.requests.append(uid)
            planned = self.statuses.get(uid, [])
            status = planned.pop(0) if planned else self.status
        if status in {0x0000, 0xB000, 0xB006, 0xB007}:
            self.path(uid).write_bytes(event.encoded_dataset())
            with self._changed:
                self.stored.append(uid)
                self._changed.notify_all()
        return status


@pytest.fixture
def make_peer(tmp_path: Path) -> Iterator[Callable[..., KeepingPeer]]:
    """Start storage SCPs: keyword arguments are the fields of `KeepingPeer`."""
    peers: list[KeepingPeer] = []

    def make(**fields: object) -> KeepingPeer:
        folder = tmp_path / f"peer{len(peers)}"
        folder.mkdir()
        peer = KeepingPeer(folder=folder, **fields)
        peers.append(peer)
        peer.start()
        return peer

    yield make
    for peer in peers:
        peer.stop()


@pytest.fixture
def keeping_peer(make_peer: Callable[..., KeepingPeer]) -> KeepingPeer:
    """A small PACS (AE title KEEPER) that keeps what it gets."""
    return make_peer()


@pytest.fixture
def make_instances(tmp_path: Path) -> Callable[..., list[Outgoing]]:
    """Write CT-like instances of one series: count, rows, SOP class, transfer syntax (implicit or explicit)."""

    def make(
        count: int = 1,
        rows: int = 16,
        sop_class_uid: str = CTImageStorage,
        transfer_syntax_uid: str = ExplicitVRLittleEndian,
        name: str = "series",
    ) -> list[Outgoing]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(7).integers(-1000, 1000, (rows, rows), dtype=np.int16)
        found = []
        for number in range(count):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
            ds.SOPClassUID = sop_class_uid
            ds.SOPInstanceUID = derive_uid("scu test", name, number, sop_class_uid, transfer_syntax_uid)
            ds.StudyInstanceUID = derive_uid("scu test", "study")
            ds.SeriesInstanceUID = derive_uid("scu test", name)
            ds.Modality = "CT"
            ds.PatientID = "TEST"
            ds.PatientName = "Test^Phantom"
            ds.InstanceNumber = number + 1
            ds.Rows = ds.Columns = rows
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 16, 16, 15, 1, 1
            ds.PhotometricInterpretation = "MONOCHROME2"
            ds.PixelData = (noise + number).tobytes()
            path = folder / f"{number:05d}.dcm"
            implicit = transfer_syntax_uid == ImplicitVRLittleEndian
            ds.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
            found.append(Outgoing(path, str(sop_class_uid), str(ds.SOPInstanceUID), str(transfer_syntax_uid)))
        return found

    return make


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Poll a condition with a deadline."""

    def wait(condition: Callable[[], object], seconds: float = 30.0, what: str = "the condition") -> None:
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
            pause.wait(0.02)

    return wait
