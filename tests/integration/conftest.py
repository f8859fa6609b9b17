"""Peers and instances that the integration tests share: a small PACS that keeps what it gets, and files to send it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import free_ports
import numpy as np
import pytest
from commitment_bed import Bed
from committing_peer import CommittingPeer
from keeping_peer import KeepingPeer
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pacs_ai.deliver import confirmer
from pacs_ai.deliver.scu import Outgoing
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.store.files import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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
def make_committer() -> Iterator[Callable[..., CommittingPeer]]:
    """Start PACS that commit to what they get: keyword arguments are the fields of `CommittingPeer`."""
    peers = []

    def make(**fields: object) -> CommittingPeer:
        peer = CommittingPeer(**fields)
        peer.start()
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        peer.stop()


@pytest.fixture
def make_commitment_bed(stations, source, tmp_path, monkeypatch) -> Callable[..., Bed]:
    """Make a job of two results for a peer that is asked to commit to them."""
    monkeypatch.setattr(confirmer, "SAME_ASSOCIATION_SECONDS", 60.0)  # a busy machine answers later than most peers
    files = Files(tmp_path / "store" / "files")
    return lambda peer, **settings: Bed(stations, source, files, peer, tmp_path, **settings)


@pytest.fixture
def free_port() -> int:
    """A loopback port on which nobody listens."""
    return free_ports.free_port()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Poll a condition with a deadline."""

    def wait(condition: Callable[[], object], seconds: float = 60.0, what: str = "the condition") -> None:
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
            pause.wait(0.02)

    return wait
