"""Instances travel by C-STORE byte for byte, and every way in which a peer can fail ends as an outcome, in time."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    CTImageStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.sop_class import Verification

from pacs_ai.deliver import command, inquiry, scu
from pacs_ai.deliver.scu import Outcome, Outgoing, Remote
from pacs_ai.dicom import contexts
from pacs_ai.dicom.commitment import Request
from pacs_ai.dicom.status import Category
from pacs_ai.errors import BrokenOff, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A short limit, so that the tests are short; MARGIN is for a machine that does other things as well, and what is not to
# end by its limit has one that is longer than both.
LIMIT = 0.6
MARGIN = 30.0
PATIENCE = 60.0


def remote_of(peer, **limits: float) -> Remote:
    return Remote(peer.ae_title, "127.0.0.1", peer.port, "PACS_AI", **limits)


def patient(port: int, **limits: float) -> Remote:
    kinds = ("connect_seconds", "acse_seconds", "dimse_seconds", "network_seconds")
    return Remote("HOSTILE", "127.0.0.1", port, "PACS_AI", **(dict.fromkeys(kinds, PATIENCE) | limits))


def data_set_bytes(path: Path) -> bytes:
    _, offset = split_dataset(path)
    return path.read_bytes()[offset:]


def categories(outcomes: list[Outcome]) -> list[Category]:
    return [outcome.category for outcome in outcomes]


# A peer that keeps to the Standard


def test_bytes_arrive_as_stored_in_the_order_given(keeping_peer, make_instances):
    explicit = make_instances(5, name="explicit")
    implicit = make_instances(5, transfer_syntax_uid=ImplicitVRLittleEndian, name="implicit")
    instances = [one for pair in zip(explicit, implicit, strict=True) for one in pair]
    outcomes = list(scu.send(remote_of(keeping_peer), instances))
    assert [outcome.sop_instance_uid for outcome in outcomes] == [one.sop_instance_uid for one in instances]
    assert set(categories(outcomes)) == {Category.SUCCESS}
    assert all(outcome.stored and outcome.status == 0 for outcome in outcomes)
    assert keeping_peer.stored == [one.sop_instance_uid for one in instances]
    assert keeping_peer.associations == 1
    for one in instances:
        kept = keeping_peer.path(one.sop_instance_uid)
        assert data_set_bytes(kept) == data_set_bytes(one.path)
        assert dcmread(kept).file_meta.TransferSyntaxUID == one.transfer_syntax_uid


def test_undefined_lengths_private_and_odd_elements_are_not_touched(keeping_peer, make_instances):
    """What a decoder and encoder would normalise: undefined lengths, group lengths, trailing padding, empty items."""
    [one] = make_instances()
    group_length = struct.pack("<HH2sHL", 0x0008, 0x0000, b"UL", 4, 0xDEADBEEF)
    sequence = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    sequence += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    sequence += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    padding = struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 6) + b"\0\0\0\1\2\3"
    _, offset = split_dataset(one.path)
    raw = one.path.read_bytes()
    odd = group_length + sequence + raw[offset:] + padding
    one.path.write_bytes(raw[:offset] + odd)
    [outcome] = scu.send(remote_of(keeping_peer), [one])
    assert outcome.stored
    assert data_set_bytes(keeping_peer.path(one.sop_instance_uid)) == odd


def test_real_series_in_their_own_transfer_syntaxes(keeping_peer, shared_data):
    found = scu.scan([shared_data / "ct_transfer_syntaxes"])
    assert len({one.transfer_syntax_uid for one in found.instances}) > 3
    listed = {str(syntax) for syntax in contexts.DEFAULT_TRANSFER_SYNTAXES}
    outcomes = scu.send_files(remote_of(keeping_peer), found.instances)
    for one, outcome in zip(found.instances, outcomes, strict=True):
        if one.transfer_syntax_uid in listed:
            assert outcome.category is Category.SUCCESS, outcome.words
            assert data_set_bytes(keeping_peer.path(one.sop_instance_uid)) == data_set_bytes(one.path)
        else:
            assert outcome.category is Category.PERMANENT


@pytest.mark.parametrize("maximum_pdu_size", [128, 16_384, 0])
def test_fragments_keep_to_the_peer_s_maximum_length(make_peer, make_instances, maximum_pdu_size):
    peer = make_peer(maximum_pdu_size=maximum_pdu_size)
    instances = make_instances(3, rows=200)
    assert set(categories(list(scu.send(remote_of(peer), instances)))) == {Category.SUCCESS}
    for one in instances:
        assert data_set_bytes(peer.path(one.sop_instance_uid)) == data_set_bytes(one.path)


STATUSES = [
    (0x0000, Category.SUCCESS, "stored"),
    (0x0111, Category.SUCCESS, "already holds"),
    (0xB000, Category.WARNING, "coerced"),
    (0xB006, Category.WARNING, "discarded"),
    (0xB007, Category.WARNING, "does not match"),
    (0xA700, Category.TRANSIENT, "out of resources"),
    (0xA7FF, Category.TRANSIENT, "out of resources"),
    (0xA900, Category.PERMANENT, "does not match"),
    (0xC000, Category.PERMANENT, "cannot understand"),
    (0x0122, Category.PERMANENT, "does not support the SOP class"),
    (0x0124, Category.PERMANENT, "does not allow"),
    (0xFE00, Category.PERMANENT, ""),
    (0x7777, Category.PERMANENT, "does not define"),
    (0x0000, Category.SUCCESS, "stored"),
]


def test_DEL_03_every_status_has_its_consequence_and_words(keeping_peer, make_instances):
    """DEL-03; and a refused instance does not end the association."""
    instances = make_instances(len(STATUSES))
    planned = zip(instances, STATUSES, strict=True)
    keeping_peer.statuses = {one.sop_instance_uid: [code] for one, (code, _, _) in planned}
    outcomes = scu.send(remote_of(keeping_peer), instances)
    for outcome, (code, category, word) in zip(outcomes, STATUSES, strict=True):
        assert (outcome.status, outcome.category) == (code, category)
        assert word in outcome.words
        assert f"0x{code:04X}" in outcome.words
    assert keeping_peer.associations == 1


def test_error_comment_stands_apart_and_without_control_characters(make_instances, make_scp):
    def refuse(event):
        ds = Dataset()
        ds.Status = 0xA700
        ds.ErrorComment = "disk full\x1b[31m"
        return ds

    port = make_scp(refuse)
    [outcome] = scu.send(Remote("SCP", "127.0.0.1", port, "PACS_AI"), make_instances())
    assert outcome.comment == "disk full\\x1B[31m"
    assert "disk full" not in outcome.words


def test_a_kind_that_the_peer_does_not_take_fails_alone_with_advice(make_peer, make_instances):
    peer = make_peer(supported=[build_context(CTImageStorage, ImplicitVRLittleEndian), build_context(Verification)])
    good = make_instances(2, transfer_syntax_uid=ImplicitVRLittleEndian, name="ct")
    [seg] = make_instances(sop_class_uid=SegmentationStorage, name="seg")
    [explicit] = make_instances(name="explicit")
    outcomes = list(scu.send(remote_of(peer), [good[0], seg, explicit, good[1]]))
    assert categories(outcomes) == [Category.SUCCESS, Category.PERMANENT, Category.PERMANENT, Category.SUCCESS]
    assert outcomes[1].words.startswith("KEEPER at 127.0.0.1:")
    assert "does not accept Segmentation Storage in any encoding" in outcomes[1].words
    assert "ask its administrator to enable it for PACS_AI" in outcomes[1].words
    assert "does not accept CT Image Storage in Explicit VR Little Endian" in outcomes[2].words


def test_nothing_accepted_at_all_is_permanent(make_peer, make_instances):
    peer = make_peer(supported=[build_context(Verification)])
    outcomes = list(scu.send(remote_of(peer), make_instances(3)))
    assert categories(outcomes) == [Category.PERMANENT] * 3


def test_more_than_127_kinds_take_two_associations(keeping_peer, make_instances):
    [one] = make_instances()
    classes = contexts.STORAGE_SOP_CLASSES[:130]
    instances = [replace(one, sop_class_uid=str(kind)) for kind in classes]
    outcomes = list(scu.send(remote_of(keeping_peer), instances))
    assert set(categories(outcomes)) == {Category.SUCCESS}
    assert keeping_peer.associations == 2


def test_a_vanished_or_foreign_file_fails_alone(keeping_peer, make_instances, tmp_path):
    good, gone, text, mislabelled, empty = make_instances(5)
    gone.path.unlink()
    empty.path.write_bytes(empty.path.read_bytes()[: split_dataset(empty.path)[1]])
    text.path.write_text("no DICOM")
    mislabelled = replace(mislabelled, transfer_syntax_uid=str(JPEGLSLossless))
    outcomes = list(scu.send(remote_of(keeping_peer), [gone, text, mislabelled, empty, good]))
    assert categories(outcomes) == [Category.PERMANENT] * 4 + [Category.SUCCESS]
    assert "missing or no DICOM file" in outcomes[0].words
    assert "not in JPEG-LS" in outcomes[2].words


def test_an_unreadable_file_is_tried_again_and_holds_up_no_other(keeping_peer, make_instances, monkeypatch):
    bad, good = make_instances(2)
    opened = scu.opened

    @contextmanager
    def shorter(instance: Outgoing):
        with opened(instance) as (file, length):
            yield file, length + (1000 if instance is bad else 0)

    monkeypatch.setattr(scu, "opened", shorter)
    outcomes = list(scu.send(remote_of(keeping_peer), [bad, good]))
    assert categories(outcomes) == [Category.TRANSIENT, Category.SUCCESS], outcomes
    assert outcomes[0].status is not None, "the peer is there"
    assert keeping_peer.stored == [good.sop_instance_uid]
    assert keeping_peer.associations == 2


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("sop_class_uid", [SegmentationStorage, EnhancedSRStorage])
def test_results_damaged_anywhere_fail_alone(keeping_peer, make_instances, sop_class_uid):
    """Three hundred files cut off or changed in some bytes, a good one after each: an outcome for every one."""
    chance = np.random.default_rng(11)
    instances = make_instances(600, rows=4, sop_class_uid=sop_class_uid)
    for one in instances[::2]:
        raw = bytearray(one.path.read_bytes())
        within = split_dataset(one.path)[1] + 100  # mostly in the file meta, which is read
        if chance.random() < 0.4:
            del raw[int(chance.integers(0, within)) :]
        for _ in range(int(chance.integers(1, 5))):
            if len(raw) > 128:
                raw[int(chance.integers(128, min(len(raw), within)))] ^= 1 << int(chance.integers(0, 8))
        one.path.write_bytes(raw)
    outcomes = list(scu.send(remote_of(keeping_peer), instances))
    assert [outcome.sop_instance_uid for outcome in outcomes] == [one.sop_instance_uid for one in instances]
    assert set(categories(outcomes[1::2])) == {Category.SUCCESS}
    damaged = [(one, said) for one, said in zip(instances[::2], outcomes[::2], strict=True) if not said.stored]
    assert len(damaged) > 100
    assert {said.category for _, said in damaged} == {Category.PERMANENT}
    assert all(one.path.name in said.words for one, said in damaged)
    assert any("damaged within its file meta" in said.words for _, said in damaged)
    assert keeping_peer.associations == 1


def test_whatever_is_odd_about_one_instance_holds_up_no_other(keeping_peer, make_instances, monkeypatch, caplog):
    odd, good = make_instances(2)
    request = command.c_store_request

    def broken(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
        if sop_instance_uid == odd.sop_instance_uid:
            raise KeyError("Doe^Jane")
        return request(message_id, sop_class_uid, sop_instance_uid)

    monkeypatch.setattr(command, "c_store_request", broken)
    outcomes = list(scu.send(remote_of(keeping_peer), [odd, good]))
    assert categories(outcomes) == [Category.TRANSIENT, Category.SUCCESS]
    assert "unexpected KeyError in broken (test_scu.py:" in outcomes[0].words
    told = [(one.levelname, one.getMessage()) for one in caplog.records if one.name.startswith("pacs_ai")]
    assert told == [("ERROR", f"sent later: {outcomes[0].words}")]
    assert "Doe" not in caplog.text


def test_outcomes_come_as_they_happen_and_stopping_early_releases(keeping_peer, make_instances):
    outcomes = scu.send(remote_of(keeping_peer), make_instances(5))
    assert next(outcomes).stored
    assert len(keeping_peer.stored) == 1
    outcomes.close()
    assert len(keeping_peer.stored) == 1


def test_a_peer_that_stops_and_comes_back_gets_the_rest(keeping_peer, make_instances):
    instances = make_instances(5)
    outcomes = scu.send(remote_of(keeping_peer), instances)
    assert next(outcomes).stored
    keeping_peer.stop()
    rest = list(outcomes)
    assert categories(rest) == [Category.TRANSIENT] * 4
    keeping_peer.start()
    assert categories(list(scu.send(remote_of(keeping_peer), instances[1:]))) == [Category.SUCCESS] * 4
    assert keeping_peer.wait_for(5) == [one.sop_instance_uid for one in instances]


def test_nothing_to_send_calls_nobody():
    assert list(scu.send(Remote("NOBODY", "127.0.0.1", 9, "PACS_AI"), [])) == []


def test_echo_says_how_long_and_why_not(keeping_peer, free_port, monkeypatch):
    answer = scu.echo(remote_of(keeping_peer))
    assert answer.ms is not None
    assert answer.ms > 0
    nobody = scu.echo(Remote("PACS", "127.0.0.1", free_port, "PACS_AI"))
    assert nobody.ms is None
    assert "cannot be reached" in nobody.words
    assert "Connection refused" in nobody.words
    wrong = scu.echo(replace(remote_of(keeping_peer), ae_title="OTHER"))
    assert wrong.ms is None
    assert 'does not answer to the called AE title "OTHER"' in wrong.words
    monkeypatch.setattr(socket, "getaddrinfo", nobody_knows)
    unknown = scu.echo(Remote("PACS", "no-such-host.invalid", 104, "PACS_AI"))
    assert "cannot be resolved" in unknown.words


def nobody_knows(*_arguments: object, **_options: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_accepted_contexts_for_the_doctor(make_peer):
    supported = [
        build_context(SegmentationStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
        build_context(EnhancedSRStorage, ImplicitVRLittleEndian),
    ]
    peer = make_peer(supported=supported)
    pairs = list(
        product(
            map(str, (SegmentationStorage, EnhancedSRStorage, MRImageStorage)),
            map(str, (ExplicitVRLittleEndian, ImplicitVRLittleEndian)),
        )
    )
    answers = scu.accepted_contexts(remote_of(peer), pairs)
    assert [(answer.sop_class_uid, answer.transfer_syntax_uid) for answer in answers] == pairs
    assert [answer.accepted for answer in answers] == [True, True, False, True, False, False]
    assert "Enhanced SR Storage in Explicit VR Little Endian" in answers[2].words
    many = [(str(kind), str(ImplicitVRLittleEndian)) for kind in contexts.STORAGE_SOP_CLASSES]
    assert sum(answer.accepted for answer in scu.accepted_contexts(remote_of(peer), many)) == 2
    peer.stop()
    with pytest.raises(Unavailable, match="cannot be reached"):
        scu.accepted_contexts(remote_of(peer), pairs)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_scan_leaves_out_what_is_damaged(make_instances):
    chance = np.random.default_rng(12)
    instances = make_instances(300, rows=4)
    for one in instances:
        raw = bytearray(one.path.read_bytes())
        for _ in range(4):
            raw[int(chance.integers(128, split_dataset(one.path)[1] + 100))] = int(chance.integers(0, 256))
        one.path.write_bytes(raw)
    found = scu.scan([instances[0].path.parent])
    assert len(found.instances) + len(found.skipped) == 300
    assert any(why == "a damaged DICOM file" for _, why in found.skipped)


def test_scan_finds_dicom_files_and_says_what_it_left_out(make_instances, tmp_path, keeping_peer):
    instances = make_instances(3)
    folder = instances[0].path.parent
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "deeper").mkdir()
    shutil.copy(instances[0].path, folder / "deeper" / "copy.dcm")
    found = scu.scan([folder, tmp_path / "missing.dcm"])
    assert {one.sop_instance_uid for one in found.instances} == {one.sop_instance_uid for one in instances}
    reasons = {path.name: why for path, why in found.skipped}
    assert reasons["notes.txt"] == "no DICOM file"
    assert "same instance" in reasons["copy.dcm"] or "same instance" in reasons["00000.dcm"]
    assert "No such file" in reasons["missing.dcm"]
    seen = []
    outcomes = scu.send_files(remote_of(keeping_peer), found.instances, lambda *step: seen.append(step))
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [outcome for _, _, outcome in seen] == outcomes


# A foreign implementation


@pytest.fixture
def storescp(tmp_path: Path, free_port: int, wait_until) -> Iterator[tuple[Remote, Path]]:
    """dcmtk's storescp, writing what it gets bit for bit."""
    binary = shutil.which("storescp", path="/usr/bin:/usr/local/bin")  # not pynetdicom's namesake in the venv
    if binary is None:
        pytest.skip("DCMTK MISSING: apt-get install dcmtk; nothing was sent to a foreign implementation here")
    folder = tmp_path / "storescp"
    folder.mkdir()
    command_line = [binary, "-q", "--bit-preserving", "-aet", "DCMTK", "-od", str(folder), str(free_port)]
    process = subprocess.Popen(command_line, env={**os.environ, "TCP_NODELAY": "1"})
    remote = Remote("DCMTK", "127.0.0.1", free_port, "PACS_AI")
    try:
        wait_until(lambda: scu.echo(remote).ms is not None, what="storescp answering")
        yield remote, folder
    finally:
        process.terminate()
        process.wait()


def test_dcmtk_stores_the_same_bytes(storescp, make_instances):
    remote, folder = storescp
    instances = make_instances(3, rows=300)
    instances += make_instances(2, transfer_syntax_uid=ImplicitVRLittleEndian, name="implicit")
    instances += make_instances(sop_class_uid=SecondaryCaptureImageStorage, name="sc")
    assert set(categories(list(scu.send(remote, instances)))) == {Category.SUCCESS}
    kept = {str(dcmread(path).SOPInstanceUID): path for path in folder.iterdir()}
    assert set(kept) == {one.sop_instance_uid for one in instances}
    for one in instances:
        assert data_set_bytes(kept[one.sop_instance_uid]) == data_set_bytes(one.path)


def test_a_300_slice_ct_goes_out_at_more_than_80_instances_a_second(storescp, make_instances):
    """Where the machine is too slow or too busy for that: at half the rate at least of dcmtk's own sender."""
    remote, _ = storescp
    instances = make_instances(300, rows=512)
    rates, dcmtks = [], []
    for _ in range(3):
        started = time.perf_counter()
        outcomes = list(scu.send(remote, instances))
        rates.append(len(outcomes) / (time.perf_counter() - started))
        assert all(outcome.stored for outcome in outcomes)
        if rates[-1] > 80:
            return
        dcmtks.append(dcmtk_rate(remote, instances))
        if rates[-1] > dcmtks[-1] / 2:
            return
    raise AssertionError(f"{rates} instances/s, and dcmtk {dcmtks}")


def dcmtk_rate(remote: Remote, instances: list[Outgoing]) -> float:
    """Return how many instances a second dcmtk's storescu sends."""
    binary = shutil.which("storescu", path="/usr/bin:/usr/local/bin")
    assert binary is not None, "it comes with storescp"
    folder, port = str(instances[0].path.parent), str(remote.port)
    started = time.perf_counter()
    subprocess.run(
        [binary, "-q", "-aec", remote.ae_title, "+sd", remote.host, port, folder],
        env={**os.environ, "TCP_NODELAY": "1"},
        check=True,
        timeout=120,
    )
    return len(instances) / (time.perf_counter() - started)


# Peers that fail


@pytest.fixture
def make_scp() -> Iterator[Callable[..., int]]:
    """Start a pynetdicom SCP with a C-STORE handler of the test's own; return its port."""
    servers = []

    def make(handler: Callable[[evt.Event], object]) -> int:
        ae = AE("SCP")
        ae.supported_contexts = contexts.acceptor_contexts()
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handler)])
        servers.append(server)
        return server.server_address[1]

    yield make
    for server in servers:
        server.shutdown()


class Hostile:
    """A raw peer: each connection is played by `script(conn)` until it returns or the test is over."""

    def __init__(self, script: Callable[[Hostile, socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.port = self._listener.getsockname()[1]
        self.over = threading.Event()
        self._script = script
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(conn)
            try:
                self._script(self, conn)
            except OSError:
                continue

    def stop(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for conn in self._connections:
            try:
                conn.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._thread.join(60)
        for conn in self._connections:
            conn.close()
        assert not self._thread.is_alive()


@pytest.fixture
def hostile() -> Iterator[Callable[..., Remote]]:
    """Start a raw peer; return how to reach it, with limits by which nothing ends."""
    peers = []

    def make(script: Callable[[Hostile, socket.socket], None]) -> Remote:
        peers.append(Hostile(script))
        return patient(peers[-1].port)

    yield make
    for peer in peers:
        peer.stop()


def read_pdu(conn: socket.socket) -> bytes:
    header = read_exactly(conn, 6)
    return header + read_exactly(conn, struct.unpack(">L", header[2:])[0])


def read_exactly(conn: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = conn.recv(count - len(received))
        if not piece:
            raise ConnectionResetError
        received += piece
    return received


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def acceptance(request: bytes, result: int = 0, maximum_length: int = 16_384) -> bytes:
    """The A-ASSOCIATE-AC that accepts all that was asked (PS3.8 9.3.3)."""
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(request)
    body = struct.pack(">HH", 1, 0) + request[10:42] + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    for context in pdu.presentation_context:
        syntax = item(0x40, context.transfer_syntax[0].encode())
        body += item(0x21, struct.pack(">BBBB", context.presentation_context_id, 0, result, 0) + syntax)
    body += item(0x50, item(0x51, struct.pack(">L", maximum_length)))
    return struct.pack(">BxL", 2, len(body)) + body


def accept(conn: socket.socket) -> None:
    conn.sendall(acceptance(read_pdu(conn)))


def agree_to_release(conn: socket.socket) -> None:
    while read_pdu(conn)[0] != 5:
        pass
    conn.sendall(struct.pack(">BxLL", 6, 4, 0))


def read_message(conn: socket.socket) -> dict[int, bytes]:
    """Read one C-STORE-RQ to the end of its data set and return the elements of its command."""
    encoded = b""
    while True:
        pdu = read_pdu(conn)
        if pdu[0] != 4:
            raise ConnectionAbortedError
        if pdu[11] & 1:
            encoded += pdu[12:]
        elif pdu[11] & 2:
            return command._elements(encoded)


def response(request: dict[int, bytes], context_id: int = 1, **changes: object) -> bytes:
    """The P-DATA-TF of a C-STORE-RSP; `changes` are the lies."""
    elements: dict[int, int | str] = {
        command.AFFECTED_SOP_CLASS_UID: request[command.AFFECTED_SOP_CLASS_UID].decode().rstrip("\0"),
        command.COMMAND_FIELD: 0x8001,
        command.MESSAGE_ID_BEING_RESPONDED_TO: int.from_bytes(request[command.MESSAGE_ID], "little"),
        command.COMMAND_DATA_SET_TYPE: 0x0101,
        command.STATUS: 0x0000,
        command.AFFECTED_SOP_INSTANCE_UID: request[command.AFFECTED_SOP_INSTANCE_UID].decode().rstrip("\0"),
    }
    for name, value in changes.items():
        elements[getattr(command, name)] = value
    encoded = command.encode({tag: value for tag, value in elements.items() if value is not None})
    value = struct.pack(">LBB", len(encoded) + 2, context_id, 3) + encoded
    return struct.pack(">BxL", 4, len(value)) + value


def timed(outcomes: Iterator[Outcome]) -> tuple[list[Outcome], float]:
    started = time.monotonic()
    found = list(outcomes)
    return found, time.monotonic() - started


def test_DEL_02_a_connect_black_hole_ends_by_the_deadline(make_instances):
    """A full backlog drops the SYN: the connection never comes about (DEL-02)."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = [socket.socket() for _ in range(4)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    outcomes, seconds = timed(scu.send(patient(listener.getsockname()[1], connect_seconds=LIMIT), make_instances(2)))
    for sock in [*waiting, listener]:
        sock.close()
    assert categories(outcomes) == [Category.TRANSIENT] * 2
    assert "no connection within 0.6 s" in outcomes[0].words
    assert LIMIT * 0.9 < seconds < LIMIT + MARGIN


def test_DEL_02_a_name_server_that_does_not_answer_ends_by_the_deadline(make_instances, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: answered.wait(60) and [])
    remote = replace(patient(104, connect_seconds=LIMIT), host="pacs.example")
    outcomes, seconds = timed(scu.send(remote, make_instances(2)))
    answered.set()
    assert categories(outcomes) == [Category.TRANSIENT] * 2
    assert "was not resolved within 0.6 s; does the name server answer?" in outcomes[0].words
    assert LIMIT * 0.9 < seconds < LIMIT + MARGIN


IPV4, IPV6 = (socket.AF_INET, ("127.0.0.1",)), (socket.AF_INET6, ("::1",))


@pytest.mark.parametrize(
    ("addresses", "code", "words"),
    [
        ([IPV4, IPV6], errno.EAFNOSUPPORT, "Connection refused; is it running"),
        ([IPV6, IPV4], errno.EAFNOSUPPORT, "Connection refused; is it running"),
        ([IPV6], errno.EAFNOSUPPORT, "this machine opens no connection to ::1: Address family not supported"),
        ([IPV6], errno.EMFILE, "this machine opens no connection to ::1: Too many open files"),
    ],
)
def test_an_address_that_this_machine_cannot_call_is_explained(
    make_instances, monkeypatch, free_port, addresses, code, words
):
    opened = socket.socket

    def open_socket(family: int = -1, *rest: object, **named: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(code, os.strerror(code))
        return opened(family, *rest, **named)

    found = [(family, socket.SOCK_STREAM, 0, "", (*host, free_port)) for family, host in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)
    monkeypatch.setattr(socket, "socket", open_socket)
    [outcome] = scu.send(patient(free_port), make_instances())
    assert outcome.category is Category.TRANSIENT
    assert words in outcome.words


def stay(peer: Hostile, conn: socket.socket) -> None:
    peer.over.wait()


def accept_and_stay(peer: Hostile, conn: socket.socket) -> None:
    accept(conn)
    peer.over.wait()


def read_all_and_stay(peer: Hostile, conn: socket.socket) -> None:
    accept(conn)
    read_message(conn)
    peer.over.wait()


def drip_acceptance(peer: Hostile, conn: socket.socket) -> None:
    for octet in acceptance(read_pdu(conn)):
        conn.sendall(bytes([octet]))
        if peer.over.wait(0.05):
            return


def drip_response(peer: Hostile, conn: socket.socket) -> None:
    accept(conn)
    for octet in response(read_message(conn)):
        conn.sendall(bytes([octet]))
        if peer.over.wait(0.05):
            return


@pytest.mark.parametrize(
    ("script", "limit", "words"),
    [
        (stay, "acse_seconds", "did not answer the association request within 0.6 s"),
        (drip_acceptance, "acse_seconds", "did not answer the association request within 0.6 s"),
        (accept_and_stay, "network_seconds", "stopped reading"),
        (read_all_and_stay, "dimse_seconds", "did not answer within 0.6 s"),
        (drip_response, "dimse_seconds", "did not answer within 0.6 s"),
    ],
)
def test_DEL_02_silent_and_dripping_peers_end_by_the_deadline(hostile, make_instances, script, limit, words):
    remote = replace(hostile(script), **{limit: LIMIT})
    instances = make_instances(2, rows=2000)
    outcomes, seconds = timed(scu.send(remote, instances))
    assert categories(outcomes) == [Category.TRANSIENT] * 2
    assert all(words in outcome.words for outcome in outcomes), outcomes[0].words
    assert seconds < LIMIT + MARGIN


def hang_up(peer: Hostile, conn: socket.socket) -> None:
    read_pdu(conn)
    conn.shutdown(socket.SHUT_RDWR)


def accept_and_hang_up(peer: Hostile, conn: socket.socket) -> None:
    accept(conn)
    read_pdu(conn)
    conn.shutdown(socket.SHUT_RDWR)


def reject(result: int) -> Callable[[Hostile, socket.socket], None]:
    def script(peer: Hostile, conn: socket.socket) -> None:
        read_pdu(conn)
        conn.sendall(struct.pack(">BxLxBBB", 3, 4, result, 1, 1))

    return script


@pytest.mark.parametrize(
    ("script", "limit", "error"),
    [
        (stay, "acse_seconds", Unavailable),
        (hang_up, "", Unavailable),
        (reject(2), "", Unavailable),
        (reject(1), "", BrokenOff),
        (accept_and_stay, "dimse_seconds", BrokenOff),
        (accept_and_hang_up, "", BrokenOff),
    ],
)
def test_DEL_07_a_peer_that_breaks_off_is_told_from_one_that_is_away(hostile, script, limit, error):
    remote = hostile(script)
    remote = replace(remote, **{limit: LIMIT}) if limit else remote
    request = Request("2.25.7", (("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"),))
    with pytest.raises(Unavailable) as caught:
        inquiry.ask(remote, request, taken=pytest.fail, answered=pytest.fail, seconds=LIMIT)
    assert type(caught.value) is error


def test_DEL_02_a_peer_that_reads_drop_by_drop_ends_at_the_slowest_rate(hostile, make_instances):
    def drip(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        while conn.recv(2000) and not peer.over.wait(0.01):
            pass

    remote = replace(hostile(drip), network_seconds=LIMIT, slowest_bytes_per_second=10_000_000)
    [outcome], seconds = timed(scu.send(remote, make_instances(1, rows=2500)))
    assert outcome.category is Category.TRANSIENT
    assert "stopped reading" in outcome.words
    assert seconds < LIMIT + 1.25 + MARGIN


LIES = {
    "other message": ({"MESSAGE_ID_BEING_RESPONDED_TO": 77}, "belongs to another request (Message ID 77 instead of 1)"),
    "no message id": ({"MESSAGE_ID_BEING_RESPONDED_TO": None}, "belongs to another request"),
    "other instance": ({"AFFECTED_SOP_INSTANCE_UID": "1.2.3"}, "for another instance"),
    "other class": ({"AFFECTED_SOP_CLASS_UID": "1.2.3"}, "for another instance"),
    "other command": ({"COMMAND_FIELD": 0x8030}, "belongs to another request"),
    "other context": ({"context_id": 3}, "belongs to another request"),
    "no status": ({"STATUS": None}, "without a status"),
    "data set announced": ({"COMMAND_DATA_SET_TYPE": 0}, "with a data set where none belongs"),
    "no command": ({"COMMAND_FIELD": None}, "cannot be read"),
}


@pytest.mark.parametrize("lie", LIES)
def test_DEL_04_a_success_for_something_else_is_no_success(hostile, make_instances, lie):
    """DEL-04: only the answer to this very request counts."""
    changes, words = LIES[lie]

    def script(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        conn.sendall(response(read_message(conn), **changes))
        peer.over.wait()

    outcomes, _ = timed(scu.send(hostile(script), make_instances(2)))
    assert categories(outcomes) == [Category.TRANSIENT] * 2
    assert all(words in outcome.words for outcome in outcomes), outcomes[0].words


def test_optional_uids_may_be_missing_from_the_answer(hostile, make_instances):
    def script(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        nothing = {"AFFECTED_SOP_INSTANCE_UID": None, "AFFECTED_SOP_CLASS_UID": None}
        conn.sendall(response(read_message(conn), **nothing))
        agree_to_release(conn)

    [outcome] = scu.send(hostile(script), make_instances())
    assert outcome.category is Category.SUCCESS


def test_DEL_04_the_second_of_two_answers_is_not_taken_for_the_next_instance(hostile, make_instances):
    def script(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        twice = response(read_message(conn)) * 2
        conn.sendall(twice)
        read_message(conn)
        peer.over.wait()

    outcomes = list(scu.send(hostile(script), make_instances(2)))
    assert categories(outcomes) == [Category.SUCCESS, Category.TRANSIENT]


def test_an_association_lost_midway_leaves_the_rest_to_be_sent_again(hostile, make_instances):
    def script(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        conn.sendall(response(read_message(conn)))
        conn.sendall(response(read_message(conn)))
        read_message(conn)
        conn.shutdown(socket.SHUT_RDWR)

    outcomes = list(scu.send(hostile(script), make_instances(5)))
    assert categories(outcomes) == [Category.SUCCESS] * 2 + [Category.TRANSIENT] * 3
    assert "closed the connection without an answer" in outcomes[2].words


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        (0, 0, "aborted the association (by its application"),
        (2, 1, "aborted the association (it did not recognise a PDU)"),
    ],
)
def test_an_abort_while_the_data_set_is_sent_is_explained(hostile, make_instances, source, reason, words):
    def script(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        read_pdu(conn)
        conn.sendall(struct.pack(">BxLxxBB", 7, 4, source, reason))
        conn.close()

    [outcome] = scu.send(hostile(script), make_instances(1, rows=2000))
    assert outcome.category is Category.TRANSIENT
    assert words in outcome.words


def test_a_release_by_the_peer_instead_of_an_answer(hostile, make_instances):
    def script(peer: Hostile, conn: socket.socket) -> None:
        accept(conn)
        read_message(conn)
        conn.sendall(struct.pack(">BxLL", 5, 4, 0))
        read_pdu(conn)

    [outcome] = scu.send(hostile(script), make_instances())
    assert outcome.category is Category.TRANSIENT
    assert "ended the association before it had answered" in outcome.words


@pytest.mark.parametrize(
    ("result", "source", "reason", "words"),
    [
        (1, 1, 7, 'permanently (it does not answer to the called AE title "HOSTILE"'),
        (1, 1, 3, 'permanently (it does not know the calling AE title "PACS_AI"; ask its administrator'),
        (2, 3, 1, "for now (it is congested"),
        (2, 3, 2, "for now (its limit of associations is reached"),
        (1, 1, 1, "no reason given"),
        (9, 9, 9, "does not define; A-ASSOCIATE-RJ 9/9/9"),
    ],
)
def test_a_refused_association_is_explained_and_tried_again(hostile, make_instances, result, source, reason, words):
    def script(peer: Hostile, conn: socket.socket) -> None:
        read_pdu(conn)
        conn.sendall(struct.pack(">BxLxBBB", 3, 4, result, source, reason))
        peer.over.wait(0.1)
        conn.close()

    outcomes = list(scu.send(hostile(script), make_instances(2)))
    assert categories(outcomes) == [Category.TRANSIENT] * 2
    assert words in outcomes[0].words


GARBAGE = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "tls": bytes.fromhex("15030100020228") + bytes(20),
    "huge acceptance": struct.pack(">BxL", 2, 0xFFFFFFFF),
    "huge data": struct.pack(">BxL", 4, 1_000_000),
    "request": struct.pack(">BxL", 1, 68) + bytes(68),
    "release": struct.pack(">BxLL", 6, 4, 0),
    "short": b"\x02\0\0",
    "empty acceptance": struct.pack(">BxL", 2, 0),
    "blank acceptance": struct.pack(">BxL", 2, 68) + bytes(68),
    "bad item": struct.pack(">BxL", 2, 72) + bytes(68) + b"\x21\0\xff\xff",
    "short rejection": struct.pack(">BxL", 3, 1) + b"\0",
    "short abort": struct.pack(">BxL", 7, 0),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_instead_of_an_acceptance(hostile, make_instances, name):
    def script(peer: Hostile, conn: socket.socket) -> None:
        read_pdu(conn)
        conn.sendall(GARBAGE[name])
        conn.shutdown(socket.SHUT_WR)
        peer.over.wait()

    [outcome], seconds = timed(scu.send(hostile(script), make_instances()))
    assert outcome.category in {Category.TRANSIENT, Category.PERMANENT}
    assert not outcome.stored
    assert seconds < LIMIT * 3 + MARGIN


def test_mutated_acceptances_and_answers_never_raise(hostile, make_instances):
    """Two hundred peers that flip bytes: an outcome each time, and never Success for a changed answer to the end."""
    chance = np.random.default_rng(3)

    def mutate(raw: bytes) -> bytes:
        changed = bytearray(raw)
        for _ in range(int(chance.integers(1, 4))):
            changed[int(chance.integers(0, len(changed)))] = int(chance.integers(0, 256))
        return bytes(changed[: int(chance.integers(1, len(changed) + 1))] if chance.random() < 0.2 else changed)

    def script(peer: Hostile, conn: socket.socket) -> None:
        conn.settimeout(1)
        good = acceptance(read_pdu(conn))
        bad_acceptance = chance.random() < 0.5
        conn.sendall(mutate(good) if bad_acceptance else good)
        if bad_acceptance:
            conn.shutdown(socket.SHUT_WR)
        conn.sendall(mutate(response(read_message(conn))))
        conn.shutdown(socket.SHUT_WR)

    remote = replace(hostile(script), dimse_seconds=0.05, acse_seconds=0.05, network_seconds=0.2)
    [one] = make_instances()
    for _ in range(200):
        [outcome] = scu.send(remote, [one])
        assert outcome.words


@pytest.mark.parametrize("length", [1, 6, 7])
def test_a_peer_that_takes_no_data_is_refused_not_looped_over(hostile, make_instances, length):
    def script(peer: Hostile, conn: socket.socket) -> None:
        conn.sendall(acceptance(read_pdu(conn), maximum_length=length))
        peer.over.wait()

    [outcome], seconds = timed(scu.send(hostile(script), make_instances()))
    assert "holds no data" in outcome.words
    assert seconds < LIMIT + MARGIN


@pytest.mark.parametrize("result", [1, 2, 3, 4])
def test_DEL_06_every_refusal_of_a_context_is_permanent(hostile, make_instances, result):
    def script(peer: Hostile, conn: socket.socket) -> None:
        conn.sendall(acceptance(read_pdu(conn), result=result))
        agree_to_release(conn)

    [outcome] = scu.send(hostile(script), make_instances())
    assert outcome.category is Category.PERMANENT
    assert "does not accept CT Image Storage" in outcome.words


def test_what_is_held_back_is_left_out(make_peer, make_instances):
    peer = make_peer()
    instances = make_instances(3)
    outcomes = list(scu.send(remote_of(peer), instances, lambda instance: instance is instances[1]))
    assert [o.sop_instance_uid for o in outcomes] == [instances[0].sop_instance_uid, instances[2].sop_instance_uid]
    assert len(peer.stored) == 2
