"""What becomes of instances where the disk is full or lies, the index is large, or two do the same at once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from listening_bed import until
from raw_peer import PATIENCE, RJ, RawPeer, associate_rq, command, data_set, pdv, store, store_command
from stations import Sender

from pacs_ai.dicom import commitment, status
from pacs_ai.receive import desk, space
from pacs_ai.receive.desk import HELD_BYTES, SERVICE_THREADS, THREADS
from pacs_ai.receive.guard import Bounds
from pacs_ai.receive.problem import Problems
from pacs_ai.receive.service import N_ACTION_RQ, Answer
from pacs_ai.store import schema, views
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files

TESTS = Path(__file__).parents[1]


def test_STO_01_a_full_disk_is_out_of_resources_and_leaves_nothing_half_written(tmp_path):
    """Store and database on a tmpfs of 8 MB, in a mount namespace of its own."""
    disk = f"mount -t tmpfs -o size=8m tmpfs {tmp_path} && exec {sys.executable} {TESTS / 'full_disk.py'} {tmp_path}"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", disk],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"FULL DISK NOT TESTED: no mount namespace here ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    answers = told.pop("answers")
    assert set(answers["before"]) == set(answers["after"]) == {0x0000}
    assert {status & 0xFF00 for status in answers["full"]} == {0xA700}
    assert {status & 0xFF00 for status in answers["no room for the commit"]} <= {0x0000, 0xA700}
    assert answers["no room for the commit"][-1] & 0xFF00 == 0xA700
    assert told == {"lost": [], "half": [], "damaged": []}


def test_STO_02_below_the_watermark_nothing_is_written_and_others_are_answered(make_bed):
    room = threading.Event()
    bed = make_bed(has_free_space=room.is_set)
    peer = bed.peer().associate()
    for _ in range(2):
        peer.send(store(data_set(pixels=300_000), "1.2.3"))
        assert peer.status() & 0xFF00 == 0xA700
        assert bed.stored() == []
        assert bed.is_served()
    room.set()
    peer.send(store(data_set(pixels=300_000), "1.2.3"))
    assert peer.status() == 0x0000


@pytest.fixture
def failing():
    """Return a context in which calls of the operating system fail with a number of `errno`."""

    @contextmanager
    def failing(number, *names):
        def fail(*_args, **_named):
            raise OSError(number, os.strerror(number))

        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(os, name, fail)
            yield

    return failing


def _sent(peer, uid, pixels=300_000):
    peer.send(store(data_set(uid, pixels=pixels), uid))
    return peer.status()


def test_STO_03_after_a_sync_that_failed_nobody_is_answered_success_by_this_process(bed, failing):
    peer = bed.peer().associate()
    assert _sent(peer, "1.2.3.1") == 0x0000
    with failing(errno.EIO, "fsync", "fdatasync"):
        assert _sent(peer, "1.2.3.2") & 0xFF00 == 0xA700
        assert bed.is_served()
    assert _sent(peer, "1.2.3.2") & 0xFF00 == 0xA700  # a sync that works again proves nothing of what was lost
    assert _sent(bed.peer().associate(), "1.2.3.3") & 0xFF00 == 0xA700
    assert bed.is_served()
    assert [arrival.header.sop_instance_uid for arrival in bed.arrivals] == ["1.2.3.1"]


@pytest.mark.parametrize("pixels", [300, 3_000_000], ids=["short", "long"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENAMETOOLONG, errno.EDQUOT])
def test_STO_04_what_the_disk_does_not_take_is_answered_A700_until_it_does(bed, failing, number, pixels):
    """No inodes, a disk that became read-only, no descriptors, a name that is too long, a quota."""
    peer = bed.peer().associate()
    with failing(number, "open", "write", "pwrite"):
        for _ in range(2):
            assert _sent(peer, "1.2.3.1", pixels) & 0xFF00 == 0xA700
        assert bed.is_served()
    assert bed.arrivals == []
    assert _sent(peer, "1.2.3.1", pixels) == 0x0000
    assert len(bed.arrivals) == 1


def test_STO_05_the_same_instance_from_32_peers_at_once_is_one_file(bed):
    encoded, answers = store(data_set(pixels=100_000), "1.2.3"), []

    def send(number: int) -> None:
        with RawPeer(bed.receiver.port) as peer:
            peer.associate(associate_rq(calling=f"SENDER{number}".encode()))
            peer.send(encoded)
            answers.append(peer.status())
            peer.release()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [0x0000] * 32
    assert len(bed.stored()) == 1
    assert len({arrival.sha256 for arrival in bed.arrivals}) == 1


def test_STO_06_other_content_under_one_uid_is_kept_beside_the_first(bed):
    peer = bed.peer().associate()
    for pixels in (64, 128):
        peer.send(store(data_set("1.2.3", pixels=pixels), "1.2.3"))
        assert peer.status() == 0x0000
    assert len(bed.stored()) == 2


def test_STO_08_a_million_files_lie_in_folders_of_a_few_thousand(tmp_path):
    files = Files(tmp_path / "files")
    folders = Counter(files.path(hashlib.sha256(str(n).encode()).hexdigest()).parent for n in range(100_000))
    assert max(folders.values()) * 10 < 10_000


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.nightly)], ids=["20k", "1M"])
def test_STO_08_a_study_of_very_many_instances_is_listed_and_added_to_at_once(sqlite_template, tmp_path, count):
    path = tmp_path / "pacs_ai.sqlite"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    sender = Sender(database, tmp_path / "files")
    sender.send(numbers=[0])
    with database.write() as connection:
        (one,) = connection.execute(sa.select(schema.instance)).mappings()
        like_it = {key: value for key, value in one.items() if key != "id"}
        rows = [
            like_it | {"sop_instance_uid": f"1.9.{n}", "sha256": hashlib.sha256(str(n).encode()).hexdigest()}
            for n in range(count)
        ]
        connection.execute(sa.insert(schema.instance), rows)
        connection.execute(sa.update(schema.series).values(instances=count + 1))
    begun = time.process_time()
    with database.read() as connection:
        (study,) = views.studies(connection)
    assert study.series[0].instances == count + 1
    sender.send(numbers=[1, 0])
    assert time.process_time() - begun < 5.0
    database.close()


def test_STO_12_whatever_the_umask_only_the_owner_may_look(make_bed):
    before = os.umask(0)
    try:
        bed = make_bed()
        peer = bed.peer().associate()
        peer.send(store(data_set(pixels=3_000_000), "1.2.3"))
        assert peer.status() == 0x0000
    finally:
        os.umask(before)
    for path in [bed.files.folder, *bed.files.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.fixture
def hanging():
    """Return a context in which calls of the operating system hang."""

    @contextmanager
    def hanging(*names):
        goes_on = threading.Event()

        def held_up(real):
            def wait(*arguments, **named):
                assert goes_on.wait(PATIENCE)
                return real(*arguments, **named)

            return wait

        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(os, name, held_up(getattr(os, name)))
            try:
                yield
            finally:
                goes_on.set()

    return hanging


@pytest.fixture
def make_space(tmp_path, monkeypatch):
    """Return what asks for free space, ten times as often, and believes an answer for three seconds."""
    monkeypatch.setattr(space, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(space, "OLD_SECONDS", 3.0)
    made = []

    def make(least_bytes=0.0, least_share=0.0):
        made.append(space.FreeSpace(Files(tmp_path / "space"), least_bytes, least_share))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()
        assert not each._thread.is_alive()


@pytest.mark.parametrize(("watermark", "has_room"), [((0.0, 0.0), True), ((1e18, 0.0), False), ((0.0, 1.1), False)])
def test_STO_02_the_watermark_is_in_bytes_and_as_a_share(make_space, watermark, has_room):
    assert make_space(*watermark)() is has_room


def test_STO_13_a_file_system_that_does_not_say_what_is_free_holds_up_nobody(make_bed, make_space, hanging, caplog):
    bed = make_bed(has_free_space=(free := make_space()))
    peer = bed.peer().associate()
    assert _sent(peer, "1.2.3.1") == 0x0000
    with hanging("statvfs"):
        until(lambda: free() is None)
        for _ in range(2):
            assert _sent(peer, "1.2.3.2") & 0xFF00 == 0xA700
            assert bed.is_served()
    until(lambda: free() is True)
    assert _sent(peer, "1.2.3.2") == 0x0000
    assert caplog.text.count("instance from SENDER not taken: the disk does not answer") == 2


def test_STO_04_where_free_space_cannot_be_asked_for_nothing_is_received(make_space, failing, caplog):
    free = make_space()
    with failing(errno.EIO, "statvfs"):
        until(lambda: free() is None)
        until(lambda: "nothing is received: Input/output error" in caplog.text)
    until(lambda: free() is True)
    assert caplog.text.count("free space cannot be asked for") == 1


#: More senders than threads that could hang.
MANY = THREADS + 4
#: After which an instance is overdue while the disk hangs; a slow disk that goes on again takes each in this time.
ANSWER_SECONDS = 4.0


def _is_idle(receiver):
    desk = receiver._desk
    return desk.held == desk.overdue == receiver._pool._work_queue.qsize() == 0


def _inside(receiver):
    """Return the connections that have a request under way."""
    return [one for one in list(receiver._acceptor._connections) if one.exchange and one.exchange._message]


def _send_all(receiver, peers, requests):
    """Send requests of which all have begun before one can be overdue."""
    for peer, request in zip(peers, requests, strict=True):
        peer.send(request[:1000])
    until(lambda: len(_inside(receiver)) == len(peers))
    for peer, request in zip(peers, requests, strict=True):
        peer.send(request[1000:])


def test_STO_13_while_the_disk_hangs_each_sender_has_one_instance_in_memory_at_most(make_bed, hanging, caplog):
    bed = make_bed(bounds=Bounds(answer_seconds=ANSWER_SECONDS))
    peers = [bed.peer().associate() for _ in range(MANY)]
    receiver = bed.receiver
    with hanging("fsync", "fdatasync"):
        for turn in range(5):
            uids = [f"1.2.{turn}.{number + 1}" for number in range(MANY)]
            _send_all(receiver, peers, [store(data_set(uid, pixels=900_000), uid) for uid in uids])
            assert {peer.status() for peer in peers} == {status.OUT_OF_RESOURCES}
            assert receiver._desk.overdue == MANY
            assert MANY * 900_000 < receiver._desk.held < MANY * 901_000, "what the threads have counts"
            assert receiver._pool._work_queue.qsize() <= MANY
            assert bed.is_served()
    assert caplog.text.count("instance from SENDER not stored in time") == MANY
    assert caplog.text.count(f"instance from SENDER not taken: {MANY} are overdue") == 4 * MANY
    until(lambda: _is_idle(receiver))
    for number, peer in enumerate(peers):
        assert _sent(peer, f"1.2.9.{number + 1}") == 0x0000
    until(lambda: _is_idle(receiver))


def test_STO_13_who_is_aborted_because_the_disk_hangs_cannot_fill_the_memory_by_coming_again(make_bed, hanging):
    bed = make_bed(bounds=Bounds(answer_seconds=ANSWER_SECONDS))
    receiver, long = bed.receiver, store(data_set(pixels=4 << 20), "1.2.3")
    with hanging("open"):
        peers = [bed.peer().associate() for _ in range(MANY)]
        _send_all(receiver, peers, [long[: 2 * HELD_BYTES + 300_000]] * MANY)
        assert all(peer.is_aborted(0) for peer in peers)
        held = receiver._desk.held
        assert MANY * HELD_BYTES <= held < 2 * MANY * HELD_BYTES
        assert receiver._desk.overdue == MANY
        until(lambda: receiver.associations == 0)
        again = [bed.peer().associate() for _ in range(MANY)]
        for peer in again:
            peer.send(long)
            assert peer.status() == status.OUT_OF_RESOURCES
        assert receiver._desk.held == held
    until(lambda: _is_idle(receiver))
    assert bed.stored() == []
    assert {_sent(peer, "1.2.3", 4 << 20) for peer in again} == {0x0000}
    until(lambda: _is_idle(receiver))


def test_STO_13_all_instances_under_way_hold_no_more_than_a_bound_and_then_each_a_little(
    make_bed, hanging, monkeypatch
):
    monkeypatch.setattr(desk, "HELD_IN_ALL_BYTES", 4 << 20)
    bed = make_bed(bounds=Bounds(network_seconds=PATIENCE, answer_seconds=PATIENCE))
    receiver, count, piece = bed.receiver, THREADS - 2, 16 << 10
    peers, statuses = [bed.peer().associate() for _ in range(count)], []

    encoded = data_set(pixels=3 << 20)
    pieces = [encoded[start : start + piece] for start in range(0, len(encoded), piece)]
    request = pdv(store_command(), 3) + b"".join(pdv(each, 0) for each in pieces) + pdv(b"", 2)

    def send(peer):
        peer.send(request)
        statuses.append(peer.status())

    senders = [threading.Thread(target=send, args=(peer,)) for peer in peers]
    with hanging("open"):
        for sender in senders:
            sender.start()
        until(lambda: [one.exchange.is_full for one in _inside(receiver)] == [True] * count)
        # what is lent, and as much again; before the bound is met each may have had its whole share
        assert receiver._desk.held < (4 << 20) + 2 * HELD_BYTES + count * 2 * (desk._SMALL_HELD_BYTES + piece)
        assert receiver._desk.held < count * HELD_BYTES
        assert receiver._desk.most == receiver._desk.most_of_a_service == desk._SMALL_HELD_BYTES
        assert bed.is_served()
    for sender in senders:
        sender.join()
    assert statuses == [0x0000] * count
    until(lambda: _is_idle(receiver))
    assert receiver._desk.most == HELD_BYTES


@pytest.mark.parametrize("length", [900_000, HELD_BYTES + 300_000], ids=["whole", "amid"])
def test_STO_13_who_breaks_off_while_the_disk_hangs_keeps_his_place_until_it_goes_on(make_bed, hanging, length):
    bed = make_bed(maximum_associations_per_peer=4)
    receiver = bed.receiver
    pixels = 64 << 10 if length < HELD_BYTES else 4 << 20
    with hanging("open"):
        for turn in range(4):
            peer = bed.peer().associate()
            peer.send(store(data_set(pixels=pixels), "1.2.3")[:length])
            until(lambda turn=turn: sum(one.exchange._message.lent > 0 for one in _inside(receiver)) == 1)
            peer.reset()
            until(lambda: not _inside(receiver))
            assert receiver.associations == turn + 1
        late = bed.peer()
        late.send(associate_rq())
        assert late.next_pdu()[:1] == bytes((RJ,))
        assert bed.is_served()
    until(lambda: receiver.associations == 0)
    until(lambda: _is_idle(receiver))
    until(lambda: len(bed.stored()) == (length < HELD_BYTES))


@pytest.mark.parametrize("length", [900_000, HELD_BYTES + 300_000], ids=["whole", "amid"])
def test_STO_13_who_breaks_off_while_the_disk_hangs_and_does_not_wait_is_overdue_all_the_same(
    make_bed, hanging, caplog, length
):
    """Else nobody would know that it hangs, and who tries again and again would take all places."""
    bed = make_bed(bounds=Bounds(answer_seconds=ANSWER_SECONDS))
    receiver, problems = bed.receiver, Problems(bed.ingest, bed.receiver)
    pixels = 64 << 10 if length < HELD_BYTES else 4 << 20
    with hanging("open"):
        for number in range(MANY):
            peer, uid = bed.peer().associate(), f"1.2.3.{number + 1}"
            peer.send(store(data_set(uid, pixels=pixels), uid)[:length])
            until(lambda: any(one.exchange._message.lent for one in _inside(receiver)))
            peer.reset()
            until(lambda: not _inside(receiver))
        until(lambda: receiver.associations == 0)
        assert receiver._desk.overdue == MANY
        assert receiver.hangs
        assert "the disk answers to no write" in problems.look()
        assert bed.is_served()
        late = bed.peer().associate()
        assert _sent(late, "1.2.4") == status.OUT_OF_RESOURCES
    assert caplog.text.count("instance from SENDER not stored in time") == MANY
    until(lambda: _is_idle(receiver))
    assert not receiver.hangs
    until(lambda: len(bed.stored()) == (MANY if length < HELD_BYTES else 0))
    assert _sent(late, "1.2.4") == 0x0000


def test_STO_13_other_services_that_hang_hold_no_more_either_and_keep_no_instance_waiting(make_bed):
    goes_on, served = threading.Event(), []

    def serve(request):
        served.append(request)
        assert goes_on.wait(PATIENCE)
        return Answer(status.SUCCESS)

    services = {(commitment.SOP_CLASS_UID, N_ACTION_RQ): serve}
    bed = make_bed(bounds=Bounds(answer_seconds=ANSWER_SECONDS), services=services)
    asking = associate_rq(contexts=[(1, commitment.SOP_CLASS_UID, ("1.2.840.10008.1.2.1",))])
    peers = [bed.peer().associate(asking) for _ in range(MANY)]
    sender = bed.peer().associate()
    request = command(N_ACTION_RQ, commitment.SOP_CLASS_UID, uid="1.2.3", has_data=True)
    asked = pdv(request, 3) + pdv(bytes(100_000), 0) * 9 + pdv(b"", 2)
    desk = bed.receiver._desk
    for turn in range(3):
        _send_all(bed.receiver, peers, [asked] * MANY)
        assert {peer.status() for peer in peers} == {status.RESOURCE_LIMITATION}
        assert (desk.held, desk.services_overdue, desk.overdue) == (MANY * 900_000, MANY, 0)
        assert _sent(sender, f"1.2.9.{turn}") == 0x0000
    goes_on.set()
    until(lambda: _is_idle(bed.receiver) and desk.services_overdue == 0)
    assert len(served) == SERVICE_THREADS, "what was answered before its turn came is not done"
    peers[0].send(asked)
    assert peers[0].status() == 0x0000
