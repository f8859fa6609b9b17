"""The checker itself: it finds what was broken by hand, and says nothing of a store that is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sqlite3

import pytest

from prove import bench, checker, held


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with one delivered series, and its journals."""
    made = bench.Bench(tmp_path_factory.mktemp("checker"))
    store, peers = made.new_store(), made.new_peers(3, is_rude=False)
    peers.begin_series(3)
    made.settle(store, peers)
    peers.close()
    return store, peers.journals


@pytest.fixture
def copy(whole, tmp_path):
    """A copy to break."""
    import shutil

    store, journals = whole
    shutil.copytree(store, tmp_path / "store")
    for field in dataclasses.fields(journals):
        shutil.copy(getattr(journals, field.name), tmp_path / field.name)
    return tmp_path / "store", held.Journals.within(tmp_path)


def _sql(store, *statements):
    connection = sqlite3.connect(store / "pacs_ai.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def _other(uid):
    return uid[:-1] + str((int(uid[-1]) + 1) % 10)


def _numbers(found):
    return {words.split()[0] for words in found}


def test_a_whole_store_keeps_every_promise(whole):
    assert checker.violations(*whole) == []


def test_a_lost_file_is_found(copy):
    store, journals = copy
    ack = journals.lines(journals.acks)[0]
    connection = sqlite3.connect(store / "pacs_ai.sqlite")
    (sha256,) = connection.execute("SELECT sha256 FROM instance WHERE sop_instance_uid = ?", (ack["uid"],)).fetchone()
    connection.close()
    (store / "files" / sha256[:2] / sha256).write_bytes(b"torn")
    assert {"I1", "I2"} <= _numbers(checker.violations(store, journals))
    assert checker.damaged_names(store) != []


@pytest.mark.parametrize("is_gone", [False, True], ids=["torn", "gone"])
def test_a_lost_result_is_found(copy, is_gone):
    """What it says cannot be looked at any more."""
    store, journals = copy
    sha256 = held.Store(store).rows["result"][0]["sha256"]
    path = store / "files" / sha256[:2] / sha256
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(b"torn")
    assert "I2" in _numbers(checker.violations(store, journals))


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("DELETE FROM journal WHERE event = 'finished'", "I9"),
        ("UPDATE job SET state = 'running'", "I5"),
        ("UPDATE job SET fence = 7", "I9"),
        ("UPDATE delivery SET state = 'waiting'", "I6"),
        ("DELETE FROM delivery", "I6"),
        ("DELETE FROM delivery", "I9"),
        ("DELETE FROM job_destination", "I6"),
        ("UPDATE journal SET subject_id = 99 WHERE id IN (SELECT max(id) FROM journal WHERE subject = 'job')", "I9"),
        ("UPDATE result SET sop_instance_uid = '1.2.' || id", "I6"),
        ("UPDATE instance SET sop_instance_uid = '1.2.' || id", "I1"),
        ("DELETE FROM job_source", "I4"),
        ("UPDATE journal SET actor = 'another' WHERE event = 'finished'", "I5"),
        ("UPDATE association_series SET arrivals = arrivals - 1", "I12"),
        ("DELETE FROM association", "I12"),
        ("UPDATE association SET ended_at = NULL", "I12"),
        ("UPDATE association_series SET arrivals = arrivals + 1", "I14"),
        ("UPDATE series SET arrivals = arrivals + 1", "I14"),
        ("UPDATE delivery SET state = 'sent', confirmed_at = NULL", "I8"),
        ("UPDATE instance SET pledged_at = NULL", "I15"),
        ("UPDATE pledge SET ended_at = NULL", "I15"),
    ],
)
def test_what_the_tables_should_not_say_is_found(copy, statement, number):
    store, journals = copy
    _sql(store, statement)
    assert number in _numbers(checker.violations(store, journals))


def test_nothing_delivered_at_all_is_found(copy):
    """The node does not know of it either: nothing in its tables speaks of a delivery."""
    store, journals = copy
    _sql(
        store,
        *(f"DELETE FROM {where}" for where in ("delivery", "job_destination", "journal WHERE subject='delivery'")),
    )
    journals.kept.write_text("")
    assert _numbers(checker.violations(store, journals)) == {"I6"}


def test_a_result_that_the_destination_never_got_is_found(copy):
    """Though the node calls all that it remembers delivered."""
    store, journals = copy
    last = "(SELECT max(id) FROM delivery)"
    _sql(
        store,
        f"DELETE FROM journal WHERE subject='delivery' AND subject_id={last}",
        f"DELETE FROM delivery WHERE id={last}",
    )
    journals.kept.write_text("".join(json.dumps(one) + "\n" for one in journals.lines(journals.kept)[:1]))
    assert _numbers(checker.violations(store, journals)) == {"I6"}


@pytest.mark.parametrize("subject", ["series", "job", "delivery"])
@pytest.mark.parametrize(
    "which", ["1", "id IN (SELECT min(id) FROM journal WHERE after <> '' GROUP BY subject, subject_id)"]
)
def test_a_life_without_its_beginning_is_found(copy, subject, which):
    store, journals = copy
    _sql(store, f"DELETE FROM journal WHERE subject = '{subject}' AND {which}")
    assert "I9" in _numbers(checker.violations(store, journals))


@pytest.mark.parametrize("what", ["state = 'confirmed'", "confirmed_at = 1"])
def test_what_is_confirmed_and_not_there_is_found(copy, what):
    store, journals = copy
    _sql(store, f"UPDATE delivery SET {what}")
    found = _numbers(checker.violations(store, journals))
    assert "I8" not in found
    kept = journals.lines(journals.kept)
    journals.kept.write_text("".join(json.dumps(one) + "\n" for one in kept[1:]))
    assert "I8" in _numbers(checker.violations(store, journals))


@pytest.mark.parametrize(
    "say",
    [
        lambda told: [],
        lambda told: [{**told, "kept": told["kept"][1:]}],
        lambda told: [{**told, "kept": [], "failed": told["kept"]}],
    ],
    ids=["nothing", "less", "not kept"],
)
def test_a_sender_that_was_not_told_what_is_kept_is_found(copy, say):
    store, journals = copy
    (told,) = journals.lines(journals.told)
    journals.told.write_text("".join(json.dumps(one) + "\n" for one in say(told)))
    assert _numbers(checker.violations(store, journals)) == {"I15"}


@pytest.mark.parametrize(("name", "held"), [("0" * 32, b"ahead  1"), (f"{'0' * 64}.dcm", b"DICM")])
def test_what_is_only_in_a_segment_or_was_set_aside_is_found(copy, name, held):
    store, journals = copy
    folder = store / "ahead"
    folder.mkdir(exist_ok=True)
    (folder / ("1" * 32)).write_bytes(bytes(8192))
    assert checker.violations(store, journals) == []
    (folder / name).write_bytes(held + bytes(8192))
    assert _numbers(checker.violations(store, journals)) == {"I1"}


def test_other_bytes_at_the_destination_are_found(copy):
    store, journals = copy
    kept = journals.lines(journals.kept)
    kept[0]["sha256"] = "0" * 64
    journals.kept.write_text("".join(json.dumps(one) + "\n" for one in kept))
    assert "I6" in _numbers(checker.violations(store, journals))


@pytest.mark.parametrize("of", ["instance", "result"])
@pytest.mark.parametrize("same_uid", [False, True])
def test_a_file_that_no_row_names_is_found_unless_it_is_a_result_that_a_superseded_job_left(copy, of, same_uid):
    store, journals = copy
    with contextlib.closing(sqlite3.connect(store / "pacs_ai.sqlite")) as database:
        named, uid = database.execute(f"SELECT sha256, sop_instance_uid FROM {of} LIMIT 1").fetchone()
    raw = (store / "files" / named[:2] / named).read_bytes()
    raw = raw[:-1] + bytes([raw[-1] ^ 1]) if same_uid else raw.replace(uid.encode(), _other(uid).encode())
    sha256 = hashlib.sha256(raw).hexdigest()
    (store / "files" / sha256[:2] / sha256).write_bytes(raw)
    assert _numbers(checker.violations(store, journals)) == {"I13"}
    _sql(store, "UPDATE job SET state = 'superseded'")
    excused = of == "result" and not same_uid
    assert ("I13" in _numbers(checker.violations(store, journals))) != excused


def test_a_job_begun_twice_under_one_number_is_found(copy):
    store, journals = copy
    journals.claims.write_text(journals.claims.read_text() * 2)
    assert "I5" in _numbers(checker.violations(store, journals))


def test_other_results_than_without_faults_are_found(copy):
    store, journals = copy
    twin = checker.results_of(held.Store(store))
    assert checker.violations(store, journals, twin) == []
    assert "I11" in _numbers(checker.violations(store, journals, {series: ["1.2"] for series in twin}))


def test_a_result_that_names_an_image_that_was_not_read_is_found(copy):
    store, journals = copy
    _sql(store, "UPDATE instance SET series_id = 99 WHERE id = 1")
    assert "I7" in _numbers(checker.violations(store, journals))


def test_a_node_that_starts_once_more_changes_nothing(whole, tmp_path):
    """As a person who compares the two would see it, and as the harness does."""
    made = bench.Bench(tmp_path)
    store, peers = made.new_store(), made.new_peers(4)
    peers.begin_series(3)
    made.settle(store, peers)
    assert made.violations(store, peers) == []
    peers.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE instance SET received_at = received_at + 1",
        "UPDATE series SET arrivals = arrivals + 1",
        "UPDATE job SET fence = fence + 1",
        "DELETE FROM delivery",
        "UPDATE journal SET reason = reason || '.' WHERE subject = 'job'",
    ],
)
def test_a_second_recovery_that_changes_anything_is_found(copy, statement):
    store, _ = copy
    before = checker.picture(store)
    columns = "owner, kind, detail, host, pid, started_at, seen_at, settled, given_up, problem"
    _sql(store, f"INSERT INTO process ({columns}) VALUES ('o', 'receive', '', 'h', 1, 1, 1, 1, 0, '')")
    assert checker.recovered(before, checker.picture(store)) == []
    _sql(store, statement)
    assert _numbers(checker.recovered(before, checker.picture(store))) == {"I10"}


@pytest.mark.parametrize("place", ["files/00", "scratch/1"])
def test_a_second_recovery_that_leaves_a_file_is_found(copy, place):
    store, _ = copy
    before = checker.picture(store)
    (store / place).mkdir(parents=True, exist_ok=True)
    (store / place / "left").write_bytes(b"x")
    assert _numbers(checker.recovered(before, checker.picture(store))) == {"I10"}


def test_a_recovery_that_takes_too_long_is_found():
    assert checker.in_time(9.9, 0) == checker.in_time(59.9, 10_000) == []
    assert [_numbers(checker.in_time(*late)) for late in ((10.1, 0), (60.1, 10_000))] == [{"I10"}] * 2
