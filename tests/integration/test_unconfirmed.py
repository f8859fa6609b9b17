"""Results that a peer took and does not confirm: shown to a person, who has it asked again or leaves them so."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from stations import ME

from pacs_ai.cli import main
from pacs_ai.dicom.commitment import Report
from pacs_ai.states import JobEvent
from pacs_ai.store import commitments, journal, orders, unconfirmed
from pacs_ai.store.moves import move

#: What differs between the databases is shown by the other tests.
sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def order(database, make_commitment_bed, make_committer, tmp_path):
    """Give orders on the command line about a peer that was asked in vain; it was put in order since."""
    bed = make_commitment_bed(make_committer(commits=False, queries=False))
    bed.deliver()
    for _ in range(2 * commitments.MOST_ASKS):
        bed.step()
        bed.due()
    assert bed.given_up == {"pacs": 2}
    bed.peer.stop()
    bed.peer.commits = True
    bed.peer.start()
    path = tmp_path / "pacs-ai.toml"

    def give(*words, **peer):
        table = {"ae_title": bed.peer.ae_title, "host": "127.0.0.1", "port": bed.peer.port, "commitment": True} | peer
        lines = [f"{key} = {json.dumps(value)}" for key, value in ({"name": "pacs"} | table).items()]
        path.write_text("\n".join([f'[store]\ndatabase = "{database.engine.url}"', "[[peer]]", *lines]))
        return CliRunner().invoke(main, ["--config", str(path), *words])

    give.bed = bed
    return give


def events(bed):
    with bed.stations.database.read() as connection:
        return [entry.event for entry in journal.of(connection, "delivery", bed.rows[0].id)]


@sqlite
def test_DEL_07_an_operator_has_a_peer_asked_again_that_was_asked_in_vain(order):
    bed = order.bed
    listed = json.loads(order("deliveries", "--unconfirmed", "--json").stdout)
    assert [one["id"] for one in listed] == [bed.rows[1].id, bed.rows[0].id]
    for row in bed.rows:
        assert "is asked again" in order("retry", "--delivery", str(row.id)).output
    assert bed.given_up == {}
    assert bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    assert events(bed)[-3:] == ["unconfirmed", "asked again", "confirmed"]
    assert json.loads(order("deliveries", "--unconfirmed", "--json").stdout) == []


@sqlite
def test_a_peer_that_is_not_asked_to_confirm_is_not_asked_again_either(order):
    done = order("retry", "--delivery", str(order.bed.rows[0].id), commitment=False)
    assert done.exit_code != 0
    assert "is sent: only a held" in done.output
    assert order.bed.given_up == {"pacs": 2}


@sqlite
def test_DEL_07_an_operator_leaves_open_what_nobody_confirms_and_may_still_ask_for_it(order):
    bed = order.bed
    assert order("cancel", str(bed.job)).exit_code == 0
    assert bed.given_up == {}
    assert bed.stations.deliveries() == ["sent", "sent"]
    assert events(bed)[-2:] == ["unconfirmed", "set aside"]
    assert not bed.step()
    for row in bed.rows:
        order("retry", "--delivery", str(row.id))
    assert bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


@sqlite
def test_DEL_07_what_waits_to_be_confirmed_is_shown_after_a_day(make_commitment_bed, make_committer, wall):
    bed = make_commitment_bed(make_committer())
    bed.deliver()
    bed.peer.stop()

    assert bed.unconfirmed.waiting["pacs"][0] == 2
    assert bed.unconfirmed.late == {}
    wall.forward(days=2)
    assert not bed.step()
    assert bed.unconfirmed.late["pacs"][0] == 2


@pytest.mark.parametrize(("peers", "left"), [(["pacs"], ["confirmed"] * 2), ([], ["sent"] * 2)])
@sqlite
def test_only_what_cannot_be_confirmed_is_left_open(make_commitment_bed, make_committer, peers, left):
    bed = make_commitment_bed(make_committer())
    bed.deliver()
    orders.cancel(bed.stations.database, bed.job, actor=ME, peers=peers)
    bed.step()
    assert bed.stations.deliveries() == left


@sqlite
def test_what_a_superseded_job_left_unconfirmed_can_be_set_aside_too(order):
    bed = order.bed
    with bed.stations.database.write() as connection:
        move(connection, bed.job, JobEvent.SUPERSEDED, actor=ME, reason="a newer revision came")
    assert order("cancel", str(bed.job)).exit_code == 0
    assert bed.given_up == {}
    assert "there is nothing to cancel" in order("cancel", str(bed.job)).output


@sqlite
@pytest.mark.parametrize("ends", ["later", "broken off", "no query"])
def test_what_is_set_aside_while_the_peer_is_asked_stays_so(make_commitment_bed, make_committer, wall, ends):
    bed = make_commitment_bed(make_committer())
    bed.deliver()
    database = bed.stations.database
    wall.forward(days=2)
    step = commitments.take(database, "pacs")
    orders.cancel(database, bed.rows[0].job_id, actor=ME, peers=["pacs"])
    if ends == "later":
        commitments.later(database, step, seconds=300.0)
    elif ends == "broken off":
        commitments.broken_off(database, step, "it broke off", seconds=300.0, actor=ME)
    else:
        commitments.unknown(database, step, "it offers no query", actor=ME)
    with database.read() as connection:
        assert unconfirmed.look(connection) == unconfirmed.Unconfirmed()
    assert {row.confirm_at for row in bed.rows} == {None}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_answer_and_a_try_that_breaks_off_do_not_wait_for_each_other(
    make_commitment_bed, make_committer, monkeypatch
):
    bed = make_commitment_bed(make_committer())
    bed.deliver()
    database = bed.stations.database
    for _ in range(commitments.MOST_ASKS - 1):
        commitments.broken_off(database, commitments.take(database, "pacs"), "it broke off", seconds=0.0, actor=ME)
    step = commitments.take(database, "pacs")
    counting, recording = threading.Event(), threading.Event()
    count, of = commitments._count, commitments._of

    def slowly_count(connection, step):
        count(connection, step)
        counting.set()
        recording.wait(1.0)

    def slowly_of(connection, delivery_ids):
        recording.set()
        counting.wait(1.0)
        return of(connection, delivery_ids)

    monkeypatch.setattr(commitments, "_count", slowly_count)
    monkeypatch.setattr(commitments, "_of", slowly_of)
    report = Report(step.transaction_uid, [(one.sop_class_uid, one.sop_instance_uid) for one in step.deliveries], {})
    with ThreadPoolExecutor(2) as pool:
        tried = pool.submit(commitments.broken_off, database, step, "it broke off", seconds=0.0, actor=ME)
        told = pool.submit(commitments.record, database, report, bed.peer.ae_title, actor=ME)
        assert (tried.result(), told.result()) == (0, commitments.Verdict.TAKEN)
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
