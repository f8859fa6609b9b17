"""Connections that are nearly right: the node answers in PDUs, keeps only what it answered Success, and ends them."""

from __future__ import annotations

import json
import logging
import random
import re
import struct
from pathlib import Path

import pytest
from fuzz import conversations
from fuzz.amount import seed, tell
from fuzz.node_in_memory import READ_BYTES, Heard, NodeInMemory
from fuzz.watch import Cases
from raw_peer import ABORT, AC, P_DATA, RELEASE_RP, RJ, RawPeer

#: As in the node (`pacs_ai.log.configure`), where warnings about peers' bytes are no errors.
pytestmark = pytest.mark.filterwarnings("ignore")
CASES = json.loads((Path(__file__).parents[1] / "fuzz" / "cases" / "conversations.json").read_text())
UNFORESEEN = re.compile(r"^\w+ in \w+ \(")


def chopped(generator: random.Random, whole: bytes, most: int) -> list[bytes]:
    """Return the bytes in pieces of a random size."""
    pieces, at = [], 0
    while at < len(whole):
        size = generator.choice([1, 5, 100, 5000, most])
        pieces.append(whole[at : at + size])
        at += size
    return pieces


def successes(heard: Heard) -> int:
    """Return how many C-STOREs were answered Success."""
    status = struct.pack("<HHLH", 0, 0x0900, 2, 0)
    store = struct.pack("<HHLH", 0, 0x0100, 2, 0x8001)
    return sum(status in pdu and store in pdu for pdu in heard.pdus())


def check(heard: Heard) -> None:
    """Hold what was heard against what any peer may expect."""
    assert not [words for words in heard.words if UNFORESEEN.match(words)], heard.words
    kinds = [pdu[0] for pdu in heard.pdus()]
    assert set(kinds) <= {AC, RJ, P_DATA, RELEASE_RP, ABORT}
    if kinds and kinds[0] != ABORT:
        assert kinds[0] in {AC, RJ}
        assert AC not in kinds[1:]
        assert RJ not in kinds[1:]
    ends = [n for n, kind in enumerate(kinds) if kind in {RJ, RELEASE_RP, ABORT}]
    assert all(kind == ABORT for kind in kinds[ends[0] + 1 :]) if ends else True
    assert successes(heard) == len(heard.kept)


@pytest.fixture
def quiet():
    """Keep the log of a quarter of a million refusals out of the memory of this process."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600)
def test_NET_09_however_a_connection_is_bent_it_is_answered_in_pdus_and_ended(quiet):
    """In process; the same bytes in other pieces are answered the same."""
    generator, node, kept, connections = random.Random(seed()), NodeInMemory(), 0, 0
    cases = Cases(6_000, 250_000)
    while cases.are_left:
        spoken = conversations.grow(generator)
        whole = b"".join(spoken)
        with cases.one({"conversation": whole.hex()}, len(spoken)):
            try:
                first = node.converse(chopped(generator, whole, READ_BYTES))
                check(first)
                second = node.converse(chopped(generator, whole, 60))
                assert (first.written, first.kept) == (second.written, second.kept)
            except Exception:
                tell(json.dumps({"found": "", "conversation": whole.hex()}))
                raise
        kept += len(first.kept)
        connections += 1
    tell(f"{cases.done} PDUs on {connections} connections, {kept} instances kept")
    assert kept > connections / 4


@pytest.mark.parametrize("case", CASES, ids=[str(n) for n in range(len(CASES))])
def test_NET_09_what_was_once_found_stays_right(case):
    whole = bytes.fromhex(case["conversation"])
    at_once = NodeInMemory().converse(chopped(random.Random(1), whole, READ_BYTES))
    check(at_once)
    in_bytes = NodeInMemory().converse([whole[n : n + 1] for n in range(len(whole))])
    assert (at_once.written, at_once.kept) == (in_bytes.written, in_bytes.kept)


def hears(peer: RawPeer, expected: bytes) -> bytes:
    """Return what the node says, until that is as long as it should be or the node is gone."""
    found = b""
    try:
        while len(found) < len(expected) and (piece := peer.socket.recv(65536)):
            found += piece
    except ConnectionResetError:
        pass
    return found


@pytest.mark.timeout(3600)
def test_NET_09_over_sockets_it_is_the_same(bed, caplog):
    caplog.set_level("ERROR")
    caplog.set_level("CRITICAL", logger="pynetdicom")
    generator, memory, bent = random.Random(seed() + 1), NodeInMemory(), 0
    cases, kept = Cases(150, 5_000), 0
    while cases.are_left:
        whole = b"".join(conversations.grow(generator))
        expected = memory.converse(chopped(generator, whole, READ_BYTES))
        with cases.one({"conversation": whole.hex()}), RawPeer(bed.receiver.port) as peer:
            try:
                for piece in chopped(generator, whole, 20_000):
                    peer.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                bent += 1
            found = hears(peer, expected.written)
        if found != expected.written:  # what is no DICOM is cut off at once, and the last words may be lost with it
            assert expected.written.startswith(found), whole.hex()
            assert expected.dropped or bent, whole.hex()
        kept += len(expected.kept)
        if cases.done % 100 == 1:
            assert bed.is_served()
    assert [record.getMessage() for record in caplog.records] == []
    assert len(bed.arrivals) <= kept
    tell(
        f"{cases.done} connections, {kept} instances, {bent} cut off by the node; slowest echo {bed.slowest_echo:.3f} s"
    )
