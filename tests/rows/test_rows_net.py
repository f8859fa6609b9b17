"""What happens on the wire below the association: nobody who connects denies the others, and nothing is left of him."""

from __future__ import annotations

import contextlib
import errno
import itertools
import resource
import select
import socket
import struct
import threading
import time

import pytest
from listening_bed import until
from own_memory import own_bytes
from pydicom.uid import CTImageStorage, MRImageStorage
from raw_peer import (
    ABORT,
    PATIENCE,
    RawPeer,
    associate_rq,
    data_set,
    echo,
    echo_seconds,
    pdu,
    pdv,
    store,
    store_command,
)

from pacs_ai.receive import desk
from pacs_ai.receive.guard import Bounds, Limits

PATIENT_LIMITS = Limits(connections=3000, connections_per_address=3000)
MANY = {
    "maximum_associations": 3000,
    "maximum_associations_per_peer": 3000,
    "maximum_associations_per_address": 3000,
    "waiting": PATIENT_LIMITS,
}


@pytest.fixture
def many_files():
    """Let this process, which is node and peers in one, have as many descriptors as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 6000:
        pytest.skip(f"MANY CONNECTIONS NOT TESTED: this machine allows {before[1]} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_NET_01_two_hundred_silent_connections_are_closed_at_the_deadline_and_deny_nothing(make_bed):
    bed = make_bed(waiting=Limits(connections_per_address=300, request_seconds=1.5), maximum_associations=10)
    begun = time.monotonic()
    silent = [bed.peer() for _ in range(200)]
    opened = time.monotonic()
    assert bed.is_served()
    assert bed.receiver.associations <= 1
    assert silent[0].is_closed()
    assert time.monotonic() - begun > 1.4
    assert all(each.is_closed() for each in silent)
    assert time.monotonic() - opened < 20.0


def test_NET_02_a_thousand_health_checks_have_no_effect(make_bed):
    bed = make_bed(maximum_associations=10)
    for number in range(1000):
        with RawPeer(bed.receiver.port) as peer:
            if number % 2:
                peer.reset()
        if number % 250 == 0:
            assert bed.is_served()
    assert bed.is_served()
    until(lambda: bed.receiver.associations == 0)


def test_NET_03_half_a_request_is_told_when_it_is_closed_and_a_health_check_is_not(make_bed, caplog):
    refusals = []
    bed = make_bed(waiting=Limits(request_seconds=3.0), on_refusal=refusals.append)
    silent, half, one_byte = bed.peer(), bed.peer(), bed.peer()
    half.send(associate_rq()[:100])
    one_byte.send(associate_rq()[:1])
    assert all(peer.is_closed() for peer in (silent, half, one_byte))
    until(lambda: not bed.receiver._acceptor._connections)
    assert [each.what for each in refusals] == ["connection"] * 2
    assert {each.reason for each in refusals} == {"half an association request, and no time left"}
    assert caplog.text.count("half an association request, and no time left") == len(caplog.records) == 2


def test_NET_17_where_the_system_is_short_the_clocks_go_on_and_the_port_is_heard_again(make_bed, monkeypatch, caplog):
    """A port that rests after a failed accept is listened on again, however often that fails."""
    bed = make_bed(bounds=Bounds(network_seconds=3.0))
    acceptor = bed.receiver._acceptor
    assert bed.is_served()
    real, failed = acceptor._listen, []

    def failing(port):
        if len(failed) < 3:
            failed.append(port)
            raise OSError(errno.ENOMEM, "no memory")
        real(port)

    def fall_deaf():
        (port,) = acceptor._ports
        acceptor.loop.remove_reader(port.socket.fileno())
        acceptor._deaf.append(port)

    monkeypatch.setattr(acceptor, "_listen", failing)
    idle = bed.peer().associate()
    acceptor.loop.call_soon_threadsafe(fall_deaf)
    assert idle.next_pdu()[:1] == bytes((ABORT,))
    assert bed.is_served()
    assert len(failed) == 3
    assert caplog.text.count("cannot listen on a port again") == 1


def test_NET_04_half_a_data_set_ends_its_association_and_leaves_nothing(make_bed):
    bed = make_bed(bounds=Bounds(network_seconds=3.0))
    whole = store(data_set(pixels=300_000), "1.2.3")
    stuck = [bed.peer().associate() for _ in range(10)]
    for number, peer in enumerate(stuck):
        peer.send(whole[: 200 + number * 30_000])
    assert bed.is_served()
    assert all(peer.next_pdu()[:1] == bytes((ABORT,)) for peer in stuck)
    until(lambda: bed.receiver.associations == 0)
    assert bed.stored() == []


def test_NET_05_an_instance_that_drips_ends_its_association(make_bed):
    """Each byte comes long before the idle deadline; the pace is what is too slow."""
    bounds = {"network_seconds": 3.0, "bytes_per_second": 5000}
    if "pace_seconds" in Bounds.__dataclass_fields__:
        bounds["pace_seconds"] = 1.0
    bed = make_bed(bounds=Bounds(**bounds))
    peer = bed.peer().associate()
    whole = store(data_set(pixels=100_000), "1.2.3")
    sent, begun, ended = 0, time.monotonic(), False
    while not ended and time.monotonic() - begun < PATIENCE / 2:
        due = int(20 * (time.monotonic() - begun)) * 10 + 10
        peer.send(whole[sent:due])
        sent = due
        ended = bool(select.select([peer.socket], [], [], 0.05)[0])
    assert ended
    assert peer.next_pdu()[:1] == bytes((ABORT,))
    until(lambda: bed.receiver.associations == 0)
    assert bed.stored() == []


@pytest.mark.parametrize("form", ["drip", "flood"])
def test_NET_05_fragments_of_nothing_are_no_sign_of_life(make_bed, form):
    """A drip of them is slower than the least pace; a flood is not, but says no more than silence."""
    bounds = {"drip": {"network_seconds": PATIENCE, "pace_seconds": 1.0}, "flood": {"network_seconds": 1.0}}
    bed = make_bed(bounds=Bounds(**bounds[form]))
    peer = bed.peer().associate()
    nothing = pdv(b"", 1) * (1 if form == "drip" else 1000)
    pause, begun, ended = threading.Event(), time.monotonic(), False
    while not ended and time.monotonic() - begun < PATIENCE / 2:
        try:
            peer.send(nothing)
        except OSError:
            ended = True
        pause.wait(0.05)
    assert ended
    until(lambda: bed.receiver.associations == 0)


@pytest.mark.parametrize("why", ["longer than this node accepts", "of another class"])
def test_NET_06_what_is_refused_is_not_read_for_ever(make_bed, monkeypatch, why):
    """What is thrown away counts too: the answer to a refused instance is worth a few megabytes of reading, not all."""
    monkeypatch.setattr(desk, "THROWN_BYTES", 1 << 20)
    bed = make_bed(bounds=Bounds(instance_bytes=100_000))
    sop_class = CTImageStorage if why.startswith("longer") else MRImageStorage
    peer = bed.peer().associate()
    peer.send(store(data_set(pixels=900_000), "1.2.3", sop_class=sop_class))
    assert peer.status() in {0xA700, 0xA900}
    with contextlib.suppress(OSError):
        peer.send(store(data_set(pixels=1_100_000), "1.2.3", sop_class=sop_class))
    assert peer.is_aborted(6)
    assert bed.stored() == []


@pytest.mark.parametrize("amid", [False, True], ids=["first", "in an association"])
def test_NET_06_a_giant_pdu_is_not_read(bed, amid):
    """The node says so at the header; what is sent all the same is thrown away until it closes, a second later."""
    peer = bed.peer()
    if amid:
        peer.associate()
    before, piece, begun = own_bytes(), bytes(1 << 20), time.monotonic()
    peer.send(pdu(4 if amid else 1, b"", length=0xFFFFFFFF))
    assert peer.next_pdu()[:1] == bytes((ABORT,))
    with pytest.raises(OSError):  # noqa: PT012 - whichever of many fails
        while time.monotonic() - begun < PATIENCE:
            peer.send(piece)
    assert own_bytes() - before < 16 << 20
    until(lambda: bed.receiver.associations == 0)
    assert bed.is_served()


@pytest.mark.parametrize("over", [1, 100_000_000])
def test_NET_07_a_pdu_one_byte_over_the_maximum_is_aborted(make_bed, over):
    bed = make_bed(bounds=Bounds(pdu_bytes=16384))
    largest = bed.peer().associate()
    largest.send(pdv(store_command("1.2.3"), 3) + pdv(bytes(16384 - 6), 0))
    peer = bed.peer().associate()
    peer.send(pdu(4, b"", length=16384 + over))
    assert peer.is_aborted(6)
    assert largest.is_quiet()


OUT_OF_PLACE = {
    "second request": associate_rq(),
    "AC": pdu(2, bytes(68)),
    "RJ": pdu(3, bytes(4)),
    "RELEASE-RP": pdu(6, bytes(4)),
}


def test_NET_08_a_pdu_out_of_place_is_aborted(bed):
    for what, raw in OUT_OF_PLACE.items():
        peer = bed.peer().associate()
        peer.send(raw)
        assert peer.is_aborted(2), what
    assert bed.is_served()


def test_NET_08_what_is_no_pdu_closes_the_connection_at_once(bed):
    for kind in (0x00, 0x08, 0x20, 0xFF):
        for peer in (bed.peer(), bed.peer().associate()):
            peer.send(pdu(kind, bytes(10)))
            assert peer.is_closed(), kind
    assert bed.is_served()


def _pdv_item(length: int, body: bytes) -> bytes:
    return struct.pack(">L", length) + body


LYING_PDVS = {
    "empty PDU": pdu(4, b""),
    "length 0": pdu(4, _pdv_item(0, b"")),
    "length 1": pdu(4, _pdv_item(1, b"\1")),
    "longer than the PDU": pdu(4, _pdv_item(100, b"\1\3abcd")),
    "far longer": pdu(4, _pdv_item(0xFFFFFFFF, b"\1\3abcd")),
    "something left": pdu(4, _pdv_item(6, b"\1\3abcd") + b"\0\0"),
    "too short to be one": pdu(4, b"\0\0"),
    "second is longer": pdu(4, _pdv_item(6, b"\1\1abcd") + _pdv_item(50, b"\1\1ab")),
}


def test_NET_09_a_presentation_data_value_that_lies_is_aborted(bed):
    for what, raw in LYING_PDVS.items():
        peer = bed.peer().associate()
        peer.send(raw)
        assert peer.is_aborted(6), what
    assert bed.is_served()


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "newlines": b"\r\n" * (1 << 19),
    "zeros": bytes(1 << 16),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_NET_10_what_is_not_dicom_is_closed_at_once(bed, what):
    before = own_bytes()
    peer = bed.peer()
    begun = time.monotonic()
    try:
        peer.send(GARBAGE[what])
        assert peer.is_closed()
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert time.monotonic() - begun < 9.0  # the waiting limit is 10 s
    assert own_bytes() - before < 8 << 20
    assert bed.is_served()


@pytest.mark.parametrize("how", ["abort", "close", "reset"])
def test_NET_13_a_peer_gone_at_any_byte_of_an_instance_leaves_nothing(make_bed, how):
    bed = make_bed(maximum_associations_per_peer=100)
    whole = store(data_set(pixels=200_000), "1.2.3")
    for step in range(1, 34):
        peer = bed.peer().associate()
        peer.send(whole[: step * len(whole) // 34])
        if how == "abort":
            peer.send(pdu(ABORT, bytes(4)))
        (peer.reset if how == "reset" else peer.close)()
    until(lambda: bed.receiver.associations == 0)
    assert bed.arrivals == []
    until(lambda: bed.stored() == [])


def test_NET_14_an_instance_of_one_byte_fragments_is_taken(bed):
    command, encoded = store_command("1.2.3"), data_set(pixels=8000)
    raw = b"".join(pdv(command[n : n + 1], 3 if n == len(command) - 1 else 1) for n in range(len(command)))
    raw += b"".join(pdv(encoded[n : n + 1], 2 if n == len(encoded) - 1 else 0) for n in range(len(encoded)))
    peer = bed.peer().associate()
    begun = time.process_time()
    peer.send(raw)
    assert peer.status() == 0x0000
    each = (time.process_time() - begun) / (len(command) + len(encoded))
    assert each < 1e-3, f"{each * 1e6:.0f} us for each PDU"
    assert bed.files.read(bed.arrivals[0].sha256).endswith(encoded)


def test_NET_14_who_sends_fragments_of_nothing_waits_for_his_turn(bed):
    """Each of many peers sends at one go what takes the node longer than to serve somebody else altogether."""
    nothing = pdu(4, struct.pack(">LBB", 2, 3, 1) * 21_000)
    other, *peers = (bed.peer().associate() for _ in range(25))
    for peer in peers:
        peer.send(nothing * 2 + echo())
    other.send(echo())
    assert other.status() == 0x0000
    assert any(peer.is_quiet() for peer in peers)
    assert bed.is_served()
    for peer in (other, *peers):
        peer.reset()
    until(lambda: bed.receiver.associations == 0)


def test_NET_15_what_is_sent_without_awaiting_answers_stays_in_the_peers_buffers(bed):
    release = threading.Event()
    bed.before_record = lambda: release.wait(PATIENCE)
    peer = bed.peer().associate()
    requests = [store(data_set(f"1.2.3.{n}", pixels=100_000), f"1.2.3.{n}", message_id=n + 1) for n in range(400)]
    raw, sent, before = memoryview(b"".join(requests)), 0, own_bytes()
    peer.socket.setblocking(False)
    while select.select([], [peer.socket], [], 0.5)[1] and sent < len(raw):
        sent += peer.socket.send(raw[sent : sent + 65536])
    assert sent < len(raw) / 2, "the node reads ahead of its answers"
    assert own_bytes() - before < 24 << 20
    release.set()
    peer.socket.settimeout(PATIENCE)
    ends = itertools.accumulate(map(len, requests))
    whole = sum(end <= sent for end in ends)  # how many that are hangs on the system's buffers
    assert whole > 0
    for number in range(min(whole, 20)):
        assert peer.response()[0x0120] == number + 1


def test_NET_15_while_a_request_is_dealt_with_no_more_than_one_read_is_put_aside(bed):
    """Of 500 associations at once a second read would be 125 MiB more."""
    gate = threading.Event()
    bed.before_record = lambda: gate.wait(PATIENCE) and None
    peer = bed.peer().associate()
    peer.send(store(data_set(), "1.2.3"))
    until(bed.stored)
    (connection,) = bed.receiver._acceptor._connections
    peer.send(echo())
    until(lambda: connection._carry and connection._paused)
    gate.set()
    assert [peer.status(), peer.status()] == [0x0000, 0x0000]


def test_NET_16_a_peer_that_reads_no_answers_is_aborted(make_bed):
    seconds = {"write_seconds": 1.0} if "write_seconds" in Bounds.__dataclass_fields__ else {"network_seconds": 1.0}
    bed = make_bed(bounds=Bounds(**seconds))
    peer = bed.peer(receive_buffer=4096).associate()
    flood, begun, ended = echo() * 200, time.monotonic(), False
    peer.socket.setblocking(False)
    while not ended and time.monotonic() - begun < PATIENCE:
        try:
            if select.select([], [peer.socket], [], 0.2)[1]:
                peer.socket.send(flood)
        except BlockingIOError:
            continue
        except OSError:
            ended = True
        ended = ended or (bed.receiver.associations == 0)
    assert ended
    until(lambda: bed.receiver.associations == 0)
    assert bed.is_served()


def test_NET_17_eleven_hundred_connections_are_no_limit(make_bed, many_files):
    bed = make_bed(**MANY)
    waiting = [bed.peer() for _ in range(1100)]
    assert waiting[-1].socket.fileno() > 1023
    assert bed.is_served()
    waiting[-1].associate()
    waiting[-1].send(store(data_set(), "1.2.3"))
    assert waiting[-1].status() == 0x0000


@pytest.mark.nightly
def test_NET_17_two_thousand_idle_associations_cost_next_to_nothing(make_bed, many_files):
    bed = make_bed(**MANY)
    before = own_bytes()
    idle = [bed.peer().associate() for _ in range(2000)]
    grown = (own_bytes() - before) >> 20
    begun, spent = time.monotonic(), time.process_time()
    threading.Event().wait(10.0)
    share = (time.process_time() - spent) / (time.monotonic() - begun)
    assert bed.is_served()
    assert share < 0.05, f"{share:.1%} of a core"
    assert grown < 100, f"{grown} MB"
    assert all(peer.is_quiet() for peer in idle)


def _store_three(port: int, number: int, pixels: int, answers: list[int]) -> None:
    with RawPeer(port) as peer:
        peer.associate(associate_rq(calling=f"SENDER{number}".encode()))
        for n in range(3):
            uid = f"1.2.{number}.{n}"
            peer.send(store(data_set(uid, pixels=pixels), uid))
            answers.append(peer.status())
        peer.release()


@pytest.mark.parametrize(
    ("clients", "pixels"), [(40, 50_000), pytest.param(200, 500_000, marks=pytest.mark.nightly)], ids=["40", "200"]
)
def test_NET_18_all_who_come_at_once_are_served(make_bed, many_files, clients, pixels):
    bed = make_bed(**MANY)
    answers: list[int] = []
    threads = [
        threading.Thread(target=_store_three, args=(bed.receiver.port, n, pixels, answers)) for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [0] * (3 * clients)
    assert len(bed.arrivals) == 3 * clients


@pytest.mark.parametrize("hours", [1, -1])
def test_NET_19_a_jump_of_the_wall_clock_changes_nothing(make_bed, monkeypatch, hours):
    bed = make_bed(bounds=Bounds(network_seconds=5.0))
    idle = bed.peer().associate()
    amid = bed.peer().associate()
    whole = store(data_set(pixels=100_000), "1.2.3")
    amid.send(whole[:50_000])
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
    assert bed.is_served()
    amid.send(whole[50_000:])
    assert amid.status() == 0x0000
    idle.send(echo())
    assert idle.status() == 0x0000
    begun = time.monotonic()
    assert idle.next_pdu()[:1] == bytes((ABORT,))  # and the idle deadline still comes
    assert 2.0 < time.monotonic() - begun < 30.0


def test_NET_20_fifty_active_stores_do_not_hold_up_a_stop(make_bed):
    bed = make_bed(maximum_associations_per_peer=100, waiting=PATIENT_LIMITS)
    whole = store(data_set(pixels=300_000), "1.2.3")
    active = [bed.peer().associate() for _ in range(50)]
    for peer in active:
        peer.send(whole[:100_000])
    begun = time.monotonic()
    bed.has_stopped = True
    stopping = threading.Thread(target=bed.receiver.stop, args=(6.0,))
    stopping.start()
    active[0].send(whole[100_000:])
    assert active[0].status() == 0x0000
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert time.monotonic() - begun < 40.0  # an idle association ends after 60 s
    assert len(bed.arrivals) == 1
    assert all(peer.next_pdu()[:1] in {b"", bytes((ABORT,))} for peer in active[1:])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", bed.receiver.port), 2).close()
    assert len(bed.stored()) == 1


def test_NET_02_echoes_in_a_row_are_quick(bed):
    """Print nothing, but fail where an idle node takes a second to say that it is there."""
    assert min(echo_seconds(bed.receiver.port) for _ in range(5)) < 5.0
