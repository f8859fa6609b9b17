"""The demo proves what it says: a right journey exits 0, and a wrong volume, voxel or missing object does not."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from objects import SEG_AND_SR
from pydicom import dcmread
from rich.console import Console
from running_node import until

from pacs_ai.deliver import scu
from pacs_ai.demo import journey, proof, readback, run, study
from pacs_ai.demo.board import LiveBoard, PlainBoard
from pacs_ai.demo.node import NodeFailed, Snapshot
from pacs_ai.demo.pacs import AE_TITLE, DemoPacs
from pacs_ai.encode.provenance import Work
from pacs_ai.encode.results import encode
from pacs_ai.errors import UserError
from pacs_ai.infer.summary import summary
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.lung import CtLung
from pacs_ai.pipeline import MILLILITRE, VOLUME, Findings, Measurement, Segment
from pacs_ai.store.views import ResultView
from pacs_ai.testing import Phantom, phantom_truth, write_phantom

SMALL = Phantom(72, 160, 160)
ABDOMEN = Phantom(40, 96, 96, anatomy="abdomen")


def run_demo(*arguments, seconds=290):
    command = [sys.executable, "-m", "pacs_ai", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def test_newcomer_sees_the_whole_journey_and_its_proof(tmp_path):
    done = run_demo("--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("node", "study", *journey.STEPS, "read back"):
        assert re.search(rf"✔  {step} +\d+\.\d\d s", done.stdout), step
    assert "220/220 instances" in done.stdout
    assert done.stdout.count("mL in the SR, truth") == 2
    assert done.stdout.count("the pipeline's, every one") == 2
    kept = sorted((tmp_path / "out" / "pacs").iterdir())
    assert [path.name.split("-2.")[0] for path in kept] == ["SEG", "SR", "text-SR"], "the SR, and the same as text"
    for path in (*kept, tmp_path / "out" / "montage.png"):
        assert str(path) in done.stdout
    assert not (tmp_path / "out" / "node").exists()


def test_wrong_truth_fails(tmp_path, capsys):
    out = tmp_path / "out"
    study.sample(out / "study", SMALL, lambda _: None)
    (out / ".pacs-ai-demo").touch()
    truth = out / "study" / "truth.json"
    kept = json.loads(truth.read_text())
    kept["truth_ml"]["Left lung"] *= 1.02
    truth.write_text(json.dumps(kept))

    assert run(None, out, phantom=SMALL) == 1
    shown = capsys.readouterr().out
    assert re.search(r"✘ Left lung: [\d.]+ mL in the SR", shown)
    assert re.search(r"✔ Right lung: [\d.]+ mL in the SR", shown)
    assert (out / "node" / "node.log").exists(), "the node's folder is kept where something failed"


def test_own_study_that_is_no_chest_is_refused_in_words(tmp_path):
    write_phantom(tmp_path / "mine", ABDOMEN)
    done = run_demo("--study", tmp_path / "mine", "--out", tmp_path / "out")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"✘ job 1 is refused: .*\w+ \w+", done.stdout)
    assert not list((tmp_path / "out" / "pacs").iterdir())


def test_interrupt_ends_everything_it_started(tmp_path):
    write_phantom(tmp_path / "mine", ABDOMEN)
    command = [sys.executable, "-u", "-m", "pacs_ai", "demo", "--study", tmp_path / "mine", "--out", tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        for line in demo.stdout:
            if (found := re.search(r"listens on port (\d+)", line)) is not None:
                break
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
    assert demo.returncode not in {0, -signal.SIGKILL}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0
    configuration = str(tmp_path / "out" / "node")
    running = [process for process in Path("/proc").glob("[0-9]*") if configuration in command_line(process)]
    assert not running


def command_line(process):
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_folder_without_dicom_is_said(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no folder|holds no DICOM files"):
        study.given(tmp_path / place)


def test_foreign_folder_is_not_touched(tmp_path):
    precious = tmp_path / "node" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(UserError, match="name an empty or a new folder"):
        run(None, tmp_path)
    assert precious.read_text() == "mine"


def test_sample_is_made_once(tmp_path):
    tiny = Phantom(8, 32, 32)
    first = study.sample(tmp_path, tiny, lambda _: None)
    before = (tmp_path / "00003.dcm").stat().st_mtime_ns
    again = study.sample(tmp_path, tiny, lambda _: None)
    assert again == first
    assert (tmp_path / "00003.dcm").stat().st_mtime_ns == before
    (tmp_path / "00003.dcm").unlink()
    assert len(study.sample(tmp_path, tiny, lambda _: None).instances) == tiny.slices
    assert study.sample(tmp_path, Phantom(9, 32, 32), lambda _: None).instances != first.instances


class Material:
    """A SEG and an SR of a phantom's true lungs."""

    def __init__(self, folder):
        phantom = Phantom(24, 50, 51)  # 2550 pixels: frames do not begin at a byte
        truth = phantom_truth(phantom)
        self.truth_ml = {label: truth.volumes_ml[label] for label in study.LUNGS}
        self.loaded = load_volume(write_phantom(folder / "series", phantom))
        self.segments = tuple(Segment(label, truth.mask(label)) for label in study.LUNGS)
        findings = Findings(
            self.segments,
            tuple(Measurement(VOLUME, value, MILLILITRE, label) for label, value in self.truth_ml.items()),
        )
        volumes = {"image": self.loaded.volume}
        self.found = summary(findings, volumes, ())["segments"]
        work = Work(
            job_key="demo test",
            generation=1,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            card=CtLung.card,
            model_digest="a" * 64,
            settings_digest="b" * 64,
            parameters="device=cpu",
            node_name="test",
            software_version="0",
        )
        seg, sr = encode(findings, {"image": self.loaded.evidence}, volumes, work, SEG_AND_SR)
        self.seg, self.sr = folder / "seg.dcm", folder / "sr.dcm"
        seg.write(self.seg)
        sr.write(self.sr)

    def voxel_checks(self):
        return proof.check_voxels(self.found, self.read().segments)

    def volume_checks(self):
        received = self.read()
        values = readback.read_values(self.sr, received.labels)
        return proof.check_volumes(self.truth_ml, values, received.segments, self.loaded.volume.voxel_ml)

    def read(self):
        return readback.read_segmentation(self.seg, self.loaded.evidence.slices)

    def change(self, path, change):
        ds = dcmread(path)
        change(ds)
        ds.save_as(path)


@pytest.fixture
def material(tmp_path):
    return Material(tmp_path)


def test_reads_back_what_was_encoded(material):
    received = material.read()
    assert [segment.label for segment in received.segments] == list(study.LUNGS)
    for read, made in zip(received.segments, material.segments, strict=True):
        np.testing.assert_array_equal(read.mask, made.mask)
    assert readback.cited(material.seg) == [ref.sop_instance_uid for ref in material.loaded.evidence.slices]
    values = {one.label: one for one in readback.read_values(material.sr, received.labels)}
    assert values["Left lung"].unit == MILLILITRE
    assert values["Left lung"].value == pytest.approx(material.truth_ml["Left lung"])
    assert all(check.holds for check in (*material.voxel_checks(), *material.volume_checks()))


def test_one_moved_voxel_is_found(material):
    def move(ds):
        pixels = bytearray(ds.PixelData)
        at = next(i for i, octet in enumerate(pixels) if octet == 0b1111)
        pixels[at] = 0b1_0111  # as many voxels as before
        ds.PixelData = bytes(pixels)

    material.change(material.seg, move)
    assert [check.holds for check in material.voxel_checks()].count(False) == 1


def test_shifted_segmentation_is_found(material):
    def shift(ds):
        groups = ds.PerFrameFunctionalGroupsSequence
        first, second = (g.DerivationImageSequence[0].SourceImageSequence[0] for g in groups[3:5])
        first.ReferencedSOPInstanceUID, second.ReferencedSOPInstanceUID = (
            second.ReferencedSOPInstanceUID,
            first.ReferencedSOPInstanceUID,
        )

    material.change(material.seg, shift)
    assert not all(check.holds for check in material.voxel_checks())
    assert all(check.holds for check in material.volume_checks())


def test_wrong_value_in_the_report_is_found(material):
    def falsify(ds):
        for group in readback._containers(ds):
            for item in group.ContentSequence:
                if item.ValueType == "NUM":
                    item.MeasuredValueSequence[
                        0
                    ].NumericValue = f"{float(item.MeasuredValueSequence[0].NumericValue) * 1.011:.3f}"

    material.change(material.sr, falsify)
    checks = material.volume_checks()
    assert [check.holds for check in checks] == [False, True, False, True]
    assert "1.10 % off" in checks[0].words


def test_missing_segment_is_found(material):
    segments = material.read().segments[:1]
    assert [check.holds for check in proof.check_voxels(material.found, segments)] == [True, False]
    assert [check.holds for check in proof.check_voxels(material.found[:1], material.segments)] == [False, True]
    checks = proof.check_volumes(material.truth_ml, (), segments, material.loaded.volume.voxel_ml)
    assert [check.holds for check in checks] == [False, True, False, False]


def result(kind, uid):
    return ResultView(1, kind, kind, "1.2.3", "1.2.4", uid, "1.2.5", "0" * 64, 1)


def test_missing_object_is_found():
    seg, sr = result("SEG", "1.2.6"), result("SR", "1.2.7")
    assert proof.check_arrival([seg, sr], {"1.2.6", "1.2.7"}).holds
    assert "did not get the SR" in proof.check_arrival([seg, sr], {"1.2.6"}).words
    assert "expected" in proof.check_arrival([sr], {"1.2.7"}).words


def test_pacs_keeps_what_it_gets(tmp_path, make_instances):
    instances = make_instances(3)
    with DemoPacs(tmp_path / "pacs") as pacs:
        outcomes = scu.send_files(scu.Remote(AE_TITLE, "127.0.0.1", pacs.port, "TEST"), instances)
        kept = pacs.kept()
    assert all(outcome.stored for outcome in outcomes)
    assert kept.keys() == {instance.sop_instance_uid for instance in instances}
    for instance in instances:
        assert dcmread(kept[instance.sop_instance_uid]).PixelData == dcmread(instance.path).PixelData


class Silent:
    """A node in which nothing happens."""

    def check(self):
        pass

    def look(self):
        return Snapshot()

    def failure(self, words):
        return NodeFailed(words)


def test_standstill_is_said():
    board = PlainBoard(Console(file=StringIO()), journey.STEPS)
    with pytest.raises(NodeFailed, match=r"nothing happened for 0\.3 s"):
        journey.follow(Silent(), board, 1, stall_seconds=0.3)


@pytest.mark.parametrize("kind", [PlainBoard, LiveBoard])
def test_board_shows_steps_with_their_times(kind):
    before = threading.active_count()
    shown = StringIO()
    with kind(Console(file=shown, width=100, force_terminal=kind is LiveBoard), ("received", "complete")) as board:
        board.begin("received", 10)
        board.advance("received", 5)
        board.end("received", "10/10", 1.25)
        board.begin("complete")
        board.fail("complete", "conflict")
        board.end("complete", "not any more")
    text = shown.getvalue()
    assert re.search(r"✔.*received.*1\.25 s.*10/10", text)
    assert re.search(r"✘.*complete.*conflict", text)
    assert "not any more" not in text
    until(lambda: threading.active_count() <= before, what="the end of its threads")
