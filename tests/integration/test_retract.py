"""Withdrawing results: exactly what each destination has or may have, by a note or in words, whatever happens."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from objects import SEG_AND_SR
from pydicom import dcmread
from pydicom.uid import BasicTextSRStorage, KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage
from stations import ARCHIVE, BACKOFF, DEAD, ME, PACS
from stored_results import finish_with, keep_sources, kinds

from pacs_ai.cli import main
from pacs_ai.config import Config
from pacs_ai.deliver.notary import Notary
from pacs_ai.errors import UserError
from pacs_ai.states import DeliveryState, JobState
from pacs_ai.store import concerns, journal, orders, outbox, queue, replacing, resending, retraction, schema
from pacs_ai.store.clock import now
from pacs_ai.store.files import Files
from pacs_ai.store.owners import Watch

HONOURS = {"pacs": True, "archive": False}
WITHDRAWN = ["segmentation binary", "report comprehensive-3d"]


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "store" / "files")


@pytest.fixture
def notary(stations, files, tmp_path):
    config = Config.model_validate({"store": {"folder": tmp_path / "store"}})
    return Notary(config, stations.database, files, ME)


@pytest.fixture
def job_id(stations, sender, files, source):
    """A done job with a SEG and an SR for two destinations, nothing sent yet."""
    keep_sources(files, sender)
    stations.enqueue(stations.work(source, destinations=(PACS, ARCHIVE)))
    return finish_with(stations, files, SEG_AND_SR)


def retract(stations, job_id, reason="safety", because="left and right were swapped", honours=HONOURS):
    return retraction.retract(
        stations.database, job_id, reason=reason, because=because, honours=honours, actor="operator:anna"
    )


def deliver(stations, peer):
    """Deliver all that waits for one destination; returns the kinds of what went."""
    held = outbox.claim(stations.database, peer, ME)
    if held is None:
        return []
    for parcel in held.parcels:
        outbox.accepted(stations.database, held, parcel, 0, "stored")
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    return [parcel.kind for parcel in held.parcels]


def made(stations, files, notary):
    """Make every notice; returns the data sets of the objects by SOP class."""
    before = len(stations.rows(schema.result))
    while notary.step():
        pass
    return [dcmread(files.path(row.sha256)) for row in stations.rows(schema.result)[before:]]


def uids(stations, job_id):
    return [row.sop_instance_uid for row in stations.rows(schema.result, schema.result.c.job_id == job_id)]


def listed(ds):
    found = set()
    for study in ds.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            found |= {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
    return found


def test_each_destination_is_told_in_its_own_way_of_exactly_what_it_has(stations, files, notary, job_id):
    deliver(stations, "pacs")
    deliver(stations, "archive")
    seg, sr = uids(stations, job_id)
    done = retract(stations, job_id)
    assert done.withdrawn == {"pacs": ("SEG", "SR"), "archive": ("SEG", "SR")}
    assert stations.job(job_id).state == JobState.RETRACTED
    assert stations.deliveries() == ["retracted"] * 4
    report, picture, note = made(stations, files, notary)  # archive's, then pacs's
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
    assert listed(note) == listed(report) == {seg, sr}
    assert (report.SOPClassUID, picture.SOPClassUID) == (BasicTextSRStorage, SecondaryCaptureImageStorage)
    replaced = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in replaced] == [sr]
    for ds in (note, report, picture):
        assert (ds.PatientID, ds.PatientName, ds.StudyInstanceUID) == ("P1", "Doe^Jane", "1.2.9.7")
    assert deliver(stations, "pacs") == ["rejection-note"]
    assert deliver(stations, "archive") == ["retracted-report", "retracted-picture"]
    assert made(stations, files, notary) == []
    assert deliver(stations, "pacs") == []


@pytest.mark.parametrize(
    ("reason", "code"), [("safety", "113037"), ("quality", "113001"), ("worklist", "113038"), ("retention", "113039")]
)
def test_the_reason_is_coded(stations, files, notary, job_id, reason, code):
    deliver(stations, "pacs")
    retract(stations, job_id, reason)
    assert made(stations, files, notary)[0].ConceptNameCodeSequence[0].CodeValue == code


def test_destinations_with_the_same_objects_share_a_note(stations, files, notary, job_id):
    deliver(stations, "pacs")
    deliver(stations, "archive")
    retract(stations, job_id, honours={"pacs": True, "archive": True})
    assert len(made(stations, files, notary)) == 1
    assert kinds(stations, "pacs", "waiting") == kinds(stations, "archive", "waiting") == ["rejection-note key-objects"]


def test_what_was_not_sent_is_cancelled_and_told_to_nobody(stations, files, notary, job_id):
    done = retract(stations, job_id)
    assert (done.withdrawn, done.cancelled) == ({}, 4)
    assert stations.deliveries() == ["cancelled"] * 4
    assert made(stations, files, notary) == []


def test_a_partly_delivered_job_names_only_what_is_there(stations, files, notary, job_id):
    held = outbox.claim(stations.database, "pacs", ME)
    seg, sr = held.parcels
    outbox.accepted(stations.database, held, seg, 0, "stored")
    outbox.failed(stations.database, held, sr, 0xA900, "the data set does not match")
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    retract(stations, job_id)
    (note,) = made(stations, files, notary)
    assert listed(note) == {seg.sop_instance_uid}


def test_what_is_being_sent_may_be_there_and_is_named(stations, files, notary, job_id):
    held = outbox.claim(stations.database, "pacs", ME)
    retract(stations, job_id)
    assert kinds(stations, "pacs", "retracted") == WITHDRAWN
    assert not outbox.is_wanted(stations.database, held.parcels[1]), "what has not begun is not sent"
    outbox.accepted(stations.database, held, held.parcels[0], 0, "stored")
    outbox.postponed(stations.database, held, held.parcels[1], None, "not sent", BACKOFF)
    note, *_ = made(stations, files, notary)
    assert outbox.claim(stations.database, "pacs", ME) is None, "the note waits until the round is over"
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    assert deliver(stations, "pacs") == ["rejection-note"]
    assert listed(note) == {parcel.sop_instance_uid for parcel in held.parcels}


def test_what_a_dead_courier_may_have_sent_is_named_too(stations, files, notary, job_id):
    held = outbox.claim(stations.database, "pacs", DEAD)
    outbox.sweep(stations.database, Watch(), ME)
    assert kinds(stations, "pacs", "waiting") == WITHDRAWN
    retract(stations, job_id)
    (note,) = made(stations, files, notary)
    assert listed(note) == {parcel.sop_instance_uid for parcel in held.parcels}


def test_what_never_left_because_nobody_answered_is_not_named(stations, files, notary, job_id):
    held = outbox.claim(stations.database, "pacs", ME)
    outbox.postponed(stations.database, held, held.parcels[0], None, "cannot be reached", BACKOFF)
    outbox.postponed(stations.database, held, held.parcels[1], None, "connection lost", BACKOFF, doubtful=True)
    outbox.put_back(stations.database, held, reached=False, reason="cannot be reached", backoff=BACKOFF)
    done = retract(stations, job_id)
    assert done.withdrawn == {"pacs": ("SR",)}
    (note,) = made(stations, files, notary)
    assert listed(note) == {held.parcels[1].sop_instance_uid}


def test_a_peer_that_takes_no_rejection_note_gets_the_words(stations, files, notary, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    made(stations, files, notary)
    held = outbox.claim(stations.database, "pacs", ME)
    words = outbox.not_accepted(stations.database, held, held.parcels[0], None, "does not accept Key Object Selection")
    assert words == "a report and a picture that say RETRACTED"
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    report, _ = made(stations, files, notary)
    assert listed(report) == set(uids(stations, job_id)[:2])
    assert deliver(stations, "pacs") == ["retracted-report", "retracted-picture"]
    assert made(stations, files, notary) == []


def test_the_notes_are_tried_again_like_all_deliveries_and_sent_again_by_hand(stations, files, notary, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    made(stations, files, notary)
    held = outbox.claim(stations.database, "pacs", ME)
    outbox.failed(stations.database, held, held.parcels[0], 0xC000, "cannot understand")
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    (failed,) = stations.rows(schema.delivery, schema.delivery.c.state == DeliveryState.FAILED)
    resending.retry(stations.database, [failed.id], actor="operator")
    assert deliver(stations, "pacs") == ["rejection-note"]
    withdrawn = stations.rows(schema.delivery, schema.delivery.c.state == "cancelled")[0]
    with pytest.raises(UserError, match="which was retracted"):
        resending.retry(stations.database, [withdrawn.id], actor="operator")
    with pytest.raises(UserError, match="is sent: only a held, failed or cancelled one"):
        resending.retry(stations.database, [failed.id], actor="operator")


def test_killed_before_the_notes_are_made_they_are_made_by_the_next(stations, files, notary, job_id, monkeypatch):
    deliver(stations, "pacs")
    retract(stations, job_id)
    with monkeypatch.context() as killed:
        killed.setattr(notary, "_store", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            notary.step()
    assert kinds(stations, "pacs", "waiting") == []
    assert len(made(stations, files, notary)) == 1
    assert kinds(stations, "pacs", "waiting") == ["rejection-note key-objects"]


def test_the_journal_says_who_and_why(stations, notary, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    notary.step()
    with stations.database.read() as connection:
        story = journal.of(connection, "job", job_id)
    (entry,) = [one for one in story if one.event == "retracted"]
    assert (entry.actor, entry.before, entry.after) == ("operator:anna", "done", "retracted")
    assert entry.reason == "retracted (patient safety): left and right were swapped"
    assert [one.event for one in story][-2:] == ["notice ordered", "notice made"]


# -- what comes after


def test_a_run_afterwards_is_a_new_generation_that_names_the_retracted_report(stations, files, notary, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    made(stations, files, notary)
    again = orders.retry(stations.database, job_id, actor="operator")
    assert again != job_id
    assert stations.job(again).generation == 1
    assert stations.job(job_id).state == JobState.RETRACTED, "and it stays retracted"
    with stations.database.read() as connection:
        assert [one.sop_instance_uid for one in replacing.delivered_reports(connection, again)] == [
            uids(stations, job_id)[1]
        ]
    assert deliver(stations, "pacs") == ["rejection-note"]
    finish_with(stations, files, SEG_AND_SR)
    assert deliver(stations, "pacs") == ["SEG", "SR"]
    assert len(set(uids(stations, job_id)) | set(uids(stations, again))) == 5


def test_the_same_series_again_delivers_nothing_silently(stations, sender, source, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    sender.send(numbers=[1, 2], assoc="a2")
    work = stations.work(source, destinations=(PACS, ARCHIVE))
    assert stations.enqueue(work) == (job_id, False)
    third = replace(PACS, peer="third")
    assert stations.enqueue(replace(work, destinations=(third,), route="later")) == (job_id, False)
    assert stations.rows(schema.delivery, schema.delivery.c.peer == "third") == []
    with stations.database.read() as connection:
        entry = journal.of(connection, "job", job_id)[-1]
    assert entry.event == "asked again"
    assert f"pacs-ai retry {job_id}" in entry.reason
    assert queue.claim(stations.database, ME) is None


def test_a_later_revision_names_the_retracted_report_and_leaves_it_retracted(stations, sender, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    sender.send(numbers=[3], assoc="a2")
    later, is_new = stations.enqueue(stations.work(stations.complete()))
    assert is_new
    assert (stations.job(job_id).state, stations.job(later).predecessor_id) == (JobState.RETRACTED, job_id)


def test_a_superseded_job_is_retracted_too(stations, files, notary, job_id):
    deliver(stations, "pacs")
    again = orders.retry(stations.database, job_id, actor="operator")
    retract(stations, job_id)
    (note,) = made(stations, files, notary)
    assert listed(note) == set(uids(stations, job_id)[:2])
    assert stations.job(again).state == JobState.QUEUED


def test_only_what_has_results_is_retracted_and_only_once(stations, source, job_id):
    retract(stations, job_id)
    with pytest.raises(UserError, match="is retracted already: retracted \\(patient safety\\)"):
        retract(stations, job_id)
    queued, _ = stations.enqueue(stations.work(source, pipeline="other"))
    with pytest.raises(UserError, match=f"job {queued} is queued and has no results to retract; pacs-ai cancel"):
        retract(stations, queued)
    with pytest.raises(UserError, match="there is no job 99"):
        retract(stations, 99)


# -- what needs a person


def test_a_retraction_that_does_not_arrive_needs_a_person(stations, files, notary, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    assert concern(stations) == []
    _age(stations, schema.notice, "ordered_at")
    assert [one.words for one in concern(stations)] == ["is retracted, but pacs is not told yet"]
    made(stations, files, notary)
    assert concern(stations) == []
    _age(stations, schema.delivery, "created_at")
    assert concern(stations)[0].words.startswith("is retracted, but that has not reached pacs yet")
    deliver(stations, "pacs")
    assert concern(stations) == []


def test_one_that_cannot_be_said_needs_a_person_until_it_is_set_aside(stations, files, notary, job_id):
    deliver(stations, "pacs")
    for row in stations.rows(schema.result):
        files.remove(row.sha256)
    retract(stations, job_id)
    made(stations, files, notary)
    (one,) = concern(stations)
    assert "is retracted, but pacs cannot be told" in one.words
    assert one.advice == f"delete its results there by hand, then pacs-ai cancel {job_id} to set it aside"
    orders.cancel(stations.database, job_id, actor="operator")
    assert concern(stations) == []


def concern(stations):
    with stations.database.read() as connection:
        return concerns.of_jobs(connection)


def _age(stations, table, column):
    """Let a moment be two minutes ago."""
    with stations.database.write() as connection:
        connection.execute(sa.update(table).values({column: now() - timedelta(seconds=120)}))


# -- the command


@pytest.fixture
def run(stations, tmp_path):
    """Call `pacs-ai` on this database."""
    path = tmp_path / "node.toml"
    peers = "".join(
        f'[[peer]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "127.0.0.1"\nprofile = "{profile}"\n'
        for name, profile in (("pacs", "ohif"), ("archive", "generic-pacs"))
    )
    url = stations.database.url.replace("\\", "/")
    path.write_text(f'[store]\nfolder = "{tmp_path / "store"}"\ndatabase = "{url}"\n{peers}')

    def call(*words, answer=""):
        return CliRunner().invoke(main, ["--config", str(path), *map(str, words)], input=answer)

    return call


REASON = ("--reason", "quality", "--because", "wrong weights")


def test_the_command_says_what_it_will_do_and_asks(stations, run, job_id):
    deliver(stations, "pacs")
    asked = run("retract", job_id, *REASON, answer="n\n")
    assert asked.exit_code == 1
    assert "pacs has or may have SEG, SR: it gets a rejection note" in asked.stderr
    assert "not sent any more: 2 deliveries" in asked.stderr
    assert stations.jobs() == [JobState.DONE]
    done = run("retract", job_id, *REASON, answer="y\n")
    assert done.exit_code == 0, done.output
    assert f"job {job_id} is retracted: pacs will be told; 2 deliveries cancelled" in done.stdout
    assert stations.jobs() == [JobState.RETRACTED]


def test_the_profile_says_how_a_peer_is_told(stations, run, job_id):
    deliver(stations, "pacs")
    deliver(stations, "archive")
    told = run("retract", job_id, *REASON, answer="n\n").stderr
    assert "archive has or may have SEG, SR: it gets a report and a picture that say RETRACTED" in told
    assert run("retract", job_id, *REASON, "--yes").exit_code == 0
    orders_ = {tuple(row.peers): row.kind for row in stations.rows(schema.notice)}
    assert orders_ == {("archive",): "retracted", ("pacs",): "rejection"}


def test_a_pipeline_s_results_of_a_span_of_time(stations, sender, files, run, job_id):
    sender.send("2", [1, 2])
    later, _ = stations.enqueue(stations.work(stations.complete("2")))
    finish_with(stations, files, SEG_AND_SR)
    with stations.database.write() as connection:
        old = schema.result.c.job_id == job_id
        connection.execute(sa.update(schema.result).where(old).values(created_at=now() - timedelta(days=1)))
    found = run("retract", "--pipeline", "ct-lung", "--since", "2h", *REASON, "--yes", "--json")
    assert [one["job_id"] for one in json.loads(found.stdout)["retracted"]] == [later]
    assert stations.job(job_id).state == JobState.DONE
    since, until = now().astimezone().strftime("%Y-%m-%d"), "1h"
    assert run("retract", "--pipeline", "ct-lung", "--since", since, *REASON, "--yes").exit_code == 2
    done = run("retract", "--pipeline", "ct-lung", "--since", "3d", "--until", until, *REASON, "--yes")
    assert done.exit_code == 0, done.output
    assert stations.jobs() == [JobState.RETRACTED] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name either jobs, or a --pipeline"),
        (("--pipeline", "ct-lung"), "say since when"),
        ((1, "--since", "2h"), "belong to --pipeline"),
        (("--pipeline", "ct-lung", "--since", "yesterday"), "'yesterday' is no time: give 2h"),
        ((99, "--yes"), "there is no job 99"),
        (("--pipeline", "ct-lung", "--since", "2h"), "has made no results in that time"),
    ],
)
def test_what_is_typed_amiss_is_said_in_words(run, words, said):
    found = run("retract", *words, *REASON)
    assert found.exit_code == 2
    assert said in found.output


def test_status_and_jobs_show_it(stations, files, notary, run, job_id):
    deliver(stations, "pacs")
    run("retract", job_id, *REASON, "--yes")
    made(stations, files, notary)
    assert "1 retracted" in run("status").output
    shown = run("jobs", job_id).output
    assert "retracted: retracted (quality): wrong weights" in shown
    assert json.loads(run("jobs", job_id, "--json").stdout)["concerns"] == []
    assert "rejection-note" in run("deliveries", "--state", "waiting").output
    assert "retracted" in run("deliveries", "--state", "retracted").output


def test_what_was_cancelled_while_it_was_sent_may_be_there_and_is_withdrawn(stations, files, notary, job_id):
    held = outbox.claim(stations.database, "pacs", ME)
    orders.cancel(stations.database, job_id, actor="operator")
    done = retract(stations, job_id)
    assert done.withdrawn == {"pacs": ("SEG", "SR")}
    for parcel in held.parcels:  # the answer comes after all
        outbox.accepted(stations.database, held, parcel, 0, "stored")
    (note,) = made(stations, files, notary)
    assert listed(note) == set(uids(stations, job_id)[:2])


def test_a_retracted_job_is_run_again_once(stations, job_id):
    deliver(stations, "pacs")
    retract(stations, job_id)
    again = orders.retry(stations.database, job_id, actor="operator")
    with pytest.raises(UserError, match=f"see job {again}, and retry that one"):
        orders.retry(stations.database, job_id, actor="operator")


def test_a_peer_that_has_moved_is_told_where_it_is_now(stations, files, job_id, tmp_path):
    deliver(stations, "pacs")
    retract(stations, job_id)
    moved = {"name": "pacs", "ae_title": "PACS", "host": "192.0.2.9", "port": 11}
    config = Config.model_validate({"store": {"folder": tmp_path / "store"}, "peer": [moved]})
    made(stations, files, Notary(config, stations.database, files, ME))
    (row,) = [one for one in stations.rows(schema.delivery) if one.state == DeliveryState.WAITING]
    assert (row.host, row.port) == ("192.0.2.9", 11)
