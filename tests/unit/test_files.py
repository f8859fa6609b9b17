from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pacs_ai.errors import OutOfResources, UserError
from pacs_ai.store.files import Files, Source


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "store")


def everything(files: Files) -> list[Path]:
    return sorted(path for path in files.folder.rglob("*") if path.is_file())


def fail_with(monkeypatch: pytest.MonkeyPatch, name: str, number: int, *, times: int = 1) -> list[int]:
    real, left = getattr(os, name), [times]

    def failing(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)
    return left


def test_what_was_written_is_read_again_under_the_digest_of_its_bytes(files: Files):
    stored = files.write([b"preamble", memoryview(b"data set")])
    files.sync([stored])
    assert stored.sha256 == hashlib.sha256(b"preambledata set").hexdigest()
    assert stored.size == 16
    assert stored.path == files.folder / stored.sha256[:2] / stored.sha256 == files.path(stored.sha256)
    assert files.read(stored.sha256) == b"preambledata set"
    assert files.verify(stored.sha256)


def test_STO_12_only_the_owner_may_look(files: Files):
    stored = files.write([b"x"])
    assert stat.S_IMODE(stored.path.stat().st_mode) == 0o600
    for folder in (files.folder, stored.path.parent, files.folder / ".new"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_same_bytes_from_32_senders_are_one_file(files: Files):
    with ThreadPoolExecutor(32) as pool:
        stored = set(pool.map(lambda _: files.write([b"same" * 1000]), range(32)))
    assert len(stored) == 1
    assert everything(files) == [next(iter(stored)).path]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", ""])
def test_DAT_01_nothing_but_a_digest_becomes_a_path(files: Files, name: str):
    with pytest.raises(ValueError):
        files.path(name)


def test_file_is_synced_before_its_name_and_the_directory_after(files: Files, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def seen_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    stored = [files.write([b"one"]), files.write([b"one"]), files.write([b"two"])]
    files.sync(stored)
    assert order == ["file", "rename", "file", "rename", "directory", "directory"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.ENFILE])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_STO_04_shortage_is_said_in_words_leaves_nothing_and_passes(
    files: Files, monkeypatch: pytest.MonkeyPatch, call: str, number: int
):
    stored = files.path(hashlib.sha256(b"payload").hexdigest())
    fail_with(monkeypatch, call, number)
    with pytest.raises(OutOfResources, match=str(files.folder)) as caught:
        files.write([b"payload"])
    assert stored.name not in str(caught.value)
    assert everything(files) == []
    assert files.write([b"payload"]).path == stored


def test_rename_without_space_leaves_nothing(files: Files, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutOfResources, match="disk is full"):
            files.write([b"payload"])
    assert everything(files) == []


@contextmanager
def few_descriptors(spare: int):
    """Leave this process so many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[0]), before[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_STO_04_a_shortage_amid_a_batch_leaves_nothing(files: Files, tmp_path: Path):
    """Descriptors run out between looking for one file and the next, as where peers hold all of them."""
    contents = [bytes([number]) * 5000 for number in range(40)]
    (tmp_path / "ahead").write_bytes(b"".join(contents))
    with (tmp_path / "ahead").open("rb") as ahead:
        sources = [
            Source(hashlib.sha256(content).hexdigest(), 5000, ahead.fileno(), 5000 * number)
            for number, content in enumerate(contents)
        ]
        with few_descriptors(20), pytest.raises(OutOfResources, match="too many open files"):
            files.copy(sources)
        assert everything(files) == []
        assert all(files.verify(stored.sha256) for stored in files.copy(sources))


FULL_DISK = """
import sys
from pathlib import Path
from pacs_ai.errors import OutOfResources
from pacs_ai.store.files import Files
files = Files(Path(sys.argv[1]))
stored = []
try:
    for number in range(100):
        stored.append(files.write([bytes([number]) * 100_000]))
except OutOfResources as error:
    assert "disk is full" in str(error), error
assert 5 < len(stored) < 100, len(stored)
assert sorted(path for path in files.folder.rglob("*") if path.is_file()) == sorted(file.path for file in stored)
assert all(files.verify(file.sha256) for file in stored)
assert files.free_bytes() < 100_000
files.remove(stored[0].sha256)
files.write([b"x" * 90_000])
print("held")
"""


def test_STO_01_a_really_full_disk(tmp_path: Path):
    """A tmpfs of 3 MB in a mount namespace of its own."""
    disk = f"mount -t tmpfs -o size=3m tmpfs {tmp_path} && exec {sys.executable} -c '{FULL_DISK}' {tmp_path}/store"
    told = subprocess.run(["unshare", "-rm", "sh", "-c", disk], capture_output=True, text=True, check=False)
    if "unshare" in told.stderr or "mount" in told.stderr:
        pytest.skip(f"FULL DISK NOT TESTED: no mount namespace here ({told.stderr.strip()})")
    assert told.stdout == "held\n", told.stderr


def test_short_writes_are_continued(files: Files, monkeypatch: pytest.MonkeyPatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, rest: write(descriptor, rest[:3]))
    assert files.read(files.write([b"0123456789"]).sha256) == b"0123456789"


@pytest.mark.parametrize("when", ["write", "sync"])
def test_STO_03_after_a_failed_sync_of_the_disk_nothing_more_is_written(
    files: Files, monkeypatch: pytest.MonkeyPatch, when: str
):
    first = files.write([b"first"])
    fail_with(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OutOfResources, match="input/output"):
        files.write([b"second"]) if when == "write" else files.sync([first])
    with pytest.raises(OutOfResources, match="started again"):
        files.write([b"third"])
    with pytest.raises(OutOfResources, match="started again"):
        files.sync([first])
    assert files.read(first.sha256) == b"first"


def test_STO_07_a_bit_flip_is_seen(files: Files):
    stored = files.write([b"payload"])
    stored.path.write_bytes(b"paxload")
    assert not files.verify(stored.sha256)
    stored.path.unlink()
    assert not files.verify(stored.sha256)
    with pytest.raises(FileNotFoundError):
        files.read(stored.sha256)


def test_a_truncated_file_is_written_anew(files: Files):
    stored = files.write([b"payload"])
    stored.path.write_bytes(b"pay")
    files.write([b"payload"])
    assert files.verify(stored.sha256)


@pytest.mark.parametrize("way", ["written", "copied", "in pieces"])
@pytest.mark.parametrize("damage", ["flipped", "link"])
def test_STO_07_a_damaged_file_is_replaced_when_it_comes_again(files: Files, tmp_path: Path, way: str, damage: str):
    stored = files.write([b"payload"])
    if damage == "flipped":
        stored.path.write_bytes(b"paXload")
    else:
        stored.path.unlink()
        stored.path.symlink_to("1234567")
    if way == "written":
        files.write([b"payload"])
    elif way == "copied":
        (tmp_path / "source").write_bytes(b"payload")
        with (tmp_path / "source").open("rb") as source:
            files.copy([Source(stored.sha256, 7, source.fileno(), 0)])
    else:
        incoming = files.incoming()
        incoming.append(b"payload")
        incoming.finish(stored.sha256)
    assert files.verify(stored.sha256)
    assert stat.S_ISREG(stored.path.lstat().st_mode)


def test_adopting_moves_an_encoded_result_in(files: Files, tmp_path: Path):
    result = tmp_path / "result.dcm"
    result.write_bytes(b"SEG" * 1_000_000)
    stored = files.adopt(result)
    assert not result.exists()
    assert stored.size == 3_000_000
    assert files.verify(stored.sha256)
    assert stat.S_IMODE(stored.path.stat().st_mode) == 0o600


def test_STO_12_a_link_in_the_store_is_not_followed(files: Files, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"payload")
    sha256 = hashlib.sha256(b"payload").hexdigest()
    files.path(sha256).symlink_to(secret)
    with pytest.raises(OSError):
        files.read(sha256)
    stored = files.write([b"payload"])
    assert not stored.path.is_symlink()


def test_STO_12_a_link_for_a_shard_is_refused(tmp_path: Path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "ab").symlink_to(tmp_path)
    with pytest.raises(UserError, match="name another"):
        Files(tmp_path / "store")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(UserError, match="name another"):
        Files(tmp_path / "store")


def test_remove(files: Files):
    stored = files.write([b"x"])
    assert files.remove(stored.sha256)
    assert not files.remove(stored.sha256)


def test_free_space(files: Files):
    assert files.free_bytes() > 0
    assert 0 < files.free_fraction() <= 1


def test_opening_the_store_again_finds_its_files(files: Files):
    stored = files.write([b"x"])
    assert Files(files.folder).read(stored.sha256) == b"x"
