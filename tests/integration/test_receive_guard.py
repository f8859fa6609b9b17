"""Silent, half, slow, lying and vanishing peers deny nobody else the service, and leave nothing behind."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from event_loops import loop_for
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, Verification

from pacs_ai.receive import dimse, guard
from pacs_ai.receive.guard import Bounds
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.scp import Listen, Receiver
from pacs_ai.store.files import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival

ABORT, REJECT, ACCEPT = 0x07, 0x03, 0x02
#: Half of what one that says nothing may wait at a site: whoever had to wait for its end is answered later.
PROMPT_SECONDS = 5.0


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        pause.wait(0.01)


@pytest.fixture
def arrivals() -> list[Arrival]:
    return []


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "files")


@pytest.fixture
def make_receiver(
    files: Files, arrivals: list[Arrival], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Receiver]]:
    """Start receivers; keyword arguments are fields of `Listen`."""
    ingest = DurableIngest(files, arrivals.extend)
    receivers: list[Receiver] = []

    def make(**fields: object) -> Receiver:
        receivers.append(Receiver(replace(Listen(port=0, event_loop=loop_for(request.node.name)), **fields), ingest))
        receivers[-1].start()
        return receivers[-1]

    yield make
    for receiver in receivers:
        receiver.stop(0.0)
        assert receiver.associations == 0
    ingest.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Receiver], socket.socket]]:
    opened: list[socket.socket] = []

    def connect(receiver: Receiver) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", receiver.port), 60))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def request(
    calling: bytes = b"SENDER", called: bytes = b"PACS_AI", contexts: Sequence[tuple[int, str]] = ((1, CTImageStorage),)
) -> bytes:
    """Return an A-ASSOCIATE-RQ (PS3.8 9.3.2) with one context per (ID, abstract syntax), explicit VR little endian."""
    body = struct.pack(">Hxx16s16s32x", 1, called.ljust(16), calling.ljust(16)) + item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract_syntax in contexts:
        syntaxes = item(0x30, abstract_syntax.encode()) + item(0x40, ExplicitVRLittleEndian.encode())
        body += item(0x20, bytes((number, 0, 0, 0)) + syntaxes)
    body += item(0x50, item(0x51, struct.pack(">L", 131072)) + item(0x52, b"1.2.3.4"))
    return pdu(0x01, body)


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def pdv(body: bytes, control: int, context_id: int = 1) -> bytes:
    return pdu(0x04, struct.pack(">LBB", len(body) + 2, context_id, control) + body)


def store_command(uid: str = "1.2.3") -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", 0, number, len(value)) + value

    words = {0x0100: 0x0001, 0x0110: 7, 0x0700: 0, 0x0800: 0}
    body = element(0x0002, CTImageStorage.encode())
    body += b"".join(element(number, struct.pack("<H", word)) for number, word in words.items())
    body += element(0x1000, uid.encode())
    return element(0x0000, struct.pack("<L", len(body))) + body


def answer(connection: socket.socket) -> bytes:
    """Return the next PDU; b"" where the peer closed."""
    connection.settimeout(60)
    try:
        header = connection.recv(6, socket.MSG_WAITALL)
        return header + connection.recv(struct.unpack(">BxL", header)[1], socket.MSG_WAITALL) if header else b""
    except ConnectionResetError:
        return b""


def is_closed(connection: socket.socket, seconds: float = 60.0) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def associate(receiver: Receiver, connect: Callable[[Receiver], socket.socket]) -> socket.socket:
    connection = connect(receiver)
    connection.sendall(request())
    assert answer(connection)[0] == ACCEPT
    return connection


def echo_seconds(receiver: Receiver) -> float:
    """Return how long a C-ECHO takes, from connecting to the answer; the best of three, where others work as well."""
    return min(_echo_seconds(receiver) for _ in range(3))


def _echo_seconds(receiver: Receiver) -> float:
    started = time.monotonic()
    ae = AE(ae_title="ECHOER")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    assoc = ae.associate("127.0.0.1", receiver.port, contexts=[build_context(Verification)], ae_title="PACS_AI")
    assert assoc.is_established
    assert assoc.send_c_echo().Status == 0x0000
    took = time.monotonic() - started
    assoc.release()
    return took


def test_thirty_bare_and_thirty_silent_connections_deny_nothing(make_receiver, connect):
    receiver = make_receiver(maximum_associations=10, waiting=guard.Limits(request_seconds=3600.0))
    for _ in range(30):
        connect(receiver).close()
    silent = [connect(receiver) for _ in range(30)]
    assert echo_seconds(receiver) < PROMPT_SECONDS
    until(lambda: receiver.associations == 0)
    assert not any(is_readable(each) for each in silent)


def is_readable(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        connection.recv(1)
    except BlockingIOError:
        return False
    return True


def test_NET_03_a_hundred_half_association_requests_deny_nothing_and_are_closed_at_the_deadline(make_receiver, connect):
    for limit in (3600.0, 1.0):
        receiver = make_receiver(waiting=guard.Limits(request_seconds=limit, connections_per_address=200))
        started = time.monotonic()
        half = [connect(receiver) for _ in range(100)]
        for each in half:
            each.sendall(request()[:40])
        assert echo_seconds(receiver) < PROMPT_SECONDS
        if limit == 3600.0:
            assert not any(is_readable(each) for each in half), "none of them has ended"
    assert all(is_closed(each) for each in half)
    assert 0.9 < time.monotonic() - started < 9.0  # the limit that a site has is 10 s


def test_a_request_that_drips_in_whole_is_answered(make_receiver, connect):
    connection = connect(make_receiver())
    whole = request()
    for start in range(0, len(whole), 50):
        connection.sendall(whole[start : start + 50])
    assert answer(connection)[0] == ACCEPT


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"SSH-2.0-x\r\n", b"\r\n" * 1000],
    ids=["http", "tls", "ssh", "newlines"],
)
def test_NET_10_what_is_not_dicom_is_closed_at_once(make_receiver, connect, garbage):
    connection = connect(make_receiver())
    started = time.monotonic()
    connection.sendall(garbage)
    assert is_closed(connection)
    assert time.monotonic() - started < 9.0  # a connection that waits may do so for 10 s


def test_NET_08_another_first_pdu_is_aborted(make_receiver, connect):
    receiver = make_receiver()
    for kind in (0x02, 0x03, 0x04, 0x05, 0x06):
        connection = connect(receiver)
        connection.sendall(pdu(kind, bytes(4)))
        assert answer(connection)[0] == ABORT
        assert is_closed(connection)


def test_NET_06_a_request_of_four_gigabytes_is_aborted_before_it_is_read(make_receiver, connect):
    connection = connect(make_receiver())
    connection.sendall(b"\x01\0\xff\xff\xff\xff")
    assert answer(connection)[0] == ABORT


MANY = [(2 * n + 1, CTImageStorage) for n in range(128)]


@pytest.mark.parametrize(
    "contexts",
    [[], [(2, CTImageStorage)], [(1, CTImageStorage), (1, Verification)], [*MANY, (255, Verification)]],
    ids=["none", "even", "repeated", "129"],
)
def test_ASC_04_malformed_presentation_contexts_are_aborted(make_receiver, connect, contexts):
    connection = connect(make_receiver())
    connection.sendall(request(contexts=contexts))
    assert answer(connection)[0] == ABORT
    assert is_closed(connection)


def test_ASC_04_128_contexts_are_answered(make_receiver, connect):
    connection = connect(make_receiver())
    connection.sendall(request(contexts=MANY))
    assert answer(connection)[0] == ACCEPT


def test_items_that_overrun_are_malformed():
    good = request()
    assert guard.examine(good) == guard.AssociationRequest("SENDER", "PACS_AI", "SENDER".ljust(16), "PACS_AI".ljust(16))
    for position in range(74, len(good)):
        spoiled = bytearray(good)
        spoiled[position] ^= 0xFF
        try:
            guard.examine(bytes(spoiled))
        except guard.MalformedRequest:
            continue
    for length in range(6, len(good)):
        with pytest.raises(guard.MalformedRequest):
            guard.examine(good[:length] if length < 80 else good[:-1])


@pytest.mark.parametrize("title", [b"", b"A\0B", b"A\nB", b"\x1b[31mRED", b"\xff" * 16, b"A\\B"])
def test_ASC_03_ae_titles_that_are_none_are_rejected_and_logged_escaped(make_receiver, connect, caplog, title):
    receiver = make_receiver()
    connection = connect(receiver)
    connection.sendall(request(calling=title))
    assert answer(connection)[6:] == bytes((0, 1, 1, 3))
    connection = connect(receiver)
    connection.sendall(request(called=title))
    assert answer(connection)[6:] == bytes((0, 1, 1, 7))
    until(lambda: caplog.text.count("rejected association") == 2)
    assert not set(caplog.text) & {"\0", "\x1b"}
    assert all(len(caplog.handler.format(record).splitlines()) == 1 for record in list(caplog.records))


def test_spaces_around_ae_titles_mean_nothing(make_receiver, connect):
    connection = connect(make_receiver())
    connection.sendall(request(calling=b"  SENDER", called=b" PACS_AI"))
    assert answer(connection)[0] == ACCEPT


def test_NET_04_half_a_pdu_in_an_association_ends_it(make_receiver, connect, files, arrivals):
    receiver = make_receiver(bounds=Bounds(network_seconds=1.0))
    connection = associate(receiver, connect)
    started = time.monotonic()
    connection.sendall(pdv(store_command(), 3)[:50])
    assert answer(connection)[0] == ABORT
    assert 0.5 < time.monotonic() - started < 30.0  # the limit that a site has is 60 s
    until(lambda: receiver.associations == 0)
    assert arrivals == []


def test_a_silent_association_ends(make_receiver, connect):
    receiver = make_receiver(bounds=Bounds(network_seconds=1.0))
    connection = associate(receiver, connect)
    assert answer(connection)[0] == ABORT
    until(lambda: receiver.associations == 0)


def test_NET_05_a_pdu_that_drips_ends_its_association(make_receiver, connect):
    receiver = make_receiver(bounds=Bounds(network_seconds=5.0, bytes_per_second=10_000, pace_seconds=0.6))
    connection = associate(receiver, connect)
    whole = pdv(store_command(), 3) + pdv(bytes(8000), 0)
    pause = threading.Event()
    aborted_after = None
    for start in range(100):  # 5 bytes at a time, each well within the longest pause
        try:
            connection.sendall(whole[5 * start : 5 * start + 5])
        except OSError:
            aborted_after = start
            break
        pause.wait(0.05)
    assert aborted_after is not None
    until(lambda: receiver.associations == 0)


def test_NET_07_a_pdu_longer_than_agreed_is_aborted_unread(make_receiver, connect):
    receiver = make_receiver(bounds=Bounds(pdu_bytes=16384))
    connection = associate(receiver, connect)
    connection.sendall(struct.pack(">BxL", 4, 16385))
    assert answer(connection)[-2:] == bytes((2, 6))
    connection = associate(receiver, connect)
    connection.sendall(struct.pack(">BxL", 5, 0xFFFFFFFF))
    assert answer(connection)[-2:] == bytes((2, 6))
    until(lambda: receiver.associations == 0)


def test_an_endless_command_set_is_aborted(make_receiver, connect):
    receiver = make_receiver()
    connection = associate(receiver, connect)
    for _ in range(3):
        connection.sendall(pdv(bytes(12000), 1))
    assert answer(connection)[0] == ABORT
    until(lambda: receiver.associations == 0)


@pytest.mark.parametrize("how", ["abort", "close", "reset"])
def test_NET_13_a_peer_that_vanishes_amid_an_instance_leaves_nothing(make_receiver, connect, files, arrivals, how):
    receiver = make_receiver()
    whole = pdv(store_command(), 3) + pdv(bytes(3000), 0) + pdv(bytes(3000), 2)
    for offset in range(1, len(whole), 331):
        connection = associate(receiver, connect)
        connection.sendall(whole[:offset])
        if how == "abort":
            connection.sendall(pdu(ABORT, bytes(4)))
        elif how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    until(lambda: receiver.associations == 0)
    assert arrivals == []
    until(lambda: not [path for path in files.folder.rglob("*") if path.is_file()])
    assert echo_seconds(receiver) < PROMPT_SECONDS


def test_one_address_cannot_fill_the_antechamber(make_receiver, connect):
    receiver = make_receiver(waiting=guard.Limits(connections=1000, connections_per_address=5))
    first = connect(receiver)
    others = [connect(receiver) for _ in range(5)]
    assert is_closed(first)
    assert echo_seconds(receiver) < PROMPT_SECONDS
    assert is_closed(others[0])
    others[-1].sendall(request())
    assert answer(others[-1])[0] == ACCEPT


def test_a_full_antechamber_dismisses_who_waited_longest(make_receiver, connect):
    receiver = make_receiver(waiting=guard.Limits(connections=5, connections_per_address=64))
    waiting = [connect(receiver) for _ in range(6)]
    assert is_closed(waiting[0])
    assert echo_seconds(receiver) < PROMPT_SECONDS


def test_a_fault_of_the_node_while_it_decides_is_an_abort_at_once(make_receiver, connect, monkeypatch, caplog):
    """It must neither leave the peer waiting for its deadline nor keep the place of an association."""
    receiver = make_receiver(waiting=guard.Limits(request_seconds=3600.0))
    with monkeypatch.context() as patch:
        patch.setattr(receiver._ingest, "opened", lambda info: {}[info])
        connection = connect(receiver)
        connection.sendall(request())
        assert answer(connection) == guard.abort(guard.NOT_SPECIFIED)
        assert is_closed(connection)
    until(lambda: "KeyError in" in caplog.text and receiver.associations == 0)
    assert echo_seconds(receiver) < PROMPT_SECONDS


def test_a_port_that_is_taken_is_said_in_words(make_receiver):
    from pacs_ai.errors import UserError

    taken = make_receiver()
    with pytest.raises(UserError, match=r"port \d+: another program has it"):
        make_receiver(port=taken.port)


def test_ASC_12_a_command_amid_a_data_set_is_aborted(make_receiver, connect, arrivals):
    receiver = make_receiver()
    connection = associate(receiver, connect)
    connection.sendall(pdv(store_command(), 3) + pdv(bytes(100), 0) + pdv(store_command(), 3))
    assert answer(connection)[-2:] == bytes((2, 6))
    until(lambda: receiver.associations == 0)
    assert arrivals == []


@pytest.mark.parametrize(
    "broken",
    [
        pdv(b"", 0),
        pdv(b"data before any command", 2),
        pdv(b"\x08\0\0\0\x02\0\0\0ab", 3),
        pdv(store_command()[:-3], 3),
        pdv(store_command(), 3, context_id=9) + pdv(b"12", 2, context_id=9),
    ],
    ids=["empty", "data first", "another group", "truncated", "unknown context"],
)
def test_NET_09_broken_messages_are_aborted(make_receiver, connect, broken):
    receiver = make_receiver()
    connection = associate(receiver, connect)
    connection.sendall(broken)
    assert answer(connection)[0] == ABORT
    until(lambda: receiver.associations == 0)
    assert echo_seconds(receiver) < PROMPT_SECONDS


def test_one_byte_fragments_are_put_together(make_receiver, connect):
    connection = associate(make_receiver(), connect)
    command = store_command()
    message = b"".join(pdv(command[n : n + 1], 3 if n == len(command) - 1 else 1) for n in range(len(command)))
    connection.sendall(message + pdv(b"\x08", 0) + pdv(b"\0", 2))
    response = answer(connection)
    assert struct.unpack_from("<HHLH", response, response.index(struct.pack("<HH", 0, 0x0900)))[3] == 0xC000


def test_responses_fit_what_the_peer_can_take():
    command = bytes(range(100))
    whole = dimse.fragments(command, 3, 0)
    assert whole == struct.pack(">BxLLBB", 4, 106, 102, 3, 3) + command
    found, rest = b"", dimse.fragments(command, 3, 16)
    while rest:
        _, length, inner, context_id, control = struct.unpack_from(">BxLLBB", rest)
        assert length <= 16
        assert (inner, context_id) == (length - 4, 3)
        found, rest = found + rest[12 : 6 + length], rest[6 + length :]
        assert control == (3 if not rest else 1)
    assert found == command
    with pytest.raises(dimse.ProtocolFault):
        dimse.fragments(command, 3, 6)
