"""A folder of files and a database that belong together, and such that do not."""

from __future__ import annotations

import os
import time

import pytest
from stations import Clock

from pacs_ai.config import Config
from pacs_ai.errors import UserError
from pacs_ai.node import data_folder
from pacs_ai.store import identity, life, migrate, retention
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files
from pacs_ai.store.sweeping import SECOND_LOOK_SECONDS


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "files")


@pytest.fixture
def another(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'another.sqlite'}")
    migrate.upgrade(database)
    yield database
    database.close()


def test_they_are_joined_once(database, files):
    identity.join(database, files)
    known = (files.folder / "store.id").read_text()
    assert len(known) == 33
    identity.join(database, files)
    assert (files.folder / "store.id").read_text() == known


def test_STO_09_files_of_another_database_are_refused(database, another, files):
    identity.join(database, files)
    for _ in range(2):
        with pytest.raises(UserError, match=r"have their rows in another database.*move that folder away"):
            identity.join(another, files)
    identity.join(database, files)


def test_a_folder_that_does_not_know_yet_learns_it(database, files, tmp_path):
    """After a crash between the two, and where the folder was moved away and an empty one made."""
    identity.join(database, files)
    empty = Files(tmp_path / "empty")
    identity.join(database, empty)
    assert (empty.folder / "store.id").read_text() == (files.folder / "store.id").read_text()


def test_no_sweep_takes_what_says_to_whom_the_files_belong(database, tmp_path):
    clock = Clock()
    files = Files(tmp_path / "files", clock)
    identity.join(database, files)
    old = time.time() - 86_400
    for path in files.folder.rglob("*"):
        os.utime(path, (old, old))
    retention.sweep(database, files)
    clock.forward(SECOND_LOOK_SECONDS)
    assert retention.sweep_again(database, files) == []
    identity.join(database, files)


def test_STO_09_a_node_whose_database_is_lost_does_not_start_and_deletes_nothing(tmp_path):
    config = Config.model_validate({"store": {"folder": tmp_path / "data"}})
    with data_folder(config):
        kept = Files(config.store.folder / "files").write((b"instance",))
    os.utime(kept.path, (0, 0))
    for path in config.store.folder.glob("pacs_ai.sqlite*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="have their rows in another database"), data_folder(config):
            pass
    assert kept.path.read_bytes() == b"instance"
    (config.store.folder / "files").rename(tmp_path / "away")
    with data_folder(config):
        pass


def test_a_database_that_is_not_durable_receives_nothing(database):
    if database.is_sqlite:
        life.prove_durable(database)
    else:  # the tests' server is quick instead of safe
        with pytest.raises(UserError, match=r"fsync=off.*switch fsync and synchronous_commit on"):
            life.prove_durable(database)
