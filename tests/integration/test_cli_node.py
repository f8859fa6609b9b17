"""The commands beside a running node: what an administrator sees and orders, from the first instance to the results."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from free_ports import free_port
from keeping_peer import KeepingPeer
from pydicom import dcmread
from running_node import RunningNode, peer_table

from pacs_ai.cli import main
from pacs_ai.states import JobState
from pacs_ai.store.database import Database
from pacs_ai.testing import Phantom, write_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pacs_ai.store.views import JobView

ROUTE = {"when": {"modality": "CT", "min_instances": 20, "calling_ae": "SENDER"}, "run": "ct-lung"}
PLUGIN = """
from dataclasses import replace
from pacs_ai.models.lung import CtLung

class Broken(CtLung):
    card = replace(CtLung.card, name="broken")

    def run(self, inputs):
        raise ZeroDivisionError
"""


class Cli:
    """`pacs-ai` beside one node; within this process, where it need not be a process of its own."""

    def __init__(self, config_path: Path) -> None:
        self._config = ("--config", str(config_path))

    def __call__(self, *arguments: object, code: int | None = 0) -> Result:
        done = CliRunner().invoke(main, [*self._config, *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert code is None or done.exit_code == code, done.output
        return done

    def process(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pacs_ai", *self._config, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *arguments: object, code: int | None = 0):
        return json.loads(self(*arguments, "--json", code=code).stdout)


def chest(folder: Path, seed: int) -> tuple[list[Path], str]:
    """Write a phantom of its own patient and study; returns its files and its Study Instance UID."""
    paths = write_phantom(folder / f"chest{seed}", Phantom(slices=60, rows=128, columns=128, seed=seed))
    return paths, str(dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Iterator[KeepingPeer]:
    keeper = KeepingPeer(tmp_path_factory.mktemp("peer"))
    keeper.start()
    yield keeper
    keeper.stop()


@pytest.fixture(scope="module")
def beside(tmp_path_factory, peer) -> Iterator[tuple[RunningNode, Cli]]:
    """A running node with a sound and a broken route, and `pacs-ai` beside it."""
    package = tmp_path_factory.mktemp("plugins")
    (package / "broken_plugin-1.dist-info").mkdir()
    (package / "broken_plugin.py").write_text(PLUGIN)
    (package / "broken_plugin-1.dist-info" / "METADATA").write_text("Name: broken-plugin\nVersion: 1\n")
    (package / "broken_plugin-1.dist-info" / "entry_points.txt").write_text(
        "[pacs_ai.pipelines]\nbroken = broken_plugin:Broken\n"
    )
    node = RunningNode(
        tmp_path_factory.mktemp("node"),
        peer=[peer_table("main-pacs", peer.ae_title, peer.port)],
        route=[
            {**ROUTE, "deliver_to": ["main-pacs"]},
            {"when": {"modality": "CT", "calling_ae": "BREAKER"}, "run": "broken"},
        ],
        python_path=[package],
    )
    # the commands do not see the plugin: as on a host where it is not installed, its jobs are shown all the same
    node.start()
    yield node, Cli(node.config_path)
    node.close()


def states(node: RunningNode, study: str) -> list[str]:
    return [job.state.value for job in node.jobs(study)]


def until_states(node: RunningNode, study: str, *wanted: str) -> list[JobView]:
    node.until(lambda: states(node, study) == list(wanted), what=f"jobs that are {', '.join(wanted)}")
    return node.jobs(study)


def test_journey_as_the_administrator_sees_it(tmp_path, peer):
    peers = [
        peer_table("main-pacs", peer.ae_title, peer.port),
        peer_table("gone", "GONE", free_port(), connect_seconds=1.0),
    ]
    node = RunningNode(tmp_path / "node", peer=peers, route=[{**ROUTE, "deliver_to": ["main-pacs", "gone"]}])
    cli = Cli(node.config_path)
    paths, study_uid = chest(tmp_path, 11)
    try:
        assert "start the node once (pacs-ai run)" in cli.process("status", code=2).stderr
        node.start()
        assert cli.json("echo", "main-pacs")["answered"]
        node.send_all(paths)
        node.delivered(study_uid)
        _look_at_studies(cli, study_uid)
        _look_at_the_job(cli, paths[0].parent, tmp_path / "out")
        _look_at_the_peer_that_is_gone(node, cli)
        _see_it_stop(node, cli)
    finally:
        node.close()


def _look_at_studies(cli: Cli, study_uid: str) -> None:
    (study,) = cli.json("studies", study_uid)
    (series,) = study["series"]
    assert cli.json("studies", study["patient_id"]) == cli.json("studies", study["accession_number"]) == [study]
    assert (series["state"], series["instances"], series["revision"]) == ("complete", 60, 1)
    text = cli("studies").stdout
    assert "one association brought all 60 instances" in text
    assert study["patient_id"] in text
    assert "^" not in text, "a patient's name"
    assert cli.json("explain", study_uid)[0]["routes"][0]["verdict"] == "run"


def _look_at_the_job(cli: Cli, folder: Path, out: Path) -> None:
    job = cli.json("jobs", 1)
    assert [source[0] for source in job["sources"]] == ["image"]
    assert set(job["timings"]) == {"loading", "inferring", "encoding"}
    assert [result["kind"] for result in job["results"]] == ["SEG", "SR"]
    assert {"enqueued", "claimed", "finished"} <= {entry["event"] for entry in job["journal"]}
    shown = cli("jobs", 1).stdout
    for words in ("loading", "Right lung", "Volume", "mL", "stored (0x0000)", "journal", "route ct-lung"):
        assert words in shown
    offline = json.loads(cli.process("infer", "ct-lung", folder, "-o", out, "--json").stdout)
    assert offline["measurements"] == job["findings"]["measurements"]
    assert [one["sha256"] for one in offline["segments"]] == [one["sha256"] for one in job["findings"]["segments"]]


def _look_at_the_peer_that_is_gone(node: RunningNode, cli: Cli) -> None:
    found = {(one["peer"], one["state"]) for one in cli.json("deliveries")}
    assert ("main-pacs", "sent") in found
    assert len(cli.json("deliveries", "--peer", "gone", "--job", 1)) == 2
    assert cli.json("deliveries", "--peer", "main-pacs", "--state", "failed") == []
    node.until(lambda: _failures(node) >= 3, what="a third failure of the peer")
    report = cli.json("status", code=1)
    assert report["counts"]["jobs"] == {"done": 1}
    assert {process["kind"] for process in report["processes"]} == {"receive", "route", "infer", "deliver"}
    assert [trouble["subject"] for trouble in report["troubles"]] == ["peer gone"]
    text = cli("status", code=1).stdout
    assert "1 thing to look after" in text
    assert "pacs-ai echo gone" in text
    assert "cancelled what was not sent" in cli("cancel", 1).stdout
    waiting = [one for one in cli.json("deliveries", "--peer", "gone") if one["state"] == "cancelled"]
    assert f"delivery {waiting[0]['id']} is sent again" in cli("retry", "--delivery", waiting[0]["id"]).stdout


def _failures(node: RunningNode) -> int:
    from pacs_ai.store import views

    with node.read() as connection:
        return next((count for peer, count, _, _ in views.destinations(connection) if peer == "gone"), 0)


def _see_it_stop(node: RunningNode, cli: Cli) -> None:
    text = node.log_path.read_text()
    assert f"receives DICOM on 127.0.0.1 port {node.port}, called PACS_AI, from anyone" in text
    assert "route ct-lung: ct-lung, results to main-pacs, gone" in text
    assert "this node runs already" in cli.process("run", code=2).stderr
    assert node._process is not None
    node._process.send_signal(signal.SIGINT)
    assert node._process.wait(60) == 0
    assert "Traceback" not in node.log_path.read_text()
    trouble = cli.json("status", code=1)["troubles"][0]
    assert trouble == {"subject": "node", "words": "does not run", "advice": "start it: pacs-ai run"}
    database = Database(node.config.database_url)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    said = cli("studies", code=2).stderr
    assert "has schema 9999" in said
    assert said.count("\n") == 1


def test_pause_withholds_and_resume_releases(beside, tmp_path):
    node, cli = beside
    paths, study = chest(tmp_path, 12)
    assert "ct-lung is paused" in cli("pause", "ct-lung", "--reason", "a new version").stdout
    node.send_all(paths)
    (job,) = until_states(node, study, "withheld")
    report = cli.json("status", code=None)
    assert list(report["paused"]) == ["ct-lung"]
    assert job.id in report["jobs_withheld"]
    assert "pacs-ai resume ct-lung" in cli("status", code=None).stdout
    assert "1 job released" in cli("resume", "ct-lung").stdout
    assert "is not paused" in cli("resume", "ct-lung", code=2).stderr
    until_states(node, study, "done")
    assert f"job {job.id} is run anew as job" in cli("retry", job.id).stdout
    until_states(node, study, "superseded", "done")
    wrong = cli("retry", 999, job.id, code=2).stderr
    assert "there is no job 999" in wrong
    assert f"job {job.id} is superseded" in wrong
    assert "there is nothing to cancel" in cli("cancel", job.id, code=2).stderr


def test_conflict_waits_for_a_person(beside, tmp_path):
    node, cli = beside
    paths, study = chest(tmp_path, 13)
    node.send_all(paths)
    until_states(node, study, "done")
    ds = dcmread(paths[7])
    ds.SliceThickness = "77"
    ds.save_as(tmp_path / "other.dcm")
    node.send_all([tmp_path / "other.dcm"])
    uid = str(ds.SeriesInstanceUID)
    node.until(lambda: node.state_of(uid) == "conflict", what="the conflict")
    assert uid in cli.json("status", code=1)["series_in_conflict"]
    assert f"pacs-ai resolve {uid} --keep first|latest" in cli("status", code=1).stdout
    assert "the first content of 1 instance is kept" in cli("resolve", uid, "--keep", "first").stdout
    assert "there is no series" in cli("resolve", uid, "--keep", "first", code=2).stderr
    node.until(lambda: node.state_of(uid) == "complete", what="the series' completion")
    assert cli.json("status", code=None)["series_in_conflict"] == []


def test_failed_job_is_shown_until_a_person_sets_it_aside(beside, tmp_path):
    node, cli = beside
    paths, study = chest(tmp_path, 14)
    node.send_all(paths, calling_ae_title="BREAKER")
    (job,) = until_states(node, study, "failed")
    text = cli("status", code=1).stdout
    assert f"job {job.id} (broken) failed: pipeline broken broke while running: ZeroDivisionError" in text
    assert f"pacs-ai retry {job.id}, or pacs-ai cancel {job.id} to set it aside" in text
    assert [one["id"] for one in cli.json("jobs", "--state", "failed")] == [job.id]
    cli("cancel", job.id)
    assert node.job_in(study, JobState.CANCELLED)
    assert cli.json("status", code=None)["jobs_failed"] == []


def test_send_says_what_did_not_arrive(beside, peer, make_instances):
    _, cli = beside
    instances = make_instances(count=3)
    peer.statuses[instances[1].sop_instance_uid] = [0xC000]
    done = cli("send", "main-pacs", instances[0].path.parent, code=1)
    assert "has 2 of 3 instances" in done.stdout
    assert "not stored: 1 instance" in done.stderr
    outcomes = cli.json("send", "main-pacs", instances[1].path)["outcomes"]
    assert [one["status"] for one in outcomes] == [0]


def test_PRI_01_what_a_peer_says_in_its_own_words_is_shown_only_where_it_is_asked_for(beside, peer, make_instances):
    _, cli = beside
    (instance,) = make_instances()
    peer.statuses[instance.sop_instance_uid] = [0xC000] * 3
    peer.comment = "patient ZZPHI^MARKER unknown"
    try:
        silent = cli("send", "main-pacs", instance.path, code=1)
        silent_json = cli("send", "main-pacs", instance.path, "--json", code=1)
        told = cli("send", "main-pacs", instance.path, "--comments", code=1)
    finally:
        peer.comment = ""
    assert "ZZPHI" not in silent.output + silent_json.output
    assert '(0xC000), "patient ZZPHI^MARKER unknown"' in told.stderr
