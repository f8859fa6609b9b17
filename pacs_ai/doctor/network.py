"""Whether the node can be called, and whether its peers take what it sends."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from pacs_ai.deliver import addresses, inquiry, scu
from pacs_ai.deliver.connection import Remote
from pacs_ai.dicom import commitment
from pacs_ai.doctor import fitting
from pacs_ai.doctor.findings import Finding, Level
from pacs_ai.errors import PacsAiError, Unavailable
from pacs_ai.store import probe, processes, version
from pacs_ai.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.config import Config
    from pacs_ai.network_sections import Peer

PORT, PEER = "port", "peer"
_SECONDS = 5.0


def examine_ports(config: Config) -> Iterator[Finding]:
    """Tell of each port of the node whether it is free, or who has it."""
    for kind, port in config.receive.ports.items():
        yield _examine_port(config, port, f"{config.receive.bind} {kind} {port}")


def _examine_port(config: Config, port: int, name: str) -> Finding:
    receive = config.receive
    with socket.socket(socket.AF_INET6 if ":" in receive.bind else socket.AF_INET) as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taker.bind((receive.bind, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _taken(config, name) if receive.plain and port == receive.port else _taken_for_tls(config, name)
            words = error.strerror or str(error)
            advice = "set a port above 1023" if error.errno == errno.EACCES else "correct receive.bind"
            return Finding(Level.FAULT, PORT, name, words, advice)
    if _runs_here(config):
        return Finding(Level.FAULT, PORT, name, "the node runs, but does not listen on it", "restart the node")
    return Finding(Level.OK, PORT, name, "is free; the node does not run")


def _taken_for_tls(config: Config, name: str) -> Finding:
    """Tell who has the TLS port; it is not called, since the node might not trust its own certificate."""
    if _runs_here(config):
        return Finding(Level.OK, PORT, name, "the node runs and has it, for TLS; it was not called from here")
    return Finding(Level.FAULT, PORT, name, "another program has it", "stop it, or set another receive.tls_port")


def _taken(config: Config, name: str) -> Finding:
    """Call whoever listens: our own node answers to our own AE title."""
    receive = config.receive
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(receive.bind, receive.bind)  # noqa: S104 - compared, not bound
    caller = config.peer[0].ae_title if receive.accept == "peers" and config.peer else config.calling_ae_title
    answer = scu.echo(Remote(receive.ae_titles[0], host, receive.port, caller, *(3 * (_SECONDS,))))
    if not _runs_here(config):
        words = "another program has it" + (", which answers to DICOM" if answer.ms is not None else "")
        return Finding(Level.FAULT, PORT, name, words, "stop that program, or set another receive.port")
    if answer.ms is not None:
        return Finding(Level.OK, PORT, name, f"the node runs and answers C-ECHO in {answer.ms:.0f} ms")
    if receive.accept == "peers":
        return Finding(Level.OK, PORT, name, "the node runs; it answers its peers only, so it was not called from here")
    return Finding(Level.FAULT, PORT, name, f"the node runs, but: {answer.words}", "see its log")


def _runs_here(config: Config) -> bool:
    """Tell whether a receive process of this configuration's node runs on this host."""
    if not probe.is_made(config.database_url):
        return False
    database = Database(config.database_url)
    try:
        version.check(database)
        with database.read() as connection:
            running = processes.running(connection)
    except PacsAiError:
        return False
    finally:
        database.close()
    return any(each.kind == "receive" and each.host == socket.gethostname() for each in running)


def _examine_services(peer: Peer, remote: Remote) -> Iterator[Finding]:
    """Tell whether a peer offers what its [[peer]] asks of it after and before a delivery."""
    wanted = {
        "storage commitment": (commitment.SOP_CLASS_UID, peer.commitment),
        "queries (C-FIND, Study Root)": (inquiry.STUDY_ROOT_FIND, peer.verify_patient),
    }
    for what, (sop_class_uid, is_wanted) in wanted.items():
        if not is_wanted:
            continue
        pairs = [(sop_class_uid, syntax) for syntax in commitment.TRANSFER_SYNTAXES]
        if any(answer.accepted for answer in scu.accepted_contexts(remote, pairs)):
            yield Finding(Level.OK, PEER, peer.name, f"offers {what}")
        else:
            advice = f"enable it there for {remote.calling_ae_title}, or set it to false here"
            yield Finding(Level.WARNING, PEER, peer.name, f"does not offer {what}, which is asked of it", advice)


def unresolved(host: str) -> str:
    """Return why a host name or address leads nowhere; "" where it does lead somewhere."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return error.strerror or "unknown name"
    return ""


def examine_peer(config: Config, peer: Peer) -> Iterator[Finding]:
    """Call a peer, and ask what it would take; nothing is sent."""
    remote = addresses.remote(config, peer)
    if config.receive.accept == "peers" and (words := unresolved(peer.host)):
        words = f"host {peer.host} cannot be resolved ({words}): its calls are refused"
        advice = f"correct peer {peer.name}'s host, put its address there, or mend this machine's name service"
        yield Finding(Level.FAULT, PEER, peer.name, words, advice)
        return
    gets_results = any(peer.name in route.deliver_to for route in config.route)
    answer = scu.echo(remote)
    if answer.ms is None:
        advice = (
            f"is {remote} right, is it up, does its firewall let this host in, does it know {remote.calling_ae_title}?"
        )
        level = Level.FAULT if gets_results else Level.WARNING
        yield Finding(level, PEER, peer.name, answer.words, advice)
        return
    yield Finding(Level.OK, PEER, peer.name, f"{remote} answers C-ECHO in {answer.ms:.0f} ms")
    if not gets_results:
        return
    try:
        yield from fitting.examine_profile(config, peer, remote)
        yield from _examine_services(peer, remote)
    except Unavailable as error:
        yield Finding(Level.FAULT, PEER, peer.name, str(error), "its log says why it refuses associations that store")
