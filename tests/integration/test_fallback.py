"""An object that a destination does not accept takes another form by the plan, with what cites it, never in a loop."""

from __future__ import annotations

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom.presentation import build_context
from running_node import until
from stations import BACKOFF, DEAD, ME
from stored_results import finish_with, kinds, plan_of

from pacs_ai import profiles
from pacs_ai.config import Config
from pacs_ai.deliver import scu
from pacs_ai.deliver.courier import Courier
from pacs_ai.dicom import contexts
from pacs_ai.dicom.status import OUT_OF_RESOURCES, SOP_CLASS_NOT_SUPPORTED
from pacs_ai.errors import Unavailable
from pacs_ai.profiles import Kind, Wanted, encodings
from pacs_ai.store import concerns, filling, journal, orders, outbox, retraction, schema
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import Address
from pacs_ai.store.files import Files
from pacs_ai.store.owners import Watch

if TYPE_CHECKING:
    from pacs_ai.store.outbox import Round

LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
#: A label map where it is taken, else a binary SEG, else a picture; each with the report that cites it.
MODERN = plan_of(
    Wanted(
        Kind.SEGMENTATION,
        "labelmap",
        "ExplicitVRLittleEndian",
        otherwise=Wanted(Kind.SEGMENTATION, "binary", otherwise=Wanted(Kind.SECONDARY_CAPTURE)),
    ),
    Wanted(Kind.REPORT, "comprehensive-3d", otherwise=Wanted(Kind.REPORT, "comprehensive")),
    Wanted(Kind.TEXT_REPORT),
)
ALL = (LABELMAP, SegmentationStorage, SecondaryCaptureImageStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "store" / "files")


@pytest.fixture
def courier(stations, files, tmp_path):
    peer = {"name": "pacs", "ae_title": "KEEPER", "host": "127.0.0.1"}
    config = Config.model_validate({"store": {"folder": tmp_path / "store"}, "peer": [peer]})
    return Courier(config, stations.database, files, ME)


def accepting(*sop_class_uids):
    return [build_context(one, ExplicitVRLittleEndian) for one in (*sop_class_uids, BasicTextSRStorage)]


def make_job(stations, source, files, peer, plan=MODERN, encoded=None):
    stations.enqueue(stations.work(source, destinations=(address(peer, plan),)))
    return finish_with(stations, files, encodings([plan]) if encoded is None else encoded)


def address(peer, plan):
    return Address("pacs", peer.ae_title, "127.0.0.1", peer.port, plan)


def serve(stations, courier, most=10):
    """Serve round after round until nothing is due; returns how many there were."""
    for number in range(most):
        held = outbox.claim(stations.database, "pacs", ME)
        if held is None:
            return number
        courier.serve(held)
    raise AssertionError(f"after {most} rounds there is still something to send: {stations.deliveries()}")


def reasons(stations, state):
    return [row.reason for row in stations.rows(schema.delivery, schema.delivery.c.state == state)]


def plan_now(stations):
    return profiles.from_json(stations.rows(schema.job_destination)[0].plan)


def test_DEL_06_a_label_map_that_is_not_taken_is_sent_as_binary_with_the_report_that_cites_it(
    stations, source, files, courier, make_peer
):
    peer = make_peer(supported=accepting(*ALL[1:]))
    job_id = make_job(stations, source, files, peer)
    assert kinds(stations, "pacs", "waiting")[0] == "segmentation labelmap"
    assert serve(stations, courier) == 2
    assert kinds(stations, "pacs", "sent") == [
        "segmentation binary",
        "report comprehensive-3d",
        "text-report basic-text",
    ]
    assert kinds(stations, "pacs", "cancelled") == ["segmentation labelmap", "report comprehensive-3d"]
    refused, citing = reasons(stations, "cancelled")
    assert refused.startswith("not accepted; sent as binary SEG instead (")
    assert "does not accept" in refused
    assert citing == "it cites what is not accepted; sent anew, citing the binary SEG"
    by_uid = {row.sop_instance_uid: row.encoding for row in stations.rows(schema.result)}
    sent = [by_uid[uid] for uid in peer.stored]
    assert sent[1].endswith(f"<{sent[0]}"), "the report that came cites the SEG that came"
    assert sent == list(profiles.keys(plan_now(stations)))
    with stations.database.read() as connection:
        moves = [entry.event for entry in journal.of(connection, "delivery", 1)]
        assert concerns.of_jobs(connection) == []
    assert moves == ["enqueued", "claimed", "replaced"]
    assert stations.job(job_id).state == "done"


def test_a_report_that_is_not_taken_is_sent_in_the_older_form(stations, source, files, courier, make_peer):
    peer = make_peer(supported=accepting(LABELMAP, ComprehensiveSRStorage))
    make_job(stations, source, files, peer)
    assert serve(stations, courier) == 2
    assert kinds(stations, "pacs", "sent") == [
        "segmentation labelmap",
        "report comprehensive",
        "text-report basic-text",
    ]


def test_DEL_06_one_that_takes_nothing_of_a_kind_ends_failed_after_the_last_form(
    stations, source, files, courier, make_peer
):
    peer = make_peer(supported=accepting())
    make_job(stations, source, files, peer)
    assert serve(stations, courier) <= 5
    assert kinds(stations, "pacs", "sent") == ["text-report basic-text"]
    assert kinds(stations, "pacs", "failed") == ["secondary-capture page", "report comprehensive"]
    assert "ask its administrator to enable it" in reasons(stations, "failed")[0]
    refused = [row for row in stations.rows(schema.delivery) if row.reason.startswith("not accepted")]
    assert [row.attempts for row in refused] == [1, 1, 1]


#: A profile of dcmrecv, which rejects the association where it would accept no context of it.
REPORTS_ONLY = r"""
[[TransferSyntaxes]]
[Plain]
TransferSyntax1 = LittleEndianExplicit
TransferSyntax2 = LittleEndianImplicit
[[PresentationContexts]]
[Reports]
PresentationContext1 = VerificationSOPClass\Plain
PresentationContext2 = Comprehensive3DSRStorage\Plain
PresentationContext3 = BasicTextSRStorage\Plain
[[Profiles]]
[Default]
PresentationContexts = Reports
"""


@pytest.fixture
def dcmrecv(tmp_path, free_port):
    """dcmtk's dcmrecv, which takes reports and nothing else; yields where it is and where it keeps them."""
    binary = shutil.which("dcmrecv", path="/usr/bin:/usr/local/bin")
    if binary is None:
        pytest.skip("DCMTK MISSING: apt-get install dcmtk; nothing was sent to a foreign implementation here")
    profile, kept = tmp_path / "dcmrecv.cfg", tmp_path / "dcmrecv"
    profile.write_text(REPORTS_ONLY)
    kept.mkdir()
    process = subprocess.Popen([binary, "-q", "-xf", profile, "Default", "-od", kept, str(free_port)])
    remote = scu.Remote("KEEPER", "127.0.0.1", free_port, "PACS_AI")
    try:
        until(lambda: scu.echo(remote).ms is not None, what="dcmrecv answering")
        yield remote, kept
    finally:
        process.terminate()
        process.wait()


def test_DEL_06_dcmrecv_that_takes_only_reports_gets_them_and_the_rest_fails(stations, source, files, courier, dcmrecv):
    remote, kept = dcmrecv
    make_job(stations, source, files, remote)
    assert serve(stations, courier) <= 5
    assert kinds(stations, "pacs", "failed") == ["secondary-capture page"]
    assert kinds(stations, "pacs", "sent") == ["report comprehensive-3d", "text-report basic-text"]
    assert len(list(kept.iterdir())) == 2


def test_DEL_06_dcmrecv_that_takes_nothing_of_what_is_due_is_not_away(stations, source, files, courier, dcmrecv):
    make_job(stations, source, files, dcmrecv[0], plan_of(Wanted(Kind.SEGMENTATION)))
    assert serve(stations, courier) == 1
    assert kinds(stations, "pacs", "failed") == ["segmentation binary"]
    assert "does not accept Segmentation Storage in any encoding" in reasons(stations, "failed")[0]
    assert stations.rows(schema.destination)[0].failures == 0


def test_DEL_06_one_that_answers_otherwise_each_time_is_no_loop(stations, source, files, courier, make_peer):
    """What was replaced is never offered again, though the peer would take it now."""
    peer = make_peer(supported=accepting(*ALL[1:]))
    make_job(stations, source, files, peer)
    taking = [accepting(*ALL[1:]), accepting(LABELMAP, ComprehensiveSRStorage, SecondaryCaptureImageStorage)] * 4
    rounds = 0
    while (held := outbox.claim(stations.database, "pacs", ME)) is not None:
        peer.stop()
        peer.supported = taking[rounds]
        peer.start()
        courier.serve(held)
        rounds += 1
        assert rounds < 8
    assert kinds(stations, "pacs", "sent").count("secondary-capture page") == 1
    assert not [row for row in stations.rows(schema.delivery) if row.state in {"waiting", "sending"}]
    with stations.database.read() as connection:
        refusals = [
            [entry.event for entry in journal.of(connection, "delivery", row.id)].count("replaced")
            for row in stations.rows(schema.delivery)
        ]
    assert max(refusals) == 1


def test_a_refusal_by_status_falls_back_too(stations, source, files, courier, make_peer):
    peer = make_peer()
    make_job(stations, source, files, peer)
    first = stations.rows(schema.result)[0]
    peer.statuses = {first.sop_instance_uid: [SOP_CLASS_NOT_SUPPORTED]}
    serve(stations, courier)
    assert kinds(stations, "pacs", "sent")[0] == "segmentation binary"


def test_without_another_form_it_fails_and_the_rest_goes(stations, source, files, courier, make_peer):
    peer = make_peer(supported=accepting(Comprehensive3DSRStorage))
    make_job(stations, source, files, peer, plan_of(Wanted(Kind.SEGMENTATION), Wanted(Kind.REPORT)))
    assert serve(stations, courier) == 1
    assert kinds(stations, "pacs", "failed") == ["segmentation binary"]
    assert kinds(stations, "pacs", "sent") == ["report comprehensive-3d"]


def test_what_the_peer_may_have_is_marked(stations, source, files, courier, make_peer):
    """A connection that breaks amid an instance leaves a doubt; one that cannot be made leaves none."""
    peer = make_peer()
    make_job(stations, source, files, peer)
    peer.stop()
    held = outbox.claim(stations.database, "pacs", ME)
    courier.serve(held)
    assert not any(row.doubtful for row in stations.rows(schema.delivery))
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.destination).values(next_try_at=now(), owner=DEAD, fence=99))
        connection.execute(sa.update(schema.delivery).where(schema.delivery.c.id == 1).values(state="sending"))
        journal.append(connection, "delivery", 1, "claimed", before="waiting", after="sending", reason="x", actor=DEAD)
    outbox.sweep(stations.database, Watch(), ME)
    assert [row.doubtful for row in stations.rows(schema.delivery)] == [True, False, False]


@pytest.mark.parametrize("moment", ["_end_replaced", "_fill", "insert_deliveries"])
def test_killed_amid_a_fallback_nothing_has_changed_and_the_next_courier_does_it(
    stations, source, files, courier, make_peer, monkeypatch, moment
):
    peer = make_peer(supported=accepting(*ALL[1:]))
    make_job(stations, source, files, peer)
    before = [(row.id, row.encoding) for row in stations.rows(schema.result)]

    def die(*_arguments, **_options):
        raise Unavailable("the process ends here")

    with monkeypatch.context() as broken:
        broken.setattr(filling, moment, die)
        held = outbox.claim(stations.database, "pacs", DEAD)
        with pytest.raises(Unavailable):
            courier.serve(held)
    assert profiles.keys(plan_now(stations)) == profiles.keys(MODERN)
    assert outbox.sweep(stations.database, Watch(), ME) == 1
    serve(stations, courier)
    assert kinds(stations, "pacs", "sent") == [
        "segmentation binary",
        "report comprehensive-3d",
        "text-report basic-text",
    ]
    assert [(row.id, row.encoding) for row in stations.rows(schema.result)] == before


def test_an_operators_cancel_while_it_is_refused_wins(stations, source, files, courier, make_peer):
    peer = make_peer(supported=accepting(*ALL[1:]))
    make_job(stations, source, files, peer)
    held = outbox.claim(stations.database, "pacs", ME)
    orders.cancel(stations.database, held.parcels[0].job_id, actor="operator")
    assert outbox.not_accepted(stations.database, held, held.parcels[0], None, "no") == ""
    courier.serve(held)
    assert set(stations.deliveries()) == {"cancelled"}
    assert peer.requests == []


def test_a_retraction_at_the_same_moment_leaves_nothing_to_be_sent(stations, sender, files, make_peer):
    peer = make_peer()
    for number in range(4):
        sender.send(str(number), [1])
        work = stations.work(stations.complete(str(number)), destinations=(address(peer, MODERN),))
        stations.enqueue(work)
        job_id = finish_with(stations, files, encodings([MODERN]))
        held = outbox.claim(stations.database, "pacs", ME)
        start = threading.Barrier(2)

        def refuse(held: Round = held, gate: threading.Barrier = start) -> None:
            gate.wait()
            outbox.not_accepted(stations.database, held, held.parcels[0], None, "no")

        with ThreadPoolExecutor(1) as threads:
            refused = threads.submit(refuse)
            start.wait()
            retraction.retract(
                stations.database, job_id, reason="safety", because="swapped", honours={"pacs": True}, actor="operator"
            )
            refused.result()
        outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
        assert set(stations.deliveries()) <= {"cancelled", "retracted"}


def test_a_form_that_was_not_encoded_is_said_when_it_is_needed(stations, source, files, courier, make_peer):
    """The job is of a release, or a configuration, that knew no such fallback."""
    peer = make_peer(supported=accepting(*ALL[1:]))
    first = [choice.encoding for choice in MODERN]
    job_id = make_job(stations, source, files, peer, MODERN, first)
    serve(stations, courier)
    assert kinds(stations, "pacs", "sent") == ["text-report basic-text"]
    with stations.database.read() as connection:
        (concern,) = concerns.of_jobs(connection)
    assert concern.words.startswith("pacs lacks binary SEG, comprehensive-3d SR: the job was done before")
    assert f"pacs-ai retry {job_id}" in concern.advice


def test_full_and_refusing_waits_with_the_rest(stations, source, files, courier, make_peer):
    """What waits because the peer is full goes before what cites it, after a fallback too."""
    peer = make_peer(supported=accepting(*ALL[1:]))
    make_job(stations, source, files, peer)
    courier.serve(outbox.claim(stations.database, "pacs", ME))
    binary = next(row for row in stations.rows(schema.result) if row.encoding.startswith("segmentation/binary"))
    peer.statuses = {binary.sop_instance_uid: [OUT_OF_RESOURCES]}
    courier.serve(outbox.claim(stations.database, "pacs", ME))
    assert peer.stored == []
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.delivery).values(due_at=now()))
    serve(stations, courier)
    assert peer.stored[0] == binary.sop_instance_uid
    assert len(peer.stored) == 3


# -- results that are older than what is asked for


def test_what_was_not_encoded_is_said_and_a_retry_makes_it(stations, source, files, make_peer):
    """A route with another profile was added after the job was done."""
    first = make_peer()
    old = plan_of(Wanted(Kind.SEGMENTATION))
    work = stations.work(source, destinations=(address(first, old),))
    stations.enqueue(work)
    job_id = finish_with(stations, files, encodings([old]))
    newer = stations.work(
        source, route="second", destinations=(Address("archive", "ARCHIVE", "127.0.0.1", 104, MODERN),)
    )
    assert stations.enqueue(newer) == (job_id, False)
    assert kinds(stations, "archive", "waiting") == []
    words = (
        "archive lacks labelmap SEG, comprehensive-3d SR, basic-text text-report: the job was done before it was asked"
        f" for; pacs-ai retry {job_id}"
    )
    lacking = {row.peer: row.lacking for row in stations.rows(schema.job_destination)}
    assert lacking == {"pacs": "", "archive": words}
    with stations.database.read() as connection:
        (concern,) = concerns.of_jobs(connection)
        assert [entry.event for entry in journal.of(connection, "job", job_id)][-1] == "lacking"
    assert concern.advice == f"pacs-ai retry {job_id}, or pacs-ai cancel {job_id} to leave it so"
    stations.enqueue(newer)
    again = orders.retry(stations.database, job_id, actor="operator")
    finish_with(stations, files, encodings([old, MODERN]))
    assert stations.job(again).generation == 1
    assert len(kinds(stations, "archive", "waiting")) == 3
    with stations.database.read() as connection:
        assert concerns.of_jobs(connection) == []


def test_nothing_to_say_is_no_lack(stations, source, files, make_peer):
    """An encoder that had nothing to say (no segment has a voxel) leaves nothing to ask for."""
    stations.enqueue(stations.work(source, destinations=(address(make_peer(), MODERN),)))
    held = stations.claim()
    stations.finish_with(held, [], [one.key for one in encodings([MODERN])])
    assert stations.rows(schema.job_destination)[0].lacking == ""


def test_cancel_leaves_it_so(stations, source, files, make_peer):
    job_id = make_job(stations, source, files, make_peer(), MODERN, encodings([plan_of(Wanted(Kind.TEXT_REPORT))]))
    orders.cancel(stations.database, job_id, actor="operator")
    with stations.database.read() as connection:
        assert concerns.of_jobs(connection) == []
        assert "set aside" in [entry.event for entry in journal.of(connection, "job", job_id)]


def test_accepted_contexts_of_the_tests_are_those_of_the_node():
    known = {str(context.abstract_syntax) for context in contexts.acceptor_contexts()}
    assert set(ALL) <= known
