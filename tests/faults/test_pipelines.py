"""A researcher's code may hang, crash, lie or eat all memory: its job fails in words, and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_node import peer_table, until
from story_pipelines import SLEEPER

from pacs_ai.config import Config
from pacs_ai.infer.bench import Bench
from pacs_ai.infer.order import Trouble
from pacs_ai.states import JobState
from pacs_ai.store import orders

DEEDS = ("hang", "blow_up", "lie", "leave", "devour")
TIME_LIMIT = 2.0
#: What is to end in another way is given time for it on a busy machine.
LIMITS, PATIENT = {"hang": TIME_LIMIT}, 60.0


@pytest.fixture(scope="module")
def pacs(make_peer):
    return make_peer()


@pytest.fixture(scope="module")
def node(make_node, pacs):
    """A node with a pipeline for every deed; each series says in its description which of them is to run."""
    return make_node(
        peer=[peer_table("pacs", pacs.ae_title, pacs.port)],
        pipeline=[{"name": "good", "use": "story"}, {"name": "shared", "use": "story", "settings": {"do": "share"}}]
        + [
            {"name": deed, "use": "story", "settings": {"do": deed}, "timeout_seconds": LIMITS.get(deed, PATIENT)}
            for deed in DEEDS
        ]
        + [{"name": "absent", "use": "never-installed"}],
        route=[
            {"when": {"description": f"to {name}"}, "run": name, "deliver_to": ["pacs"]}
            for name in ("good", "shared", *DEEDS, "absent")
        ],
        infer={"devices": ["cpu", "cpu:0"]},
    ).start()


@pytest.fixture(scope="module")
def ended(node, make_module_series):
    """Send a series to every bad pipeline and then a good one; returns name -> job when all have ended."""
    studies = {}
    for seed, name in enumerate((*DEEDS, "good", "shared", "absent"), 100):
        studies[name], paths = make_module_series(seed, SeriesDescription=f"to {name}")
        node.send_all(paths)
    jobs = {
        name: node.job_in(study, JobState.DONE, JobState.FAILED, JobState.REFUSED) for name, study in studies.items()
    }
    for name in ("good", "shared"):
        node.delivered(studies[name])
    node.account()
    return jobs


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("hang", f"given up after 3 crashes; the last: it ran longer than its time limit of {TIME_LIMIT:g} s"),
        ("leave", "given up after 3 crashes; the last: the process that runs the model ended with exit status 7"),
        ("devour", "given up after 3 crashes; the last: out of memory"),
    ],
)
def test_QUE_01_the_third_crash_fails_the_job(ended, deed, words):
    assert ended[deed].state is JobState.FAILED
    assert ended[deed].reason == words
    assert (ended[deed].crashes, ended[deed].attempts) == (3, 3)


def test_an_unforeseen_error_fails_at_once_and_keeps_its_text_to_the_worker_s_log(node, ended):
    job = ended["blow_up"]
    assert (job.state, job.attempts) == (JobState.FAILED, 1)
    assert job.reason.startswith("pipeline blow_up broke while running: LookupError; the log")
    assert "unforeseen" in node.log_path.read_text()


def test_findings_that_break_the_contract_fail_at_once(ended):
    job = ended["lie"]
    assert (job.state, job.attempts) == (JobState.FAILED, 1)
    assert "the segment 'Dense' has the shape (11, 32, 32), the input (12, 32, 32)" in job.reason


def test_a_pipeline_that_is_not_installed_disables_only_itself(node, ended):
    job = ended["absent"]
    assert job.state is JobState.REFUSED
    assert job.reason.startswith("pipeline absent is disabled: there is no model package never-installed")


def test_others_go_on_meanwhile(ended):
    slowest = max(job.finished_at for job in ended.values())
    assert ended["good"].state is JobState.DONE
    assert ended["good"].finished_at < slowest


def test_a_pipeline_may_use_processes_of_its_own(ended):
    assert ended["shared"].state is JobState.DONE
    assert ended["shared"].findings["segments"][0]["voxels"] == ended["good"].findings["segments"][0]["voxels"]


def test_what_a_hanging_pipeline_has_started_ends_with_it(node, ended, plugins):
    assert ended["hang"].state is JobState.FAILED
    node.until(lambda: not _asleep(plugins), what="the end of what the pipeline has started")


def _asleep(plugins):
    """Return the sleepers of this run of the tests: its plugins are in their environment."""
    return [
        process
        for process in Path("/proc").glob("[0-9]*")
        if _words(process / "cmdline") == list(SLEEPER) and f"PYTHONPATH={plugins}" in _words(process / "environ")
    ]


def _words(path):
    try:
        return path.read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def test_nothing_half_written_stays(node, ended):
    scratch = node.config.store.folder / "scratch"
    node.until(lambda: not [path for path in scratch.rglob("*") if path.is_file()], what="an empty scratch folder")


def test_only_results_of_good_work_left_the_node(node, pacs, ended):
    good = node.result_bytes(ended["good"].id) | node.result_bytes(ended["shared"].id)
    assert set(pacs.stored) == set(good)
    assert len(pacs.stored) == 4


def test_a_failed_job_is_overdue_and_can_be_tried_again(node, ended):
    with node.orders() as database:
        assert orders.retry(database, ended["lie"].id, actor="test") == ended["lie"].id
    again = node.until(
        lambda: (
            (job := node.job(ended["lie"].study_instance_uid)).finished_at != ended["lie"].finished_at
            and job.state is JobState.FAILED
            and job
        ),
        what="the second failure",
    )
    assert again.reason == ended["lie"].reason


def test_a_device_that_is_not_there_is_said_and_the_work_waits():
    bench = Bench(Config(), "cuda:63")
    try:
        message = until(lambda: bench.receive(0.1), what="the child's word")
    finally:
        bench.end()
    assert isinstance(message, Trouble)
    assert message.policy == "transient"
    assert "cuda:63" in message.words
