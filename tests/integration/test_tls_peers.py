"""Peers are called over TLS with the node's certificate; one that is not who it should be gets nothing."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from certificates import Authority
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt

from pacs_ai import tls
from pacs_ai.config import Config
from pacs_ai.deliver import addresses, scu
from pacs_ai.deliver.scu import Remote
from pacs_ai.dicom.status import Category
from pacs_ai.errors import Unavailable
from pacs_ai.network_sections import Tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from certificates import Certificate

LIMIT = 0.8
MARGIN = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def node(authority) -> Tls:
    made = authority.issue("node", "DNS:node.example")
    return Tls(certificate_file=made.certificate, key_file=made.key, trusted_file=authority.trusted)


@pytest.fixture(scope="module")
def pacs(authority) -> Certificate:
    return authority.issue("pacs", "DNS:pacs.example,IP:127.0.0.1")


def context_of(authority: Authority, made: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    context.load_verify_locations(authority.trusted)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Stored(list[str]):
    """Where instances arrived, and by whose certificate."""

    names: list[str]


@pytest.fixture
def listening() -> Iterator[Callable[..., tuple[Remote, Stored]]]:
    """A storage SCP on TLS with the context given."""
    servers = []

    def listen(context: ssl.SSLContext, node: Tls, **changes: object) -> tuple[Remote, Stored]:
        ae, stored = AE("SECURED"), Stored()
        stored.names = []
        ae.add_supported_context(CTImageStorage)
        ae.add_supported_context("1.2.840.10008.1.1")

        def store(event: evt.Event) -> int:
            stored.append(str(event.request.AffectedSOPInstanceUID))
            stored.names += tls.names_in(event.assoc.dul.socket.socket.getpeercert())
            return 0x0000

        server = ae.start_server(
            ("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_STORE, store)]
        )
        servers.append(server)
        return remote_of(server.server_address[1], node, **changes), stored

    yield listen
    for server in servers:
        server.shutdown()
        server.ae.shutdown()


def remote_of(port: int, node: Tls, **changes: object) -> Remote:
    return replace(Remote("SECURED", "127.0.0.1", port, "PACS_AI", tls=node), **changes)


def refused(remote: Remote) -> str:
    """Return why the peer could not be spoken to."""
    result = scu.echo(remote)
    assert result.ms is None
    return result.words


def test_NET_12_both_sides_show_their_certificate_over_tls_1_2_and_1_3(
    listening, authority, node, pacs, make_instances
):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = context_of(authority, pacs)
        context.minimum_version = context.maximum_version = version
        remote, stored = listening(context, node)
        instances = make_instances(2, name=version.name)
        assert {one.category for one in scu.send(remote, instances)} == {Category.SUCCESS}
        assert stored == [one.sop_instance_uid for one in instances]
        assert set(stored.names) == {"node", "node.example"}


def test_a_long_instance_goes_over_tls_whole(listening, authority, node, pacs, make_instances):
    remote, stored = listening(context_of(authority, pacs), node)
    (instance,) = make_instances(1, rows=1500)
    assert [one.category for one in scu.send(remote, [instance])] == [Category.SUCCESS]
    assert stored == [instance.sop_instance_uid]


def test_NET_12_a_peer_with_the_wrong_name_gets_nothing(listening, authority, node, make_instances):
    made = authority.issue("other", "DNS:other.example")
    remote, stored = listening(context_of(authority, made), node)
    (outcome,) = scu.send(remote, make_instances(1))
    assert outcome.category is Category.TRANSIENT
    assert "its certificate is for other.example, other, not for 127.0.0.1" in outcome.words
    assert stored == []
    assert scu.echo(replace(remote, certificate_name="other.example")).ms is not None
    assert scu.echo(replace(remote, certificate_name="OTHER")).ms is not None


def test_NET_12_a_peer_of_another_authority_is_not_spoken_to(listening, authority, stranger, node):
    made = stranger.issue("pacs", "IP:127.0.0.1")
    remote, _ = listening(context_of(authority, made), node)
    assert "its certificate is not accepted here (unable to get local issuer certificate)" in refused(remote)


def test_NET_12_an_expired_peer_is_not_spoken_to(listening, authority, node):
    made = authority.issue("former", "IP:127.0.0.1", days=-1)
    remote, _ = listening(context_of(authority, made), node)
    assert "its certificate is not accepted here (certificate has expired)" in refused(remote)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_peer_that_does_not_trust_the_node_says_so(listening, authority, stranger, node, pacs, version):
    context = context_of(authority, pacs)
    context.minimum_version = context.maximum_version = version
    made = stranger.issue("node")
    strange = Tls(certificate_file=made.certificate, key_file=made.key, trusted_file=authority.trusted)
    remote, _ = listening(context, node, tls=strange)
    assert "it does not trust the authority that signed the node's certificate" in refused(remote)


@pytest.mark.parametrize("weakness", ["TLS 1.1", "no forward secrecy", "CBC"])
def test_NET_12_a_peer_with_old_tls_is_not_spoken_to(authority, node, pacs, weakness):
    context = context_of(authority, pacs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if weakness == "TLS 1.1":
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
        else:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("AES128-GCM-SHA256" if weakness != "CBC" else "ECDHE-ECDSA-AES128-SHA256")
    with raw_peer(lambda conn: answer_hello(context, conn)) as port:
        words = refused(remote_of(port, node))
    assert "it speaks neither TLS 1.2 nor 1.3" in words or "shares no cipher" in words, words


def answer_hello(context: ssl.SSLContext, conn: socket.socket) -> None:
    with pytest.raises(OSError, match=r".*"):
        context.wrap_socket(conn, server_side=True)


@contextmanager
def raw_peer(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A peer that does what it likes with one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                answer(conn)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(60)


def drip(conn: socket.socket) -> None:
    conn.recv(4096)
    for octet in b"\x16\x03\x03\x40\x00" + b"\x02" * 1000:
        try:
            conn.send(bytes([octet]))
        except OSError:
            return
        if ended(conn, 0.05):
            return


def stay(conn: socket.socket) -> None:
    while not ended(conn, 30):
        pass


def ended(conn: socket.socket, seconds: float) -> bool:
    conn.settimeout(seconds)
    try:
        return conn.recv(65_536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("answer", [drip, stay])
def test_DEL_02_a_handshake_that_never_ends_is_ended(node, answer):
    with raw_peer(answer) as port:
        started = time.monotonic()
        words = refused(remote_of(port, node, connect_seconds=LIMIT))
        assert time.monotonic() - started < LIMIT + MARGIN
    assert "no TLS handshake within 0.8 s" in words


def test_a_peer_that_speaks_plain_dicom_on_that_port(node, keeping_peer):
    words = refused(remote_of(keeping_peer.port, node, ae_title="KEEPER", connect_seconds=LIMIT))
    assert "does it speak TLS on this port?" in words or "it does not speak TLS on this port" in words


def test_a_fault_of_our_own_certificate_is_tried_again(listening, authority, node, pacs, make_instances):
    remote, _ = listening(context_of(authority, pacs), node)
    missing = node.model_copy(update={"key_file": authority.folder / "gone.key"})
    (outcome,) = scu.send(replace(remote, tls=missing), make_instances(1))
    assert outcome.category is Category.TRANSIENT
    assert "tls.key_file" in outcome.words


def test_the_configuration_says_who_is_called_so(node):
    peer = {"name": "pacs", "ae_title": "SECURED", "host": "pacs.example", "certificate_name": "PACS"}
    config = Config.model_validate({"tls": node, "peer": [peer | {"tls": True}]})
    remote = addresses.remote_at(config, "pacs", "FROZEN", "192.0.2.1", 2762)
    assert (remote.ae_title, remote.host, remote.port) == ("FROZEN", "192.0.2.1", 2762)
    assert remote.tls == node
    assert remote.certificate_name == "PACS"
    assert addresses.remote(Config.model_validate({"tls": node, "peer": [peer]}), config.peer[0]).tls == node


def test_a_peer_that_is_in_the_configuration_no_more_is_not_called_without_tls(node):
    with pytest.raises(Unavailable, match=r"no \[\[peer\]\] called former"):
        addresses.remote_at(Config(tls=node), "former", "FORMER", "192.0.2.1", 2762)


@pytest.fixture
def storescp_tls(tmp_path, authority, pacs, node, free_port, wait_until) -> Iterator[tuple[Remote, object]]:
    """dcmtk's storescp on TLS, with its own BCP 195 profile."""
    binary = shutil.which("storescp", path="/usr/bin:/usr/local/bin")
    if binary is None:
        pytest.skip("DCMTK MISSING: apt-get install dcmtk; no foreign implementation was spoken to over TLS here")
    folder = tmp_path / "storescp"
    folder.mkdir()
    words = [binary, "-q", "+B", "-aet", "SECURED", "-od", folder, "+tls", pacs.key, pacs.certificate]
    words += ["+cf", authority.trusted, free_port]
    process = subprocess.Popen([str(word) for word in words], env={**os.environ, "TCP_NODELAY": "1"})
    remote = remote_of(free_port, node)
    try:
        wait_until(lambda: is_open(free_port), seconds=60, what="storescp listening")
        yield remote, folder
    finally:
        process.terminate()
        process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_NET_12_dcmtk_takes_instances_over_tls(storescp_tls, make_instances):
    remote, folder = storescp_tls
    assert {one.category for one in scu.send(remote, make_instances(3))} == {Category.SUCCESS}
    assert len(list(folder.iterdir())) == 3
