"""After retention no byte of a patient is in the store's folder, the database and the audit trail aside."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from running_node import nodes
from stations import Clock

from pacs_ai.dicom import part10
from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import read_header
from pacs_ai.states import SeriesState
from pacs_ai.store import aside, retention
from pacs_ai.store.disk import Disk
from pacs_ai.store.files import Files
from pacs_ai.store.sweeping import SECOND_LOOK_SECONDS

MARKER = b"ZZPHI"
#: What happened, and to whom, stays known: that is not images.
RECORDS = ("pacs_ai.sqlite", "audit/")
OLD_SECONDS = 2 * 3600.0


def places(node):
    """Return the files below the store's folder that hold the marker patient."""
    store = node.config.store.folder
    found = [Path(folder, name) for folder, _, names in os.walk(store) for name in names]
    names = [path.relative_to(store).as_posix() for path in found if MARKER in content(path)]
    return {name for name in names if not name.startswith(RECORDS)}


def content(path):
    """Return a file's bytes, none where the node has removed it meanwhile, or given it its name."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def set_aside(node, path):
    """Leave an instance as a process does that could not index it."""
    raw = path.read_bytes()
    split = part10.split(raw)
    arrival = Arrival(
        header=read_header(split.data_set, split.transfer_syntax_uid),
        sha256=hashlib.sha256(raw).hexdigest(),
        size=len(raw),
        transfer_syntax_uid=split.transfer_syntax_uid,
        calling_ae_title="CT_1",
        called_ae_title="PACS_AI",
        address="127.0.0.1",
        assoc_id="a" * 32,
        priority=0,
        received_at=datetime.now(UTC),
    )
    folder = node.config.store.folder / aside.FOLDER
    folder.mkdir(parents=True, mode=0o700)
    # its header was read wrongly by an earlier release
    wrong = replace(arrival, header=replace(arrival.header, values={"SOPInstanceUID": "1.2.3"}))
    return aside.put(folder, Disk(folder), wrong, [raw]), arrival


def test_PRI_01_after_quiet_and_retention_no_byte_of_the_patient_is_in_the_store(tmp_path, make_series):
    _, paths = make_series(1, PatientName="ZZPHI^MARKER", PatientID="ZZPHI-4711")
    with nodes(tmp_path) as make:
        node = make()
        kept, arrival = set_aside(node, paths[0])
        node.start()
        node.until(lambda: not kept.exists(), what="the row of what was set aside")
        (row,) = node.instances()
        assert (row.sop_instance_uid, row.calling_ae_title) == (arrival.header.sop_instance_uid, "CT_1")
        node.send_all(paths)
        node.until(lambda: len(node.instances()) == len(paths), what="all rows")
        node.until(lambda: all(name.startswith("files/") for name in places(node)), what="zeros in every segment")
        assert len(places(node)) == len(paths)
        node.until(lambda: node.state_of(arrival.header.series_instance_uid) is SeriesState.UNROUTED, what="its end")
        assert node.stop() == 0
        clock = Clock()
        files = Files(node.files_folder, clock)
        for one in node.instances():
            long_ago = files.path(one.sha256).stat().st_mtime - OLD_SECONDS
            os.utime(files.path(one.sha256), (long_ago, long_ago))
        with node.orders() as database:
            retention.purge(database, files, inputs_days=0.0, unrouted_days=0.0, actor="test")
            clock.forward(SECOND_LOOK_SECONDS)
            retention.sweep_again(database, files)
        assert places(node) == set()
