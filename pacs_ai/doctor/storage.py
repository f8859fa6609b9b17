"""Whether data are safe where they are put: folder, room, file system, speed of a synced write, database."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pacs_ai.audit.auditor import repository
from pacs_ai.doctor.findings import Finding, Level
from pacs_ai.errors import PacsAiError
from pacs_ai.store import aside, probe, version
from pacs_ai.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pacs_ai.config import Config

FOLDER, DATABASE, AUDIT = "data folder", "database", "audit trail"
#: A synced write that takes longer makes receiving slow: some instances a second and sender.
SLOW_SYNC_MS = 50.0
#: No disk is as fast as that; memory is, and what answers a sync without doing it.
FAST_SYNC_MS = 0.05
_IN_MEMORY = {"tmpfs", "ramfs"}
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs", "fuse.glusterfs"}


def examine_folder(config: Config) -> Iterator[Finding]:
    """Look at the data folder; nothing is left in it."""
    folder = config.store.folder.resolve()
    name = str(folder)
    standing = _standing(folder)
    if (blocking := _blocking(folder)) is not None:
        yield _fault(FOLDER, name, f"{blocking} is a file, not a folder", "correct store.folder")
        return
    if not os.access(standing, os.W_OK | os.X_OK):
        yield _fault(FOLDER, name, f"{standing} cannot be written by this user", "chown it to the user of the node")
        return
    if standing != folder:
        yield Finding(Level.OK, FOLDER, name, f"is not there yet; it can be made in {standing}")
    elif stat.S_IMODE(folder.stat().st_mode) & 0o077:
        mode = f"{stat.S_IMODE(folder.stat().st_mode):04o}"
        yield _warning(FOLDER, name, f"others can look into it (mode {mode})", f"chmod 0700 {folder}")
    else:
        yield Finding(Level.OK, FOLDER, name, "is there, this user's alone")
    yield _mount(standing)
    yield from _room(config, standing)
    yield from _room_ahead(config, standing)
    try:
        yield _speed(standing)
    except OSError as error:
        words = f"nothing can be written in {standing}: {error.strerror}"
        yield _fault(FOLDER, "speed", words, "make room, look at the kernel's log, or name another store.folder")
        return
    if standing == folder:
        yield from _one_file_system(folder)
        concern = aside.concern(config)
        if concern is not None:
            yield _fault(FOLDER, "set aside", *concern)


def examine_audit(config: Config) -> Iterator[Finding]:
    """Look whether the audit trail can be written, and whether its repository answers."""
    if not config.audit.is_kept:
        yield _warning(AUDIT, "none", "nobody is told who did what", "set audit.to_file, or audit.repository")
    if config.audit.to_file:
        folder = config.audit_folder.resolve()
        standing = _standing(folder)
        if os.access(standing, os.W_OK | os.X_OK):
            yield Finding(Level.OK, AUDIT, str(folder), "can be written")
        else:
            yield _fault(AUDIT, str(folder), f"{standing} cannot be written", "chown it to the user of the node")
    if config.audit.repository:
        try:
            repository(config).greet()
        except PacsAiError as error:
            yield _fault(AUDIT, config.audit.repository, str(error), "its events are kept meanwhile; mend it soon")
        else:
            yield Finding(Level.OK, AUDIT, config.audit.repository, "answers over TLS, and is who it should be")


def examine_database(config: Config) -> Iterator[Finding]:
    """Look at the database, if there is one; the node need not run."""
    url = config.database_url
    if not probe.is_made(url):
        yield Finding(Level.OK, DATABASE, "SQLite", "is not there yet; the node makes it when it first starts")
        return
    database = Database(url)
    name = "SQLite" if database.is_sqlite else version.database_name(database)
    try:
        probe.prove_encoding(database)
        sound, words = probe.durability(database)
        version.check(database)
    except PacsAiError as error:
        of_sqlite = "mend what the data folder says above; if that is well, restore a backup (docs/operations.md)"
        of_server = "correct store.database, or start the database server"
        yield _fault(DATABASE, name, str(error), of_sqlite if database.is_sqlite else of_server)
        return
    finally:
        database.close()
    if sound:
        yield Finding(Level.OK, DATABASE, name, f"{words}; schema {version.SCHEMA}")
    else:
        yield _fault(DATABASE, name, words, "a commit may be lost by a power failure: switch synchronous commits on")


def _standing(folder: Path) -> Path:
    """Return the folder, or where it will be made."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _blocking(folder: Path) -> Path | None:
    """Return what is no folder, and stands where one is to be; None where nothing does."""
    return next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)


def _mount(folder: Path) -> Finding:
    mount = probe.mount_of(folder)
    words = f"{mount.kind} at {mount.place}"
    if mount.kind in _IN_MEMORY:
        return _warning(FOLDER, "file system", f"{words} lies in memory: all is lost at a restart", "use a disk")
    if mount.kind in _REMOTE:
        return _warning(
            FOLDER, "file system", f"{words} lies on another machine", "SQLite and syncing need a local disk; use one"
        )
    return Finding(Level.OK, FOLDER, "file system", words)


def _room(config: Config, folder: Path) -> Iterator[Finding]:
    state, store = os.statvfs(folder), config.store
    free = state.f_bavail * state.f_frsize / 1e9
    share = 100 * state.f_bavail / state.f_blocks if state.f_blocks else 0.0
    words = f"{free:.1f} GB free ({share:.0f} %); nothing is received below {store.min_free_gb:g} GB"
    words += f" or {store.min_free_percent:g} %"
    if free < store.min_free_gb or share < store.min_free_percent:
        yield _fault(FOLDER, "room", words, "make room, or lower store.min_free_gb and store.min_free_percent")
    elif free < 2 * store.min_free_gb or share < 2 * store.min_free_percent:
        yield _warning(FOLDER, "room", words, "make room soon, or lower [retention]")
    else:
        yield Finding(Level.OK, FOLDER, "room", words)


def _room_ahead(config: Config, folder: Path) -> Iterator[Finding]:
    """Say where segments do not fit above the watermark: the node itself would have it refuse data."""
    receive, state = config.receive, os.statvfs(folder)
    wanted = receive.processes * (receive.ahead_mb << 20)
    there = sum(path.stat().st_size for path in (config.store.folder / aside.FOLDER).glob("*") if not path.suffix)
    watermark = max(
        config.store.min_free_gb * 1e9, config.store.min_free_percent / 100 * state.f_blocks * state.f_frsize
    )
    above = max(0.0, state.f_bavail * state.f_frsize - watermark)
    if wanted - there > above:
        words = f"receive.ahead_mb = {receive.ahead_mb} takes up to {_size(wanted - there)} more"
        if receive.processes > 1:
            words += f" ({receive.processes} processes)"
        words += f", but only {_size(above)} is free above the level where nothing is received"
        yield _warning(FOLDER, "ahead_mb", words, "lower receive.ahead_mb (256 does for most), or make room")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _speed(folder: Path) -> Finding:
    ms = probe.sync_milliseconds(folder)
    words = f"a write of 64 kB is on the disk after {ms:.2f} ms"
    if ms < FAST_SYNC_MS:
        advice = "too fast to be true: see that no layer (virtual disk, controller, eatmydata) leaves syncs out"
        return _warning(FOLDER, "speed", words, advice)
    if ms > SLOW_SYNC_MS:
        return _warning(FOLDER, "speed", words, f"receiving is slow above {SLOW_SYNC_MS:g} ms: use an SSD")
    return Finding(Level.OK, FOLDER, "speed", words)


def _one_file_system(folder: Path) -> Iterator[Finding]:
    """Files are renamed from one folder to the next, which is atomic within one file system only."""
    device = folder.stat().st_dev
    apart = [each.name for each in folder.iterdir() if each.is_dir() and each.stat().st_dev != device]
    if apart:
        words = f"{', '.join(sorted(apart))} lies on a file system of its own"
        yield _fault(FOLDER, "mounts", words, "mount the whole data folder, not a part of it")


def _fault(area: str, subject: str, words: str, advice: str) -> Finding:
    return Finding(Level.FAULT, area, subject, words, advice)


def _warning(area: str, subject: str, words: str, advice: str) -> Finding:
    return Finding(Level.WARNING, area, subject, words, advice)
