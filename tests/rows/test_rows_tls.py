"""The TLS port: who does not get through the handshake holds up nobody, and only certificates of this hospital do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import shutil
import socket
import ssl
import subprocess
import time
import warnings
from typing import TYPE_CHECKING

import pytest
import uvloop
from certificates import Authority
from listening_bed import until
from raw_peer import (
    ABORT,
    AC,
    PATIENCE,
    RJ,
    RawPeer,
    associate_rq,
    data_set,
    echo,
    pdv,
    store,
    store_command,
)

from pacs_ai.credentials import LOOK_SECONDS, Credentials
from pacs_ai.network_sections import Tls
from pacs_ai.receive import ingest
from pacs_ai.receive.guard import Bounds, Limits
from pacs_ai.tls import server_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from certificates import Certificate
    from listening_bed import Bed

    from pacs_ai.dicom.arrival import Refusal


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def caller(authority) -> Certificate:
    return authority.issue("ct", "DNS:ct.example")


@pytest.fixture(scope="module")
def node(authority) -> Tls:
    made = authority.issue("node", "DNS:localhost,IP:127.0.0.1")
    return Tls(certificate_file=made.certificate, key_file=made.key, trusted_file=authority.trusted)


@pytest.fixture
def refusals() -> list[Refusal]:
    return []


@pytest.fixture
def secured(make_bed, node, refusals) -> Callable[..., Bed]:
    """A node that listens on a port without and on one with TLS."""
    limits = Limits(handshake_seconds=3.0, connections_per_address=300)

    def make(**fields: object) -> Bed:
        given = {
            "tls": Credentials(node, server_context).context,
            "tls_port": 0,
            "waiting": limits,
            "on_refusal": refusals.append,
        }
        return make_bed(**{**given, **fields})

    return make


LOOPS = pytest.mark.parametrize(
    "event_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


class SecuredPeer(RawPeer):
    """A peer over TLS."""

    def __init__(self, port: int, context: ssl.SSLContext, *, receive_buffer: int | None = None) -> None:
        super().__init__(port, receive_buffer=receive_buffer)
        plain = self.socket
        self.socket = context.wrap_socket(plain, server_hostname="localhost")


def context_of(authority: Authority, shown: Certificate | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.trusted)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


def gets_an_answer(port: int, context: ssl.SSLContext) -> bool:
    """Tell whether an association request over TLS is answered; in TLS 1.3 a refusal comes after the handshake."""
    try:
        with SecuredPeer(port, context) as peer:
            peer.send(associate_rq())
            return peer.next_pdu() != b""
    except OSError:
        return False


def test_NET_11_plain_dicom_on_the_tls_port_is_closed(secured):
    bed = secured()
    with RawPeer(bed.receiver.tls_port) as peer:
        peer.send(associate_rq())
        answer = peer.socket.recv(100)
        assert answer[:1] in {b"", b"\x15"}  # an alert of TLS, at most
        assert answer == b"" or peer.is_closed()


def test_NET_11_two_hundred_silent_clients_hold_up_nobody(secured, authority, caller):
    bed = secured()
    hello = _client_hello(authority)
    begun = time.monotonic()
    silent = [RawPeer(bed.receiver.tls_port) for _ in range(200)]
    for peer in silent[::2]:
        peer.send(hello[: len(hello) // 2])
    assert gets_an_answer(bed.receiver.tls_port, context_of(authority, caller))
    assert bed.is_served()
    assert all(_ends(peer) for peer in silent)
    assert time.monotonic() - begun > 0.9
    for peer in silent:
        peer.close()


def _client_hello(authority: Authority) -> bytes:
    sends = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context_of(authority, None).wrap_bio(ssl.MemoryBIO(), sends, server_hostname="localhost").do_handshake()
    return sends.read()


def _ends(peer: RawPeer) -> bool:
    try:
        while peer.socket.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


def test_NET_11_a_client_that_stops_after_its_hello_is_closed_at_the_deadline(secured, authority):
    bed = secured()
    with RawPeer(bed.receiver.tls_port) as peer:
        peer.send(_client_hello(authority))
        begun = time.monotonic()
        assert _ends(peer)
        assert time.monotonic() - begun < 10.0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_NET_12_a_caller_with_a_certificate_of_this_hospital_is_served(secured, authority, caller, version):
    bed = secured()
    context = context_of(authority, caller)
    context.minimum_version = context.maximum_version = version
    with SecuredPeer(bed.receiver.tls_port, context) as peer:
        peer.associate()
        peer.send(echo() + store(data_set(pixels=400_000), "1.2.3"))
        assert [peer.status(), peer.status()] == [0x0000, 0x0000]
        assert "GCM" in peer.socket.cipher()[0] or "POLY1305" in peer.socket.cipher()[0]
        assert peer.release()
    assert len(bed.arrivals) == 1


OLD = {
    "TLS 1.0": {"maximum": ssl.TLSVersion.TLSv1, "ciphers": "ALL:@SECLEVEL=0"},
    "TLS 1.1": {"maximum": ssl.TLSVersion.TLSv1_1, "ciphers": "ALL:@SECLEVEL=0"},
    "no forward secrecy": {"maximum": ssl.TLSVersion.TLSv1_2, "ciphers": "AES128-GCM-SHA256"},
    "CBC": {"maximum": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-RSA-AES128-SHA:@SECLEVEL=0"},
    "no authentication": {"maximum": ssl.TLSVersion.TLSv1_2, "ciphers": "aNULL:@SECLEVEL=0"},
}


def _careless(tls: Tls) -> ssl.SSLContext:
    """Return a node's context with everything allowed that OpenSSL still knows."""
    context = server_context(tls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:aNULL:@SECLEVEL=0")
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture(scope="module")
def rsa_node(authority) -> Tls:
    """A node whose certificate lets a peer do without forward secrecy, as one of an elliptic curve never does."""
    made = authority.issue("rsa", "DNS:localhost,IP:127.0.0.1", algorithm="rsa")
    return Tls(certificate_file=made.certificate, key_file=made.key, trusted_file=authority.trusted)


@pytest.mark.parametrize("what", OLD)
def test_NET_12_old_tls_and_weak_ciphers_are_refused(secured, authority, caller, refusals, rsa_node, what):
    """Each is what a careless node would have answered, so it is this node that refuses it."""
    bed = secured(tls=Credentials(rsa_node, server_context).context)
    careless = secured(tls=Credentials(rsa_node, _careless).context)
    context = context_of(authority, caller)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = min(OLD[what]["maximum"], ssl.TLSVersion.TLSv1_2)
        context.maximum_version = OLD[what]["maximum"]
    try:
        context.set_ciphers(OLD[what]["ciphers"])
    except ssl.SSLError:
        pytest.skip(f"NOT TESTED: this machine's OpenSSL cannot speak {what}")
    assert gets_an_answer(careless.receiver.tls_port, context)
    assert not refusals
    assert not gets_an_answer(bed.receiver.tls_port, context)
    assert bed.is_served()
    until(lambda: refusals)


def test_NET_12_the_node_offers_forward_secrecy_and_authenticated_encryption_only(rsa_node):
    context = server_context(rsa_node)
    assert (context.minimum_version, context.verify_mode) == (ssl.TLSVersion.TLSv1_2, ssl.CERT_REQUIRED)
    offered = [each for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert offered
    assert {each["kea"] for each in offered} == {"kx-ecdhe"}
    assert {each["auth"] for each in offered} <= {"auth-rsa", "auth-ecdsa"}
    assert all(each["aead"] for each in offered)


def test_NET_12_without_or_with_a_wrong_certificate_nobody_is_served(secured, authority, tmp_path, refusals):
    bed = secured()
    stranger = Authority(tmp_path / "stranger", "stranger")
    wrong = {
        "none": None,
        "another authority's": stranger.issue("ct"),
        "expired": authority.issue("expired", days=-1),
        "for servers only": authority.issue("server", purpose="serverAuth"),
    }
    for what, shown in wrong.items():
        seen = len(refusals)
        assert not gets_an_answer(bed.receiver.tls_port, context_of(authority, shown)), what
        until(lambda seen=seen: len(refusals) > seen)
    assert bed.is_served()


@LOOPS
def test_NET_12_a_certificate_that_cannot_be_read_is_told_and_keeps_no_place(
    secured, authority, refusals, event_loop, caplog
):
    """The trusted authority signed it, so the handshake is done; but Python reads no name that is not UTF-8."""
    bed = secured(event_loop=event_loop)
    odd = authority.issue("odd", "DER:30:05:82:03:63:74:e4")
    for _ in range(3):
        assert not gets_an_answer(bed.receiver.tls_port, context_of(authority, odd))
    until(lambda: len(refusals) == 3 and not bed.receiver._acceptor._connections)
    assert not bed.receiver._acceptor._waiting
    assert {refusal.reason for refusal in refusals} == {"TLS: a name in its certificate is not UTF-8"}
    assert caplog.text.count("no connection with 127.0.0.1: a name in its certificate is not UTF-8") == 3
    assert bed.is_served()


def test_NET_12_a_certificate_that_was_revoked_is_refused_and_others_are_served(secured, authority, node, caller):
    stolen = authority.issue("stolen", "DNS:ct.example")
    listed = node.model_copy(update={"revocation_list": authority.revoke(stolen)})
    bed = secured(tls=Credentials(listed, server_context).context)
    assert not gets_an_answer(bed.receiver.tls_port, context_of(authority, stolen))
    assert gets_an_answer(bed.receiver.tls_port, context_of(authority, caller))


def test_NET_12_where_the_list_of_what_is_revoked_ran_out_nobody_is_believed(secured, authority, node, caller):
    listed = node.model_copy(update={"revocation_list": authority.revoke(hours=-1)})
    bed = secured(tls=Credentials(listed, server_context).context)
    assert not gets_an_answer(bed.receiver.tls_port, context_of(authority, caller))
    assert bed.is_served()


def test_NET_12_an_authority_that_was_revoked_takes_its_peers_with_it(secured, authority, node, tmp_path):
    """With lists of several authorities in one file, and the whole chain held against them."""
    issuing, broken = authority.subordinate("issuing"), authority.subordinate("broken")
    stolen, good, other = (
        below.issue(name, "DNS:ct.example")
        for below, name in ((issuing, "stolen"), (issuing, "good"), (broken, "other"))
    )
    for below, made in ((issuing, stolen), (issuing, good), (broken, other)):
        made.certificate.write_bytes(made.certificate.read_bytes() + below.own.certificate.read_bytes())
    lists = {
        "root": authority.revoke(broken.own).read_bytes(),
        "issuing": issuing.revoke(stolen).read_bytes(),
        "broken": broken.revoke().read_bytes(),
    }

    def let_in(check: str, *names: str) -> list[bool]:
        path = tmp_path / "lists.pem"
        path.write_bytes(b"".join(lists[name] for name in names))
        listed = node.model_copy(update={"revocation_list": path, "revocation_check": check})
        bed = secured(tls=Credentials(listed, server_context).context)
        shown = (stolen, good, other)
        return [gets_an_answer(bed.receiver.tls_port, context_of(authority, one)) for one in shown]

    assert let_in("chain", *lists) == [False, True, False]
    assert let_in("peer", *lists) == [False, True, True]
    assert let_in("chain", "root", "broken") == [False, False, False], "an authority without a list is not believed"
    assert let_in("chain", "issuing", "broken") == [False, False, False], "nor where the root has none"


def test_NET_12_a_renewed_certificate_is_shown_without_a_restart(secured, authority, node, caller, tmp_path):
    place = Tls(
        certificate_file=shutil.copy(node.certificate_file, tmp_path / "node.pem"),
        key_file=shutil.copy(node.key_file, tmp_path / "node.key"),
        trusted_file=node.trusted_file,
    )
    minutes = itertools.count(step=LOOK_SECONDS)
    credentials = Credentials(place, server_context, clock=lambda: next(minutes))
    bed = secured(tls=credentials.context)

    def shown() -> bytes:
        with SecuredPeer(bed.receiver.tls_port, context_of(authority, caller)) as peer:
            peer.associate()
            peer.send(echo())
            assert peer.status() == 0x0000
            return peer.socket.getpeercert(binary_form=True)

    before = shown()
    renewed = authority.issue("renewed", "DNS:localhost,IP:127.0.0.1")
    shutil.copy(renewed.certificate, place.certificate_file)
    credentials.renew()
    assert shown() == before  # its key is not there yet
    shutil.copy(renewed.key, place.key_file)
    credentials.renew()
    assert shown() == ssl.PEM_cert_to_DER_cert(renewed.certificate.read_text().strip())


def test_NET_12_a_caller_with_the_certificate_of_another_is_rejected(secured, authority, caller, refusals):
    bed = secured(certificate_names={"SENDER": "mr.example", "ECHOER": "ct.example"})
    context = context_of(authority, caller)
    for calling, kind in ((b"SENDER", RJ), (b"ECHOER", AC)):
        with SecuredPeer(bed.receiver.tls_port, context) as peer:
            peer.send(associate_rq(calling=calling))
            assert peer.next_pdu()[0] == kind
    until(lambda: refusals)


@LOOPS
@pytest.mark.parametrize("reads", [1, 2, 3])
def test_NET_16_a_tls_peer_that_has_nothing_to_say_is_not_one_that_does_not_read(
    secured, authority, caller, event_loop, reads
):
    """However many reads and writes there were before."""
    bed = secured(event_loop=event_loop, bounds=Bounds(write_seconds=0.5))
    with SecuredPeer(bed.receiver.tls_port, context_of(authority, caller)) as peer:
        peer.associate()
        (connection,) = bed.receiver._acceptor._connections
        request = echo()
        for number in range(reads - 1):
            peer.send(request[number : number + 1])
            until(lambda number=number: len(connection._framer._header) == number + 1)
        peer.send(request[reads - 1 :])
        assert peer.status() == 0x0000
        assert not select.select([peer.socket], [], [], 1.5)[0], "it is spoken to, or closed"
        peer.send(echo())
        assert peer.status() == 0x0000
        assert peer.release()


@LOOPS
@pytest.mark.parametrize(("pdu_bytes", "pixels"), [(16384, 3_000_000), (4096, 600_000)], ids=["16 KiB", "4 KiB"])
def test_NET_16_tls_peers_that_wait_for_a_slow_disk_store_all_they_have(
    secured, authority, caller, event_loop, pdu_bytes, pixels, monkeypatch
):
    """The disk is slower than the network: each part is written only once the node takes no more from the peer."""
    bed = secured(event_loop=event_loop, bounds=Bounds(write_seconds=1.0))
    append = ingest._Instance.append

    def late(instance, piece):
        until(lambda: all(exchange.is_full for exchange in bed.receiver._open))
        append(instance, piece)

    monkeypatch.setattr(ingest._Instance, "append", late)
    with SecuredPeer(bed.receiver.tls_port, context_of(authority, caller)) as peer:
        peer.associate()
        for number in range(3):
            uid = f"1.2.3.{number + 1}"
            peer.send(_in_short_pdus(data_set(uid, pixels=pixels), uid, pdu_bytes))
            assert peer.status() == 0x0000
        assert peer.release()
    assert len(bed.arrivals) == 3


def _in_short_pdus(encoded: bytes, uid: str, pdu_bytes: int) -> bytes:
    most = pdu_bytes - 6  # length, context ID and message control header (PS3.8 9.3.5.1, E.2)
    pieces = [encoded[at : at + most] for at in range(0, len(encoded), most)]
    return pdv(store_command(uid), 3) + b"".join(pdv(piece, 0) for piece in pieces[:-1]) + pdv(pieces[-1], 2)


@LOOPS
def test_NET_05_an_instance_that_drips_over_tls_ends_its_association(secured, authority, caller, event_loop, caplog):
    bounds = Bounds(network_seconds=PATIENCE, write_seconds=PATIENCE, bytes_per_second=5000, pace_seconds=1.0)
    bed = secured(event_loop=event_loop, bounds=bounds)
    with SecuredPeer(bed.receiver.tls_port, context_of(authority, caller)) as peer:
        peer.associate()
        whole, sent, begun, ended = store(data_set(pixels=100_000), "1.2.3"), 0, time.monotonic(), False
        while not ended and time.monotonic() - begun < PATIENCE / 2:
            peer.send(whole[sent : sent + 10])
            sent += 10
            ended = bool(select.select([peer.socket], [], [], 0.05)[0])
        assert ended
        assert peer.next_pdu()[:1] == bytes((ABORT,))
    until(lambda: bed.receiver.associations == 0)
    assert "slower than 5000 bytes per second" in caplog.text
    assert bed.stored() == []


@LOOPS
def test_NET_16_a_tls_peer_that_reads_no_answers_is_aborted(secured, authority, caller, event_loop, caplog):
    """Or for its silence: once its own kernel, full of answers, drops what comes, the acknowledgements go with them."""
    bed = secured(event_loop=event_loop, bounds=Bounds(write_seconds=1.0, network_seconds=5.0))
    with SecuredPeer(bed.receiver.tls_port, context_of(authority, caller), receive_buffer=4096) as peer:
        peer.associate()
        peer.socket.settimeout(3.0)
        flood = echo() * 200
        with contextlib.suppress(OSError):
            while bed.receiver.associations:
                peer.send(flood)
        until(lambda: bed.receiver.associations == 0)
    assert "aborted an association" in caplog.text
    assert bed.is_served()


def test_NET_12_dcmtk_is_served_over_tls(secured, authority, caller):
    if shutil.which("echoscu") is None:
        pytest.skip("DCMTK MISSING: no echoscu, so no other implementation spoke TLS with the node here")
    bed = secured()
    command = ["echoscu", "-aec", "PACS_AI", "-aet", "DCMTK", "+tls", caller.key, caller.certificate]
    command += ["+cf", authority.trusted, "127.0.0.1", str(bed.receiver.tls_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def test_NET_12_where_only_tls_is_wanted_the_other_port_is_shut(secured, authority, caller):
    bed = secured(plain=False)
    bed.has_stopped = True  # nobody can be served without TLS
    assert gets_an_answer(bed.receiver.tls_port, context_of(authority, caller))
    with pytest.raises((OSError, AssertionError)):
        socket.create_connection(("127.0.0.1", bed.receiver.port), 2).close()
