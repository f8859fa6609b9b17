"""A marker patient goes through a whole node, well and badly; afterwards his name stands nowhere but where it belongs.

The same life of a node is held against its audit trail: everything that happened has its event.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import audit_schema as schema_of
import pytest
import sqlalchemy as sa
from free_ports import free_port
from running_node import RunningNode, descendants, peer_table

from pacs_ai.deliver import scu
from pacs_ai.states import JobState
from pacs_ai.store import schema

#: Pieces of the marker patient, none of which may appear anywhere else; each is distinctive.
NAME, PATIENT_ID, ACCESSION, BIRTH = "ZZPHI^MARKER", "ZZPHI-4711", "ZZACC-4712", "19471109"
MARKERS = (b"ZZPHI", b"ZZACC", b"19471109")
#: Only in these places below a node's folder may they stand.
BELONGS = ("data/files/", "data/ahead/", "data/pacs_ai.sqlite", "data/audit/")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """The folder for temporary files of every process of the node."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def node(tmp_path_factory, plugins, make_peer, scratch):
    """A node that says all it can say, with pipelines that work, break and refuse, and with peers of three kinds.

    One keeps what it gets, one is not there, and one refuses everything and names the patient in its Error Comment.
    """
    pacs = make_peer()
    strict = make_peer(ae_title="STRICT", status=0xC000, comment=f"patient {NAME} ({PATIENT_ID}) unknown")
    bad = [{"name": deed, "use": "story", "settings": {"do": deed}} for deed in ("blow_up", "lie")]
    names = ("good", "blow_up", "lie", "absent", "ct-lung")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(scratch))
        made = RunningNode(
            tmp_path_factory.mktemp("marker") / "node",
            peer=[
                peer_table("pacs", pacs.ae_title, pacs.port),
                peer_table("gone", "GONE", free_port()),
                peer_table("strict", strict.ae_title, strict.port),
            ],
            pipeline=[{"name": "good", "use": "story"}, *bad, {"name": "absent", "use": "never-installed"}],
            route=[
                {
                    "when": {"description": f"to {name}"},
                    "run": name,
                    "deliver_to": ["pacs", "gone", "strict"] if name == "good" else ["pacs"],
                    "report_not_analysed": True,
                }
                for name in names
            ],
            log={"level": "debug"},
            python_path=[plugins],
        )
    yield made.start()
    made.close()


def pacs_ai(node, *words):
    """Run a command of the operator; returns what it printed."""
    command = [sys.executable, "-m", "pacs_ai", "--config", str(node.config_path), *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def life(node, make_module_series):
    """Send the marker patient every way there is; returns what was seen from outside while it ran."""
    seen: dict[str, bytes] = {}
    studies = {}
    marker = {
        "PatientName": NAME,
        "PatientID": PATIENT_ID,
        "PatientBirthDate": BIRTH,
        "AccessionNumber": ACCESSION,
        "ReferringPhysicianName": "ZZPHI^DOCTOR",
        "PatientComments": "ZZPHI comments",
    }
    for seed, name in enumerate(("good", "blow_up", "lie", "absent", "ct-lung", "nobody"), 200):
        studies[name], paths = make_module_series(seed, SeriesDescription=f"to {name}", **marker)
        node.send_all(paths)
    jobs = {
        name: node.job_in(study, JobState.DONE, JobState.FAILED, JobState.REFUSED)
        for name, study in studies.items()
        if name != "nobody"
    }
    assert {jobs[name].state for name in ("blow_up", "lie")} == {JobState.FAILED}
    refuse_every_way(node, paths)
    good = jobs["good"].id
    node.until(lambda: sum(one.state == "sent" for one in node.deliveries(good)) == 2, what="the results")
    node.until(lambda: sum(one.state == "failed" for one in node.deliveries(good)) == 2, what="the refusals")
    node.until(lambda: any(one.attempts > 1 for one in node.deliveries(good)), what="a second try to reach GONE")
    node.until(
        lambda: any(one.kind == "not-analysed" and one.state == "sent" for one in node.deliveries()), what="a notice"
    )
    for pid in descendants(node.supervisor_pid):
        with suppress(OSError):  # it has ended meanwhile
            seen[f"command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
            seen[f"environment of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
    assert f"environment of {node.supervisor_pid}" in seen
    for command in (("status",), ("status", "--json"), ("jobs", good), ("deliveries",)):
        seen[" ".join(map(str, command))] = pacs_ai(node, *command)
    wrong = ("retract", good, "--reason", "safety", "--because", "left and right changed places", "--yes")
    for command in (("retry", jobs["lie"].id), wrong, ("cancel", 4711), ("pause", "good"), ("resume", "good")):
        seen[" ".join(map(str, command))] = pacs_ai(node, *command)
    node.until(lambda: any(one.kind == "rejection-note" for one in node.deliveries()), what="a rejection note")
    assert node.stop() == 0
    return seen


def refuse_every_way(node, paths):
    """Have the node turn away a connection, an association and instances of the marker patient."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as connection:
        connection.sendall(b"GET /?patient=ZZPHI^MARKER HTTP/1.0\r\n\r\n")
        assert connection.recv(1) == b""
    stranger = scu.Remote("ZZPHI", "127.0.0.1", node.port, "ZZPHI_CALLER")
    assert scu.echo(stranger).ms is None
    broken = paths[0].with_name("broken.dcm")
    broken.write_bytes(paths[0].read_bytes()[:-100])
    (outcome,) = node.send([broken])
    assert not outcome.stored


def test_PRI_01_the_marker_patient_stands_only_where_he_belongs(node, life):
    """Files and their names, logs, commands, command lines; not the object store, the database and the audit trail."""
    hits = [place for place, text in life.items() if any(marker in text for marker in MARKERS)]
    everywhere = [path for path in node.folder.rglob("*") if path.is_file()]
    elsewhere = [path for path in everywhere if not belongs(node, path)]
    assert {"node.log", "pacs-ai.toml"} <= {path.name for path in elsewhere}
    hits += [str(path) for path in elsewhere if any(marker in path.read_bytes() for marker in MARKERS)]
    hits += [str(path) for path in everywhere if any(marker in os.fsencode(path) for marker in MARKERS)]
    hits = [hit for hit in hits if hit not in allowed_in_log(node, hit)]
    assert hits == []
    with node.read() as connection:
        comments = connection.execute(sa.select(schema.delivery.c.comment)).scalars().all()
    assert f"patient {NAME} ({PATIENT_ID}) unknown" in comments, "the peer that names the patient was never heard"
    kept = [path for path in everywhere if belongs(node, path)]
    assert any(b"ZZPHI^MARKER" in path.read_bytes() for path in kept), "the marker never reached the node"


def belongs(node, path):
    return path.relative_to(node.folder).as_posix().startswith(BELONGS)


def allowed_in_log(node, hit):
    """An AE title is no patient: the log names who was rejected, escaped."""
    if hit != str(node.log_path):
        return ()
    others = [line for line in node.log_path.read_bytes().splitlines() if b"rejected association" not in line]
    return (hit,) if not any(marker in line for line in others for marker in MARKERS) else ()


def test_PRI_02_the_most_talkative_log_names_no_patient(node, life):
    log = node.log_path.read_text()
    assert "opened" in log
    assert not any(word in log for word in ("MARKER", PATIENT_ID, ACCESSION, BIRTH, "DOCTOR", "comments"))


def test_PRI_05_nothing_temporary_is_left_after_the_jobs(node, life, scratch):
    left = [path for path in scratch.rglob("*") if path.is_file()]
    left += [path for path in (node.config.store.folder / "scratch").rglob("*") if path.is_file()]
    left += [path for path in Path("/dev/shm").glob("*") if path.is_file() and holds_marker(path)]
    assert left == []
    assert tempfile.gettempdir() != str(scratch)


def holds_marker(path):
    try:
        return any(marker in path.read_bytes() for marker in MARKERS)
    except OSError:
        return False


def trail_of(node):
    """Return every event of the node's audit trail, each held against the schema."""
    path = node.config.audit_folder / "audit.log"
    assert path.stat().st_mode & 0o777 == 0o600
    return [schema_of.unwrap(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trail(node, life):
    """The audit trail after one more start: the end of the first life is told in the second."""
    node.start()
    node.until(lambda: not waiting(node), what="the end of the spool")
    assert node.stop() == 0
    with node.read() as connection:
        spooled = connection.execute(sa.select(schema.audit_event.c.message)).scalars().all()
    return trail_of(node) + [schema_of.check(message) for message in spooled]


def waiting(node):
    """Tell whether the end of the first life is still to be told."""
    ends = sa.select(sa.func.max(schema.journal.c.id)).where(schema.journal.c.event == "stopped")
    with node.read() as connection:
        return told_to(connection) < connection.execute(ends).scalar_one()


def told_to(connection):
    cursor = schema.audit_cursor
    return connection.execute(sa.select(cursor.c.position).where(cursor.c.name == "journal")).scalar_one()


def test_everything_that_happened_has_its_event(node, trail):
    """Invariant 12 of the crash design: associations, receipts, jobs, deliveries, orders and refusals."""
    kinds = Counter((schema_of.event(one), *schema_of.types(one)) for one in trail)
    assert kinds["110114", "110122"] == 5  # commands
    with node.read() as connection:
        moves = list(connection.execute(sa.select(schema.journal).where(schema.journal.c.id <= told_to(connection))))
        associations = connection.execute(sa.select(schema.association.c.id)).scalars().all()
        instances = connection.execute(sa.select(sa.func.sum(schema.association_series.c.arrivals))).scalar_one()
    received = [one for one in trail if schema_of.types(one) == ["received"]]
    assert {schema_of.details(one)["association"] for one in received} == set(associations)
    assert sum(int(schema_of.details(one)["instances"]) for one in received) == instances
    for subject in ("job", "delivery"):
        for event in {move.event for move in moves if move.subject == subject} - {"enqueued", "asked again", "lacking"}:
            happened = sum((move.subject, move.event) == (subject, event) for move in moves)
            told = sum(count for key, count in kinds.items() if key[1:] == (f"{subject}-{event.replace(' ', '-')}",))
            assert told == happened, (subject, event)
    assert kinds["110113", "110126"] >= 2  # a connection and an association
    assert kinds["110113", "110132"] == 1  # an instance
    assert kinds["110113", "110131"] == 2  # pause, resume
    assert kinds["110100", "110120"] >= 4  # processes
    assert kinds["110100", "110121"] >= 4
    assert kinds["idle-association",] >= 1  # C-ECHO


def test_events_of_patients_name_the_right_one(trail):
    told = [one for one in trail if schema_of.patients(one)]
    assert {schema_of.patients(one)[0].get("ParticipantObjectID") for one in told} == {PATIENT_ID}
    assert {schema_of.patients(one)[0].findtext("ParticipantObjectName") for one in told} == {NAME}


def test_operators_are_named(trail):
    orders = [one for one in trail if schema_of.event(one) == "110114"]
    (order,) = [one for one in orders if "retract" in one.findtext(".//EventOutcomeDescription")]
    assert order.find("ActiveParticipant").get("UserID").endswith(f"@{socket.gethostname()}")
    assert "because=left and right changed places" in order.findtext(".//EventOutcomeDescription")
