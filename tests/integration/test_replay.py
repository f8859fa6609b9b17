"""`pacs-ai replay`: identical input, model and settings give byte-identical objects on the CPU."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from keeping_peer import KeepingPeer
from pydicom import Dataset
from running_node import nodes, peer_table

from pacs_ai.cli import main
from pacs_ai.infer.replay import differences
from pacs_ai.store import schema
from pacs_ai.testing import Phantom, write_phantom


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A node, stopped, with a job whose results went to two destinations of different profiles."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "peer").mkdir()
    peer = KeepingPeer(folder=folder / "peer")
    peer.start()
    phantom = Phantom(60, 128, 128)
    with nodes(folder) as make:
        node = make(
            peer=[
                peer_table("archive", peer.ae_title, peer.port, profile="archive"),
                peer_table("old", peer.ae_title, peer.port, profile="generic-pacs"),
            ],
            route=[{"when": {"modality": "CT"}, "run": "ct-lung", "deliver_to": ["archive", "old"]}],
        ).start()
        node.send_all(write_phantom(folder / "study", phantom))
        job = node.job_in(phantom.study_instance_uid, "done")
        made = node.results(job.id)
        node.stop()
        yield node, job.id, made
    peer.stop()


def replay(node, job_id, *options):
    return CliRunner().invoke(main, ["-c", str(node.config_path), "replay", str(job_id), "--json", *options])


def test_RES_07_every_object_of_every_kind_comes_out_byte_for_byte(done):
    node, job_id, made = done
    result = replay(node, job_id)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["identical"] is True
    assert [one["sop_instance_uid"] for one in found["objects"]] == [one.sop_instance_uid for one in made]
    assert len({one.kind for one in made}) >= 10, "an archive gets nearly everything"


def test_a_changed_object_is_named_with_what_differs(done):
    node, job_id, made = done
    (report,) = [one for one in made if one.encoding.startswith("report/comprehensive-3d") and "<" in one.encoding]
    with node.orders() as database, database.write() as connection:
        table = schema.result
        connection.execute(table.update().where(table.c.sha256 == report.sha256).values(sha256=made[0].sha256))
    result = replay(node, job_id)
    with node.orders() as database, database.write() as connection:
        row = table.c.sop_instance_uid == report.sop_instance_uid
        connection.execute(table.update().where(row).values(sha256=report.sha256))
    assert result.exit_code == 1
    (other,) = [one for one in json.loads(result.stdout)["objects"] if one["verdict"] != "identical"]
    assert other["sop_instance_uid"] == report.sop_instance_uid
    assert {"ContentSequence", "PixelData"} <= set(other["differences"])


def test_errors_say_what_to_do(done):
    node, job_id, _ = done
    unknown = replay(node, 4711)
    assert unknown.exit_code == 2
    assert "there is no job 4711" in unknown.output
    text = node.config_path.read_text()
    try:
        node.config_path.write_text(text + '\n[[pipeline]]\nname = "ct-lung"\nsettings = { unknown = 1 }\n')
        assert replay(node, job_id).exit_code != 0
    finally:
        node.config_path.write_text(text)


def test_differences_are_named_where_they_lie():
    one, other, inner, changed = Dataset(), Dataset(), Dataset(), Dataset()
    inner.PatientID, changed.PatientID = "1", "2"
    one.ReferencedStudySequence, other.ReferencedStudySequence = [inner], [changed]
    one.StudyID = "x"
    assert list(differences(one, other)) == ["ReferencedStudySequence > PatientID", "StudyID"]
