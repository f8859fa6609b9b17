"""I10 by the clock: what was written ahead has its rows soon after a start, and a second start changes nothing."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime

import pytest

from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import read_header
from pacs_ai.receive.ingest import DurableIngest, file_meta
from pacs_ai.store import schema
from pacs_ai.store.ahead import Ahead
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files
from pacs_ai.store.index import Index
from prove import checker, material, wire

_PER_SERIES = 100


def _leave(folder, count):
    """Write so many instances ahead, as a process that died before it indexed any; return their UIDs."""
    ahead = _ahead(folder, Files(folder / "files"))
    uids, answers = [], []
    for number in range(count // _PER_SERIES):
        for instance in material.make_series(10, number, _PER_SERIES):
            meta, data_set = file_meta(wire.CT, instance.uid, wire.EXPLICIT), bytearray(instance.data_set)
            arrival = Arrival(
                header=read_header(memoryview(data_set), wire.EXPLICIT),
                sha256=hashlib.sha256(meta + data_set).hexdigest(),
                size=len(meta) + len(data_set),
                transfer_syntax_uid=wire.EXPLICIT,
                calling_ae_title="SENDER",
                called_ae_title="PACS_AI",
                address="127.0.0.1",
                assoc_id=f"a{number}",
                priority=0,
                received_at=datetime.now(UTC),
            )
            if ahead.is_low:
                ahead.prepare()
            assert ahead.keep(arrival, (meta, data_set), answers.append)
            uids.append(instance.uid)
    assert len(answers) == len(uids) == count
    ahead.close()
    return uids


def _ahead(folder, files):
    return Ahead(folder / "ahead", files.disk)


def _recover(folder, wanted):
    """Start a receiving side, and stop it when it has said that all has rows; return after how many seconds it had."""
    begin = time.monotonic()
    database, files = Database(f"sqlite:///{folder / 'pacs_ai.sqlite'}"), Files(folder / "files")
    index, ahead = Index(database, files.path, "receive"), _ahead(folder, files)
    ingest = DurableIngest(
        files, index.record, ahead=ahead, is_recorded=index.is_recorded, note_ended=index.association_ended
    )
    assert ingest.is_settled == (not ahead.left)
    while not ingest.is_settled:
        assert time.monotonic() - begin < 600
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM instance").scalar_one() == wanted
    ingest.close()
    assert ingest.owes_nothing
    database.close()
    return seconds


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_recovery_ends_in_time_and_once_more_changes_nothing(tmp_path, count):
    database = Database(f"sqlite:///{tmp_path / 'pacs_ai.sqlite'}")
    schema.metadata.create_all(database.engine)
    database.close()
    uids = _leave(tmp_path, count)
    seconds = _recover(tmp_path, len(uids))
    assert checker.in_time(seconds, count) == []
    before = checker.picture(tmp_path)
    _recover(tmp_path, len(uids))
    assert checker.recovered(before, checker.picture(tmp_path)) == []
