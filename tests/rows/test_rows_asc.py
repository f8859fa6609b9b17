"""What is negotiated: who may call, what is accepted, and what is said about the rest."""

from __future__ import annotations

import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from effort import effort
from fuzz.node_in_memory import NodeInMemory
from hypothesis import given
from hypothesis import strategies as st
from listening_bed import until
from pydicom.uid import (
    AllTransferSyntaxes,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom.sop_class import StorageCommitmentPushModel
from raw_peer import (
    ABORT,
    AC,
    CT_CONTEXTS,
    P_DATA,
    PATIENCE,
    RJ,
    VERIFICATION,
    associate_rq,
    command,
    data_set,
    echo,
    item,
    pdv,
    store,
    store_command,
    user_information,
)

from pacs_ai.dicom.contexts import DEFAULT_TRANSFER_SYNTAXES, acceptor_contexts
from pacs_ai.receive.connection import Connection
from pacs_ai.receive.guard import MOST_ITEMS, Limits, MalformedRequest
from pacs_ai.receive.negotiation import Negotiator, service_contexts
from pacs_ai.receive.scp import Listen
from pacs_ai.receive.service import N_ACTION_RQ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.dicom.arrival import Refusal


def rejection(answer: bytes) -> tuple[int, ...]:
    """Return result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    assert answer[:1] == bytes((RJ,)), answer
    return tuple(answer[7:10])


def items_of(raw: bytes) -> list[tuple[int, bytes]]:
    """Return the items or sub-items of some bytes."""
    found, at = [], 0
    while at < len(raw):
        kind, length = struct.unpack_from(">BxH", raw, at)
        found.append((kind, raw[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def results(answer: bytes) -> dict[int, int]:
    """Return the result of each presentation context by its ID (PS3.8 9.3.3.2)."""
    assert answer[:1] == bytes((AC,)), answer
    return {value[0]: value[2] for kind, value in items_of(answer[74:]) if kind == 0x21}


def test_ASC_01_another_called_ae_title_is_rejected(bed):
    peer = bed.peer()
    peer.send(associate_rq(called=b"SOMEBODY"))
    assert rejection(peer.next_pdu()) == (1, 1, 7)
    assert peer.is_closed()


@pytest.mark.parametrize("versions", [0, 2, 0xFFFE])
def test_ASC_01_another_protocol_version_is_rejected(bed, versions):
    """PS3.8 Table 9-11: only bit 0 is tested."""
    peer = bed.peer()
    peer.send(associate_rq()[:6] + struct.pack(">H", versions) + associate_rq()[8:])
    assert rejection(peer.next_pdu()) == (1, 2, 2)
    assert peer.is_closed()
    bed.peer().associate(associate_rq()[:6] + struct.pack(">H", versions | 1) + associate_rq()[8:])


@pytest.mark.parametrize("callers", [{"KNOWN": None}, {"SENDER": frozenset({"192.0.2.7"})}], ids=["title", "address"])
def test_ASC_02_an_unknown_caller_is_rejected(make_bed, callers):
    bed = make_bed(callers={**callers, "ECHOER": None})
    peer = bed.peer()
    peer.send(associate_rq())
    assert rejection(peer.next_pdu()) == (1, 1, 3)


@pytest.mark.parametrize("title", [b"A\0B", b"A\nB", b"\x1b[31mRED", b"\xff" * 16, b"A\\B", b" " * 16])
def test_ASC_03_a_title_that_is_none_is_rejected_and_logged_in_escapes(bed, caplog, title):
    caplog.set_level("INFO")
    peer = bed.peer()
    peer.send(associate_rq(calling=title))
    assert rejection(peer.next_pdu()) == (1, 1, 3)
    until(lambda: "rejected association" in caplog.text)
    assert caplog.text.replace("\n", "").isprintable()
    assert len(caplog.text.splitlines()) == len(caplog.records)


@pytest.mark.parametrize(
    "contexts",
    [
        [(1, CTImageStorage, ())],
        [(1, CTImageStorage, (ExplicitVRLittleEndian,)), (1, VERIFICATION, (ExplicitVRLittleEndian,))],
        [(4, CTImageStorage, (ExplicitVRLittleEndian,))],
        [(2 * n + 1 & 0xFF, CTImageStorage, (ExplicitVRLittleEndian,)) for n in range(129)],
    ],
    ids=["no transfer syntax", "repeated", "even", "129"],
)
def test_ASC_04_malformed_contexts_are_aborted_or_refused_one_by_one(bed, contexts):
    peer = bed.peer()
    peer.send(associate_rq(contexts=contexts))
    answer = peer.next_pdu()
    assert answer[0] == ABORT or set(results(answer).values()) <= {3, 4}


@pytest.mark.parametrize("instead", [b"", item(0x10, b"")], ids=["none", "empty"])
def test_ASC_04_a_request_without_an_application_context_is_aborted(bed, instead):
    request = associate_rq().replace(item(0x10, b"1.2.840.10008.3.1.1.1"), instead)
    peer = bed.peer()
    peer.send(request[:2] + struct.pack(">L", len(request) - 6) + request[6:])
    assert peer.is_aborted(2, 6)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # as `pacs_ai.log` has it in a node
@pytest.mark.parametrize("name", [b"1.2.840.10008.3.1.1.2", b"1.2.840.10008.3.1.1", b"DICOM"])
def test_ASC_04_another_application_context_is_rejected(bed, name):
    request = associate_rq().replace(item(0x10, b"1.2.840.10008.3.1.1.1"), item(0x10, name))
    peer = bed.peer()
    peer.send(request[:2] + struct.pack(">L", len(request) - 6) + request[6:])
    assert rejection(peer.next_pdu()) == (1, 1, 2)
    assert peer.is_closed()


def test_ASC_04_an_application_context_that_is_padded_is_that_of_dicom(bed):
    """PS3.8 Annex F pads no UID; there are peers that do."""
    request = associate_rq().replace(item(0x10, b"1.2.840.10008.3.1.1.1"), item(0x10, b"1.2.840.10008.3.1.1.1\0"))
    bed.peer().associate(request[:2] + struct.pack(">L", len(request) - 6) + request[6:])


@pytest.mark.parametrize("maximum", [1, 7, 16, 1023])
def test_ASC_05_a_peer_that_takes_next_to_nothing_is_rejected(bed, maximum):
    peer = bed.peer()
    peer.send(associate_rq(users=user_information(maximum)))
    assert rejection(peer.next_pdu()) == (1, 2, 1)


COMMITMENT = str(StorageCommitmentPushModel)


def _roles(sop_classes: Sequence[str]) -> bytes:
    return b"".join(item(0x54, struct.pack(">H", len(uid)) + uid.encode() + b"\1\1") for uid in sop_classes)


ALL_CLASSES = [str(context.abstract_syntax) for context in acceptor_contexts()]
ROLES = _roles(ALL_CLASSES[:128])
#: Nothing in it is unknown here, or asked in vain.
HEAVY = tuple((2 * number + 1, uid, DEFAULT_TRANSFER_SYNTAXES) for number, uid in enumerate(ALL_CLASSES[:128]))
#: As much as a request may hold, nearly, and as many items.
STRANGE_COUNT = MOST_ITEMS // 128 - len(DEFAULT_TRANSFER_SYNTAXES) - 3
STRANGE = tuple(f"1.2.840.{number}.{'1' * 30}" for number in range(STRANGE_COUNT))
HEAVIEST = tuple((number, uid, (*STRANGE, *syntaxes)) for number, uid, syntaxes in HEAVY)
#: What pydicom knows.
EVERY_SYNTAX = tuple((number, uid, tuple(map(str, AllTransferSyntaxes))) for number, uid, _ in HEAVY)


@pytest.mark.parametrize(
    ("contexts", "users", "is_accepted"),
    [
        (HEAVY, ROLES, True),
        (HEAVIEST, ROLES + item(0x99, b"") * 8000, True),
        (EVERY_SYNTAX, ROLES, True),
        (((1, CTImageStorage, ("",) * 8200),), b"", False),
        (((1, CTImageStorage, (*(f"1.{number}" for number in range(5000)), ExplicitVRLittleEndian)),), b"", True),
        (CT_CONTEXTS, item(0x56, b"\0\x011") * 8000, True),
        (CT_CONTEXTS, item(0x57, b"\0\x011\0\x011" + struct.pack(">H", 54000) + b"\0\x011" * 18000), True),
        (CT_CONTEXTS, item(0x54, b"\0\x011\1\1") * 6000, False),
    ],
    ids=["known syntaxes", "heaviest", "every syntax", "empty syntaxes", "syntaxes", "extended", "related", "roles"],
)
def test_ASC_04_what_a_request_can_hold_does_not_keep_the_others_waiting(bed, contexts, users, is_accepted):
    """All is judged in the thread that serves everybody; known syntaxes are found behind any number of others."""
    request = associate_rq(contexts=contexts, users=user_information(further=users))
    peer = bed.peer()
    peer.send(request)
    answer = peer.next_pdu()
    node = NodeInMemory()
    with effort() as spent:
        assert node.converse([request]).written == answer
    assert spent.lines < 450_000  # 20 ms
    assert results(answer)[1] == 0 if is_accepted else answer[:1] == bytes((ABORT,))


def test_ASC_04_many_requests_of_one_address_do_not_keep_the_others_waiting(make_bed, monkeypatch):
    """Each turn of the loop decides one, and the next is that of another address: counted, not timed."""
    bed = make_bed(waiting=Limits(connections_per_address=300))
    acceptor, happened = bed.receiver._acceptor, []
    decide, send = acceptor.decide, Connection.send

    def noted(connection, request):
        happened.append(connection.address)
        return decide(connection, request)

    def answered(connection, *answer):
        happened.append("echo")
        send(connection, *answer)

    others = [bed.peer().associate() for _ in range(3)]
    heavy, late = [bed.peer() for _ in range(60)], bed.peer(address="127.0.0.2")
    until(lambda: len(acceptor._connections) == len(others) + len(heavy) + 1)
    monkeypatch.setattr(acceptor, "decide", noted)
    monkeypatch.setattr(Connection, "send", answered)
    stands, sent = threading.Event(), threading.Event()
    acceptor.loop.call_soon_threadsafe(lambda: (stands.set(), sent.wait(PATIENCE)))
    assert stands.wait(PATIENCE)
    for number, peer in enumerate(heavy):
        asked = user_information(further=ROLES)
        peer.send(associate_rq(calling=f"HEAVY{number}".encode(), contexts=HEAVY, users=asked))
    late.send(associate_rq())
    for peer in others:
        peer.send(echo())
    sent.set()
    assert [peer.status() for peer in others] == [0x0000] * 3
    assert all(peer.next_pdu()[:1] == bytes((AC,)) for peer in (late, *heavy))
    assert len(happened) == len(others) + 1 + len(heavy)
    assert happened[:4].count("echo") == len(others), "more than one request was decided before"
    assert "127.0.0.2" in happened[:6]


def test_ASC_04_who_asks_is_answered_however_many_connect_at_one_moment(make_bed):
    """With the limits that a node has by itself: who asks for nothing makes room for others, these do not."""
    bed = make_bed(maximum_associations_per_peer=1000)
    stands, sent = threading.Event(), threading.Event()
    bed.receiver._acceptor.loop.call_soon_threadsafe(lambda: (stands.set(), sent.wait(PATIENCE)))
    assert stands.wait(PATIENCE)
    callers = [bed.peer() for _ in range(160)]
    for peer in callers:
        peer.send(associate_rq())
    sent.set()
    assert Counter(peer.next_pdu()[:1] for peer in callers) == {bytes((AC,)): len(callers)}


@pytest.mark.parametrize("limits", [{"asking_bytes": 16_000}, {"connections": 8, "connections_per_address": 2}])
def test_ASC_04_of_too_many_requests_at_one_moment_some_are_told_so(make_bed, monkeypatch, limits):
    refusals: list[Refusal] = []
    bed = make_bed(waiting=Limits(**limits), on_refusal=refusals.append)
    acceptor = bed.receiver._acceptor
    monkeypatch.setattr(acceptor, "_decide_soon", lambda: None)
    request = associate_rq(users=user_information(further=item(0x53, bytes(1000))))
    waiting = []
    for count in (1, 2):
        waiting.append(bed.peer())
        waiting[-1].send(request)
        until(lambda count=count: len(acceptor._asking) == count)
    third = bed.peer()
    third.send(associate_rq(users=user_information(further=item(0x53, bytes(4000)))))
    assert rejection(third.next_pdu()) == (2, 3, 1)
    waiting.append(bed.peer(address="127.0.0.2"))
    waiting[-1].send(request)
    until(lambda: len(acceptor._asking) == 3)
    monkeypatch.undo()
    acceptor.loop.call_soon_threadsafe(acceptor._decide_soon)
    assert [peer.next_pdu()[:1] for peer in waiting] == [bytes((AC,))] * 3
    assert not acceptor._asking
    assert "temporary congestion" in refusals[0].reason


def test_ASC_04_one_that_leaves_before_its_turn_is_not_decided_and_one_that_waits_is(make_bed, monkeypatch):
    """However long: the deadline is that of sending the request."""
    bed = make_bed()
    acceptor = bed.receiver._acceptor
    monkeypatch.setattr(acceptor, "_decide_soon", lambda: None)
    gone, stays = bed.peer(), bed.peer()
    gone.send(associate_rq())
    stays.send(associate_rq() + echo())
    until(lambda: len(acceptor._asking._waiting.get("127.0.0.1", ())) == 2)
    gone.reset()
    until(lambda: len(acceptor._asking._waiting["127.0.0.1"]) == 1)
    later = acceptor.now() + 3600.0
    acceptor.loop.call_soon_threadsafe(lambda: [each.tick(later) for each in list(acceptor._connections)])
    monkeypatch.undo()
    acceptor.loop.call_soon_threadsafe(acceptor._decide_soon)
    assert stays.next_pdu()[:1] == bytes((AC,))
    assert stays.status() == 0x0000
    assert bed.receiver.associations == 1
    assert not acceptor._asking


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # as `pacs_ai.log` has it in a node
@given(
    st.lists(
        st.tuples(
            st.sampled_from([str(CTImageStorage), VERIFICATION, COMMITMENT, "1.2.3", CTImageStorage + "\0"]),
            st.lists(st.sampled_from([*DEFAULT_TRANSFER_SYNTAXES, ExplicitVRBigEndian, "1.2.9"]), min_size=1),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_ASC_08_what_is_chosen_is_what_would_be_chosen_of_all_that_is_proposed(proposed):
    """Most of a request is passed over, since it cannot change the answer."""
    services = {(COMMITMENT, N_ACTION_RQ): lambda request: None}
    negotiator = Negotiator([*acceptor_contexts(), *service_contexts(services)], 131072)
    contexts = [(2 * number + 1, uid, syntaxes) for number, (uid, syntaxes) in enumerate(proposed)]
    raw = associate_rq(contexts=contexts, users=user_information(further=_roles([COMMITMENT, str(CTImageStorage)])))

    def answer():
        try:
            return negotiator.agree(raw)
        except MalformedRequest as fault:
            return str(fault)

    found = answer()
    with mock.patch.object(Negotiator, "_telling", lambda _, request: request):
        assert found == answer()


@pytest.mark.parametrize(
    ("maximum", "pdus"),
    [(0, 1), (None, 1), (1024, 10), (4096, 3), (0xFFFFFFFF, 1)],
    ids=["0", "none", "1024", "4096", "4 GB"],
)
def test_ASC_05_any_other_maximum_length_is_answered_within_it(bed, maximum, pdus):
    """An answer repeats the UID that was asked with, and a bad one may be long: it takes as many PDUs as it must."""
    peer = bed.peer().associate(associate_rq(users=user_information(maximum)))
    peer.send(echo() + store(data_set(), "1.2.3"))
    assert [peer.status(), peer.status()] == [0x0000, 0x0000]
    peer.send(store(data_set(), "1" * 10_000))
    answers = [peer.next_pdu()]
    while not answers[-1][11] & 2:  # the last fragment (PS3.8 E.2)
        answers.append(peer.next_pdu())
    assert all(answer[:1] == bytes((P_DATA,)) for answer in answers)
    assert all(len(answer) - 6 <= (maximum or 131072) for answer in answers)
    assert len(answers) == pdus
    assert b"".join(answer[12:] for answer in answers).count(b"1" * 10_000) == 1


def test_ASC_04_items_of_types_to_come_are_skipped(bed):
    """PS3.8 9.3.1; whatever a later edition adds, an older node still answers."""
    later = item(0x5A, b"later")
    raw = associate_rq(users=item(0x99, b"of another kind") + user_information(further=later) + item(0xAA, b""))
    peer = bed.peer().associate(raw)
    peer.send(echo())
    assert peer.status() == 0x0000


@pytest.mark.parametrize(
    "further",
    [
        item(0x55, b"A" * 17),
        item(0x55, b""),
        item(0x55, b"\xe9\xff"),
        item(0x52, b"no UID"),
        item(0x58, b"\x06\0" + struct.pack(">H", 3) + b"abc" + struct.pack(">H", 0)),
        item(0x58, b"\1"),
        item(0x56, b""),
    ],
    ids=["long name", "no name", "name not in ASCII", "no UID", "identity to come", "half an identity", "extended"],
)
def test_ASC_04_items_that_bear_on_nothing_are_not_judged(bed, further):
    """PS3.7 D.3.3.2, D.3.3.5 to D.3.3.7: who made the peer, what it further negotiates, who its user is."""
    peer = bed.peer().associate(associate_rq(users=user_information(further=further)))
    peer.send(echo())
    assert peer.status() == 0x0000


def test_ASC_04_sub_items_of_types_to_come_are_skipped_in_a_presentation_context(bed):
    """PS3.8 9.3.1."""
    syntaxes = item(0x30, CTImageStorage.encode()) + item(0x40, ExplicitVRLittleEndian.encode())
    known, later = (item(0x20, bytes((1, 0, 0, 0)) + syntaxes + more) for more in (b"", item(0x77, b"later")))
    request = associate_rq(contexts=CT_CONTEXTS[:1])
    assert known in request
    request = request.replace(known, later)
    peer = bed.peer().associate(request[:2] + struct.pack(">L", len(request) - 6) + request[6:])
    peer.send(store(data_set(), "1.2.3"))
    assert peer.status() == 0x0000


def test_ASC_04_more_items_than_any_peer_has_cause_for_are_not_read(bed):
    peer = bed.peer()
    peer.send(associate_rq(users=user_information() + item(0x99, b"") * MOST_ITEMS))
    assert peer.is_aborted(6)


@pytest.mark.parametrize("value", [b"", None], ids=["empty", "missing"])
def test_a_priority_without_a_value_is_medium(bed, value):
    encoded = store_command()
    priority = struct.pack("<HHLH", 0, 0x0700, 2, 0)
    assert priority in encoded
    given = b"" if value is None else struct.pack("<HHL", 0, 0x0700, len(value)) + value
    peer = bed.peer().associate()
    peer.send(pdv(encoded.replace(priority, given), 3) + pdv(data_set(), 2))
    assert peer.status() == 0x0000
    assert [arrival.priority for arrival in bed.arrivals] == [0]


SECRET = b"s3cret-Token"


@pytest.mark.parametrize("kind", range(1, 6))
def test_ASC_06_a_user_identity_is_neither_trusted_nor_logged(bed, caplog, kind):
    caplog.set_level("DEBUG")
    identity = item(0x58, struct.pack(">BBH", kind, 1, len(SECRET)) + SECRET + struct.pack(">H", len(SECRET)) + SECRET)
    peer = bed.peer()
    peer.send(associate_rq(users=user_information(further=identity)))
    assert peer.next_pdu()[0] in {AC, RJ}
    assert SECRET.decode() not in caplog.text


@pytest.mark.parametrize("form", ["repeated", "overrunning", "endless"])
def test_ASC_06_a_malformed_or_giant_identity_ends_the_connection_or_is_passed_over(bed, caplog, form):
    sound = item(0x58, struct.pack(">BBH", 1, 0, len(SECRET)) + SECRET + struct.pack(">H", 0))
    overrun = item(0x58, struct.pack(">BBH", 1, 0, 60000) + SECRET)
    endless = item(0x58, struct.pack(">BBH", 1, 0, 40000) + bytes(40000) + bytes(2))
    further = {"repeated": sound * 2, "overrunning": overrun, "endless": endless + endless[:20000]}[form]
    peer = bed.peer()
    try:
        peer.send(
            associate_rq(users=user_information(further=further)) if form != "endless" else _longer_than_may_be_held()
        )
    except (BrokenPipeError, ConnectionResetError):
        return
    answer = peer.next_pdu()
    assert answer[:1] in {b"", bytes((AC,)), bytes((RJ,)), bytes((ABORT,))}
    assert SECRET.decode() not in caplog.text
    assert form != "endless" or answer[:1] != bytes((AC,))


def _longer_than_may_be_held() -> bytes:
    identity = item(0x58, struct.pack(">BBH", 1, 0, 60000) + bytes(60000) + bytes(2))
    return associate_rq(users=user_information(further=identity) + item(0x50, identity) * 4)


@pytest.mark.parametrize("window", [(0, 0), (65535, 65535), (5, 0)])
def test_ASC_07_asynchronous_windows_are_answered_one_and_one(bed, window):
    peer = bed.peer()
    peer.send(associate_rq(users=user_information(further=item(0x53, struct.pack(">HH", *window)))))
    answer = peer.next_pdu()
    assert answer[0] == AC
    (users,) = [value for kind, value in items_of(answer[74:]) if kind == 0x50]
    granted = [struct.unpack(">HH", value) for kind, value in items_of(users) if kind == 0x53]
    assert granted in ([(1, 1)], [])  # no answer means one and one as well (PS3.7 D.3.3.3)


def test_ASC_08_what_this_node_cannot_decode_is_not_accepted(bed):
    unknown = "1.2.826.0.1.3680043.2.1143.99"
    contexts = [
        (1, CTImageStorage, (ExplicitVRBigEndian,)),
        (3, CTImageStorage, (DeflatedExplicitVRLittleEndian,)),
        (5, CTImageStorage, (unknown,)),
        (7, unknown, (ImplicitVRLittleEndian,)),
        (9, CTImageStorage, (ExplicitVRBigEndian, unknown, ImplicitVRLittleEndian)),
        (11, VERIFICATION, (ExplicitVRBigEndian, ExplicitVRLittleEndian)),
    ]
    peer = bed.peer()
    peer.send(associate_rq(contexts=contexts))
    found = results(peer.next_pdu())
    assert found == {1: 4, 3: 4, 5: 4, 7: 3, 9: 0, 11: 0}


def test_ASC_09_one_association_more_than_the_limit_is_rejected(make_bed, caplog):
    limit = Listen().maximum_associations
    bed = make_bed(
        waiting=Limits(connections=2000, connections_per_address=2000), maximum_associations_per_address=limit
    )
    for number in range(limit):
        bed.peer().associate(associate_rq(calling=f"SENDER{number // 20}".encode()))
    assert bed.receiver.associations == limit
    late = bed.peer()
    late.send(associate_rq(calling=b"LATE"))
    assert rejection(late.next_pdu()) == (2, 3, 2)
    assert "as many associations as receive.max_associations" in caplog.text
    bed.peers[0].release()
    until(lambda: bed.receiver.associations < limit)
    assert bed.is_served()


def test_ASC_10_one_that_holds_its_quota_leaves_the_others_theirs(bed, caplog):
    quota = Listen().maximum_associations_per_peer
    for _ in range(quota):
        bed.peer().associate()
    late = bed.peer()
    late.send(associate_rq())
    assert rejection(late.next_pdu()) == (2, 3, 2)
    assert "receive.max_associations_per_peer of its AE title" in caplog.text
    for number in range(quota):
        bed.peer().associate(associate_rq(calling=f"OTHER{number}".encode()))
    assert bed.is_served()


def test_ASC_10_one_that_invents_titles_leaves_the_other_addresses_theirs(make_bed, caplog):
    bed = make_bed(waiting=Limits(connections=2000, connections_per_address=2000))
    quota = Listen().maximum_associations_per_address
    assert quota < Listen().maximum_associations
    for number in range(quota):
        bed.peer().associate(associate_rq(calling=f"INVENTED{number}".encode()))
    late = bed.peer()
    late.send(associate_rq(calling=b"ANOTHER"))
    assert rejection(late.next_pdu()) == (2, 3, 2)
    assert "receive.max_associations_per_address from its address" in caplog.text
    bed.peer(address="127.0.0.2").associate(associate_rq(calling=b"ANOTHER"))
    bed.peers[0].release()
    until(lambda: bed.receiver.associations == quota)
    assert bed.is_served()


@pytest.mark.parametrize("context_id", [3, 9, 2], ids=["rejected", "never proposed", "even"])
def test_ASC_11_a_message_on_a_context_that_was_not_accepted_is_aborted(bed, context_id):
    contexts = [*CT_CONTEXTS[:1], (3, MRImageStorage, (ExplicitVRBigEndian,))]
    peer = bed.peer().associate(associate_rq(contexts=contexts))
    peer.send(store(data_set(), "1.2.3", context_id=context_id))
    assert peer.next_pdu()[0] == ABORT
    assert peer.is_closed()
    assert bed.arrivals == []


@pytest.mark.parametrize("amid", [False, True], ids=["before the data set", "amid the data set"])
def test_ASC_12_another_command_before_a_message_is_whole_is_aborted(bed, amid):
    peer = bed.peer().associate()
    peer.send(pdv(store_command(), 3) + (pdv(data_set()[:50], 0) if amid else b"") + echo())
    assert peer.is_aborted(2, 6)
    assert bed.arrivals == []


def test_ASC_12_fragments_of_two_contexts_do_not_mix(bed):
    peer = bed.peer().associate()
    peer.send(pdv(store_command(), 3, 1) + pdv(data_set(), 2, 3))
    assert peer.is_aborted(2, 6)
    assert bed.arrivals == []


SERVICES = {"C-GET": 0x10, "C-FIND": 0x20, "C-MOVE": 0x21, "N-GET": 0x110, "N-SET": 0x120, "N-ACTION": 0x130}
SERVICES |= {"N-CREATE": 0x140, "N-DELETE": 0x150, "N-EVENT-REPORT": 0x100, "none at all": 0x7777}


def test_ASC_13_a_service_that_is_not_offered_is_refused(bed):
    peer = bed.peer().associate()
    for service, field in SERVICES.items():
        peer.send(pdv(command(field), 3, 3))
        assert peer.status() == 0x0211, service
    assert bed.is_served()


def test_ASC_13_an_answer_to_nothing_ends_the_association(bed):
    for response in (0x8001, 0x8030, 0x8020, 0x8FFF):
        peer = bed.peer().associate()
        peer.send(pdv(command(response), 3, 3))
        assert peer.is_aborted(2, 6)
    assert bed.is_served()


def test_ASC_14_another_sop_class_than_that_of_the_context_is_a_mismatch(bed):
    peer = bed.peer().associate()
    peer.send(store(data_set(sop_class=MRImageStorage), "1.2.3", sop_class=MRImageStorage))
    assert peer.status() == 0xA900
    peer.send(store(data_set(sop_class=MRImageStorage), "1.2.3"))
    assert peer.status() == 0xA900
    peer.send(store(data_set("1.2.3.4"), "1.2.3"))
    assert peer.status() == 0xA900
    assert bed.arrivals == []
    assert bed.stored() == []
