"""What is written ahead is there again after the process has died, and nothing else is."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import Header
from pacs_ai.errors import OutOfResources
from pacs_ai.store import aside, segments
from pacs_ai.store.ahead import Ahead
from pacs_ai.store.disk import Disk
from pacs_ai.store.files import Files
from pacs_ai.store.segments import Place

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


def arrival(content: bytes, number: int = 1) -> Arrival:
    values = {"SOPInstanceUID": f"1.2.{number}", "PatientName": "Müller^\N{GREEK SMALL LETTER ALPHA}"}
    return Arrival(
        header=Header(MappingProxyType(values)),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        calling_ae_title="SENDER",
        called_ae_title="PACS_AI",
        address="127.0.0.1",
        assoc_id="a" * 32,
        priority=1,
        received_at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    )


def make(folder: Path, segments: int = 2) -> Ahead:
    return Ahead(folder / "ahead", Disk(folder), segment_bytes=SIZE, most=segments)


def keep(ahead: Ahead, content: bytes, number: int = 1) -> Place:
    told: list[Place | OutOfResources] = []
    assert ahead.keep(arrival(content, number), (content[:7], bytearray(content[7:])), told.append)
    assert len(told) == 1
    assert isinstance(told[0], Place), told[0]
    return told[0]


def content(number: int, size: int = 10_000) -> bytes:
    return bytes([number]) * size


def left(folder: Path) -> list[str]:
    """Return what another process would find, by SOP Instance UID; the segments are let go of again, as they are."""
    ahead = make(folder)
    found = [one.header.sop_instance_uid for one, _ in ahead.left]
    forget(ahead)
    return found


def forget(ahead: Ahead) -> None:
    """Leave the segments as a killed process does."""
    held = [*ahead._free, *ahead._full, *([ahead._active] if ahead._active else [])]
    for segment in held:
        os.close(segment.descriptor)


def test_what_was_kept_is_found_by_the_next_process_word_for_word(tmp_path: Path):
    ahead = make(tmp_path)
    for number in (1, 2, 3):
        keep(ahead, content(number, 4096 * number), number)
    forget(ahead)
    again = make(tmp_path)
    assert [one for one, _ in again.left] == [arrival(content(n, 4096 * n), n) for n in (1, 2, 3)]
    files = Files(tmp_path / "files")
    for one, stored in zip(
        again.left, files.copy([place.source(one.sha256) for one, place in again.left]), strict=True
    ):
        assert stored.path == files.path(one[0].sha256)
        assert files.verify(stored.sha256)
    assert list((files.folder / ".new").iterdir()) == []
    again.done([place for _, place in again.left])
    again.close()
    assert left(tmp_path) == []


def test_STO_12_segments_are_for_the_owner_alone(tmp_path: Path):
    ahead = make(tmp_path)
    assert stat.S_IMODE((tmp_path / "ahead").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ahead").iterdir()] == [0o600]
    ahead.close()


@pytest.mark.parametrize("where", ["head", "words", "file", "last byte"])
def test_a_torn_record_ends_the_reading(tmp_path: Path, where: str):
    ahead = make(tmp_path)
    places = [keep(ahead, content(number), number) for number in (1, 2, 3)]
    torn = places[1]
    offset = {
        "head": places[0].start + places[0].size + 4096 & ~4095,
        "words": torn.start - 200,
        "file": torn.start + 5000,
        "last byte": torn.start + torn.size - 1,
    }[where]
    byte = os.pread(torn.segment.descriptor, 1, offset)
    os.pwrite(torn.segment.descriptor, bytes([byte[0] ^ 1]), offset)
    forget(ahead)
    assert left(tmp_path) == ["1.2.1"]


def test_a_record_of_an_earlier_lap_is_none_of_this_one(tmp_path: Path):
    ahead = make(tmp_path, segments=1)
    ahead.done([keep(ahead, content(number), number) for number in (1, 2, 3)])
    ahead.rest()
    keep(ahead, content(4), 4)
    forget(ahead)
    assert left(tmp_path) == ["1.2.4"]


def test_nothing_that_a_peer_sends_passes_for_a_record(tmp_path: Path):
    ahead = make(tmp_path, segments=1)
    first = keep(ahead, content(1), 1)
    record = os.pread(first.segment.descriptor, 16384, 0)
    ahead.done([first])
    ahead.rest()
    # at every page of what it sends there is a whole record, as it would have been written a lap before
    spoofing = keep(ahead, (bytes(4096) + record) * 10, 2)
    ahead.done([spoofing])
    ahead.rest()
    keep(ahead, content(3), 3)
    forget(ahead)
    assert left(tmp_path) == ["1.2.3"]


def test_where_there_is_no_room_nobody_is_told(tmp_path: Path):
    ahead = make(tmp_path)
    ahead.prepare()
    places = [keep(ahead, content(number, SIZE // 3), number) for number in range(1, 5)]
    told: list[object] = []
    assert not ahead.keep(arrival(content(5, SIZE // 3)), (content(5, SIZE // 3),), told.append)
    assert not ahead.keep(arrival(content(6, SIZE)), (content(6, SIZE),), told.append)
    assert told == []
    ahead.done(places[:2])  # the first segment begins a new lap
    keep(ahead, content(7, SIZE // 3), 7)
    forget(ahead)
    assert left(tmp_path) == ["1.2.3", "1.2.4", "1.2.7"]


def test_no_more_segments_are_made_than_may_be(tmp_path: Path):
    ahead = make(tmp_path, segments=3)
    for _ in range(6):
        ahead.prepare()
    assert len(list((tmp_path / "ahead").iterdir())) == 3
    assert all(path.stat().st_size == SIZE for path in (tmp_path / "ahead").iterdir())
    ahead.close()


def test_a_living_process_keeps_its_segments(tmp_path: Path):
    one = make(tmp_path)
    keep(one, content(1))
    other = make(tmp_path)
    assert other.left == []
    keep(other, content(2), 2)
    one.close()
    other.close()


def test_a_segment_whose_maker_died_is_cleared_away(tmp_path: Path):
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / "half").write_bytes(bytes(SIZE // 2))
    ahead = make(tmp_path)
    assert not (tmp_path / "ahead" / "half").exists()
    ahead.close()


def test_where_nothing_is_to_be_written_ahead_any_more_what_was_is_found(tmp_path: Path):
    ahead = make(tmp_path)
    keep(ahead, content(1), 1)
    forget(ahead)
    none = Ahead(tmp_path / "ahead", Disk(tmp_path), segment_bytes=0, most=0)
    assert len(none.left) == 1
    assert not none.keep(arrival(content(2), 2), (content(2),), lambda _: None)
    none.done([place for _, place in none.left])
    none.close()
    assert list((tmp_path / "ahead").iterdir()) == []


def test_segments_of_another_size_are_read_and_then_cleared_away(tmp_path: Path):
    ahead = make(tmp_path)
    keep(ahead, content(1), 1)
    forget(ahead)
    other = Ahead(tmp_path / "ahead", Disk(tmp_path), segment_bytes=2 * SIZE, most=2)
    other.done([place for _, place in other.left])
    other.close()
    assert {path.stat().st_size for path in (tmp_path / "ahead").iterdir()} == {2 * SIZE}


def test_a_failed_write_is_told_to_all_that_it_concerns_and_the_next_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ahead = make(tmp_path)
    ahead.prepare()
    before = keep(ahead, content(1), 1)

    def failing(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    told: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing)
        assert ahead.keep(arrival(content(2), 2), (content(2),), told.append)
    assert isinstance(told[0], OutOfResources)
    after = keep(ahead, content(3), 3)
    assert after.segment is not before.segment
    forget(ahead)
    assert left(tmp_path) == ["1.2.1", "1.2.3"]


def unforeseen(*_arguments: object) -> int:
    raise MemoryError


def test_an_unforeseen_error_is_told_to_the_whole_batch_and_the_next_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ahead = make(tmp_path, segments=3)
    ahead.prepare()
    ahead.prepare()
    first = keep(ahead, content(1), 1)
    told: list[object] = []
    inside, gate = threading.Event(), threading.Event()

    def slow(*_arguments: object) -> int:
        inside.set()
        gate.wait(60)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", slow)
        one = threading.Thread(target=lambda: ahead.keep(arrival(content(2), 2), (content(2),), told.append))
        one.start()
        assert inside.wait(60)
        for number in (3, 4):  # they wait for the one that writes
            assert ahead.keep(arrival(content(number), number), (content(number),), told.append)
        gate.set()
        one.join(60)
    assert len(told) == 3
    assert all(isinstance(each, OutOfResources) for each in told)
    assert keep(ahead, content(5), 5).segment is not first.segment
    forget(ahead)
    assert left(tmp_path) == ["1.2.1", "1.2.5"]


def test_behind_a_record_that_has_no_head_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ahead = make(tmp_path)
    ahead.prepare()
    first = keep(ahead, content(1), 1)
    with monkeypatch.context() as patch:
        patch.setattr(segments, "head", unforeseen)
        with pytest.raises(MemoryError):
            ahead.keep(arrival(content(2), 2), (content(2),), lambda _: None)
    assert keep(ahead, content(3), 3).segment is not first.segment
    ahead.done([first])
    forget(ahead)
    assert left(tmp_path) == ["1.2.3"]


def test_where_one_cannot_be_told_the_others_are_and_it_is_found_by_the_next_process(tmp_path: Path):
    ahead = make(tmp_path)
    told: list[object] = []

    def forgetful(came: object) -> None:
        told.append(came)
        if len(told) == 1:
            raise MemoryError

    assert ahead.keep(arrival(content(1)), (content(1),), forgetful)
    assert [type(each) for each in told] == [Place, OutOfResources]
    keep(ahead, content(2), 2)
    forget(ahead)
    assert left(tmp_path) == ["1.2.1", "1.2.2"]


def test_an_unforeseen_error_over_a_finished_lap_costs_its_segment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    ahead = make(tmp_path)
    ahead.prepare()
    first = keep(ahead, content(1), 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", unforeseen)
        ahead.done([first])
        ahead.rest()
    assert "a segment is not used again: unexpected MemoryError" in caplog.text
    assert keep(ahead, content(2), 2).segment is not first.segment
    ahead.close()


def test_short_writes_are_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.pwritev
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda fd, parts, at: real(fd, [memoryview(parts[0])[:1000]], at))
        ahead = make(tmp_path)
        keep(ahead, content(1), 1)
    forget(ahead)
    assert left(tmp_path) == ["1.2.1"]


def test_STO_04_a_failed_sync_is_never_believed_nor_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ahead = make(tmp_path)
    synced = []

    def failing(descriptor: int) -> None:
        synced.append(descriptor)
        raise OSError(errno.EIO, "input/output error")

    told: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        assert ahead.keep(arrival(content(1)), (content(1),), told.append)
        assert isinstance(told[0], OutOfResources)
    count = len(synced)
    if ahead.keep(arrival(content(2)), (content(2),), told.append):
        assert isinstance(told[1], OutOfResources)
    assert len(synced) == count
    forget(ahead)


def test_those_that_come_together_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ahead = make(tmp_path)
    real, gate, syncs = os.fdatasync, threading.Event(), []

    def slow(descriptor: int) -> None:
        syncs.append(descriptor)
        gate.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    told: list[object] = []
    threads = [
        threading.Thread(target=lambda n=n: ahead.keep(arrival(content(n), n), (content(n),), told.append))
        for n in range(8)
    ]
    threads[0].start()
    while not syncs:
        threads[0].join(0.01)
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    assert told == []
    gate.set()
    threads[0].join()
    assert len(told) == 8
    assert len(syncs) == 2
    forget(ahead)
    assert sorted(left(tmp_path)) == [f"1.2.{n}" for n in range(8)]


def test_what_can_have_no_row_is_set_aside_for_a_person(tmp_path: Path):
    ahead = make(tmp_path)
    one = arrival(content(1))
    place = keep(ahead, content(1))
    path = ahead.set_aside(one, place)
    assert path.read_bytes() == content(1)
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, path.with_suffix(".json"))} == {0o600}
    assert ahead.was_set_aside() == [path]
    assert aside.arrival_of(path) == one
    ahead.done([place])
    ahead.close()
    again = make(tmp_path)
    assert again.left == []
    assert path.exists()
    again.close()


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ahead, files = make(tmp_path), Files(tmp_path / "files")
    one, place = arrival(content(1)), keep(ahead, content(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
        with pytest.raises(OutOfResources):
            files.copy([place.source(one.sha256)])
    assert list((files.folder / ".new").iterdir()) == []
    assert not files.path(one.sha256).exists()
    files.copy([place.source(one.sha256)] * 2)
    assert files.verify(one.sha256)
    assert list((files.folder / ".new").iterdir()) == []
    ahead.close()


def wiped(ahead: Ahead) -> int:
    """Have all be written over that may be now; return in how many pieces that was looked at."""
    count = 0
    while ahead.wipe():
        count += 1
    return count


def bytes_left(folder: Path) -> set[int]:
    return set().union(*(set(path.read_bytes()) for path in (folder / "ahead").iterdir()))


def test_PRI_01_what_was_used_is_written_over_in_a_quiet_moment_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ahead = make(tmp_path)
    ahead.prepare()
    places = [keep(ahead, content(number, SIZE // 3), number) for number in range(1, 5)]
    assert wiped(ahead) == 0, "a lap is not over yet"
    ahead.done(places)
    assert wiped(ahead) == 0, "instances may be coming"
    ahead.rest()
    assert bytes_left(tmp_path) > {0}
    assert wiped(ahead) == 2
    assert bytes_left(tmp_path) == {0}
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda *_: pytest.fail("written again"))
        assert wiped(ahead) == 0
    ahead.done([keep(ahead, content(5), 5)])
    ahead.rest()
    assert wiped(ahead) == 1
    assert bytes_left(tmp_path) == {0}
    ahead.close()


def test_PRI_01_what_an_earlier_process_used_is_looked_at_once_and_written_over_where_it_is_not_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ahead = make(tmp_path)
    ahead.prepare()
    ahead.done([keep(ahead, content(1), 1)])
    ahead.rest()
    forget(ahead)
    assert bytes_left(tmp_path) > {0}
    written, real = [], os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: written.append(at) or real(fd, parts, at))
    again = make(tmp_path)
    assert wiped(again) == 2
    assert len(written) == 1
    assert bytes_left(tmp_path) == {0}
    again.close()


def test_a_lap_that_begins_while_the_last_is_written_over_is_recovered_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.store.segments._PIECE_BYTES", SIZE // 8)
    for number in range(9):
        folder = tmp_path / str(number)
        folder.mkdir()
        ahead = make(folder)
        ahead.prepare()
        ahead.done([keep(ahead, content(each, SIZE // 4), each) for each in range(1, 7)])
        ahead.rest()
        for _ in range(number):
            ahead.wipe()
        kept = [keep(ahead, content(each, SIZE // 10), each) for each in (7, 8)]
        assert not ahead.wipe()
        assert kept[0].segment is kept[1].segment
        forget(ahead)
        assert left(folder) == ["1.2.7", "1.2.8"]


@pytest.mark.parametrize("why", ["the only one", "short disk"])
def test_nothing_is_written_over_where_there_is_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
):
    ahead = make(tmp_path, segments=1 if why == "the only one" else 2)
    ahead.prepare()
    ahead.done([keep(ahead, content(1), 1)])
    ahead.rest()
    if why == "short disk":
        monkeypatch.setattr(ahead, "_has_space", lambda: False)
    assert wiped(ahead) == 0
    keep(ahead, content(2), 2)
    forget(ahead)


def test_STO_04_what_cannot_be_written_over_is_told_once_and_tried_after_the_next_lap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def failing(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    ahead = make(tmp_path)
    ahead.prepare()
    ahead.done([keep(ahead, content(1), 1)])
    ahead.rest()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing)
        assert wiped(ahead) == wiped(ahead) == 0
    assert caplog.text.count("cannot be written over") == 1
    ahead.done([keep(ahead, content(2), 2)])
    ahead.rest()
    assert wiped(ahead) > 0
    assert bytes_left(tmp_path) == {0}
    ahead.close()


def test_segments_that_nobody_holds_are_taken_over_at_the_second_look_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    mine, other = make(tmp_path), make(tmp_path)
    other.prepare()
    keep(mine, content(1), 1)
    for number in (2, 3, 4, 5):
        keep(other, content(number, SIZE // 3), number)
    assert mine.adopt() == mine.adopt() == []
    forget(other)
    assert mine.adopt() == []
    found = mine.adopt()
    assert [one.header.sop_instance_uid for one, _ in found] == ["1.2.2", "1.2.3", "1.2.4", "1.2.5"]
    assert "took over 2 segments" in caplog.text
    assert mine.adopt() == mine.adopt() == []
    mine.done([place for _, place in found])
    mine.rest()
    keep(mine, content(6), 6)
    forget(mine)
    assert left(tmp_path) == ["1.2.1", "1.2.6"]


def test_of_those_that_are_too_many_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    mine, other = make(tmp_path), make(tmp_path)
    mine.prepare()
    other.prepare()
    other.close()
    assert len(list((tmp_path / "ahead").iterdir())) == 4
    assert mine.adopt() == mine.adopt() == []
    assert len(list((tmp_path / "ahead").iterdir())) == 2
    mine.close()


def test_a_process_that_starts_anew_takes_its_own_before_the_second_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    mine, other = make(tmp_path), make(tmp_path)
    keep(other, content(1), 1)
    forget(other)
    assert mine.adopt() == []
    anew = make(tmp_path)
    assert len(anew.left) == 1
    assert mine.adopt() == mine.adopt() == []
    mine.close()
    forget(anew)


def test_what_cannot_be_opened_or_read_is_told_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    ahead = make(tmp_path)
    keep(ahead, content(1), 1)
    forget(ahead)
    (tmp_path / "ahead" / "0link").symlink_to(tmp_path)
    real = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        again = make(tmp_path)
    assert os.pread is real
    assert again.left == []
    assert "cannot be read" in caplog.text
    assert again.is_unreadable
    keep(again, content(2), 2)
    again.close()


def test_what_lies_before_a_bad_sector_is_found_and_what_lies_behind_is_read_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    ahead = make(tmp_path)
    places = [keep(ahead, content(number), number) for number in (1, 2, 3)]
    forget(ahead)
    real = os.pread

    def broken(descriptor: int, count: int, offset: int) -> bytes:
        if offset <= places[2].start < offset + count:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, count, offset)

    def names(found: list[tuple[Arrival, Place]]) -> list[str]:
        return [one.header.sop_instance_uid for one, _ in found]

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        again = make(tmp_path)
        assert names(again.left) == ["1.2.1", "1.2.2"]
        assert again.is_unreadable
        assert again.adopt() == [], "it holds what is still to be indexed"
        again.done([place for _, place in again.left])
        again.rest()
        again.adopt()
        found = again.adopt()
        assert names(found) == ["1.2.1", "1.2.2"], "read again, in vain"
        again.done([place for _, place in found])
    again.adopt()
    assert names(again.adopt()) == ["1.2.1", "1.2.2", "1.2.3"]
    assert not again.is_unreadable
    assert caplog.text.count("cannot be read") == 1
    again.close()


def test_a_segment_that_cannot_be_opened_is_in_arrears_until_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    ahead = make(tmp_path)
    keep(ahead, content(1), 1)
    forget(ahead)
    real = segments.take

    def denied(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "take", denied)
        again = make(tmp_path)
    assert segments.take is real
    assert again.left == []
    assert again.is_unreadable
    again.adopt()
    assert len(again.adopt()) == 1
    assert not again.is_unreadable
    again.close()
