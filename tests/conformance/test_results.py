"""SEG and SR from phantoms and real series pass the field's validators and read back as what was put in."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from objects import SEG_AND_SR
from pydicom.uid import CTImageStorage

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.encode.provenance import Work
from pacs_ai.encode.results import encode
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    LEFT,
    MILLILITRE,
    MORPHOLOGIC_ABNORMALITY,
    VOLUME,
    Card,
    Code,
    Findings,
    Input,
    Label,
    Measurement,
    Segment,
)
from pacs_ai.testing import SAGITTAL, Phantom, write_phantom

INTENSITY = Code("112031", "DCM", "Attenuation Coefficient")
NO_UNIT = Code("1", "UCUM", "no units")
CARD = Card(
    name="conformance",
    version="2.0",
    manufacturer="Example",
    title="Everything",
    inputs={"image": Input(("CT", "MR"))},
    labels=(
        Label("Bright", ANATOMICAL_STRUCTURE, Code("91723000", "SCT", "Anatomical structure"), LEFT, (230, 60, 60)),
        Label("Ball", MORPHOLOGIC_ABNORMALITY, Code("4147007", "SCT", "Mass"), None, (60, 200, 90)),
        Label("Never there", MORPHOLOGIC_ABNORMALITY, Code("27925004", "SCT", "Nodule")),
    ),
    procedure=Code("25045-6", "LN", "CT unspecified body region"),
    intended_use="tests of conformance",
)
PHANTOMS = {
    "phantom axial": Phantom(24, 64, 60),
    "phantom sagittal": Phantom(40, 48, 52, orientation=SAGITTAL, order="shuffled"),
    "phantom oblique": Phantom(
        30, 45, 51, orientation=(0.8, 0.6, 0.0, -0.36, 0.48, 0.8), spacing=(9.0, 8.0, 7.5), order="descending"
    ),
}
REAL = {
    "thick chest CT": "ct_chest_tcga_thick",
    "sagittal brain MR": "mr_brain_t1_mprage",
    "JPEG 2000 abdomen CT": "ct_abdomen_j2k_totalseg/dicom",
    "Philips enhanced MR": "mr_enhanced_vendors/philips_enhanced/anatomical/001",
    "Siemens enhanced MR": "mr_enhanced_vendors/siemens_multiframe/anatomical/001",
}


def tool(name):
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"VALIDATOR MISSING: {name} is not installed, so no result was held against it")
    return found


def run(*command):
    parts = [str(part) for part in command]
    return subprocess.run(parts, capture_output=True, text=True, errors="replace", timeout=120, check=False)


class Made:
    """One source's results on disk."""

    def __init__(self, paths, folder):
        self.loaded = load_volume(paths)
        self.findings = findings_for(self.loaded.volume)
        results = encode(
            self.findings, {"image": self.loaded.evidence}, {"image": self.loaded.volume}, work(), SEG_AND_SR
        )
        self.seg, self.sr = folder / "seg.dcm", folder / "sr.dcm"
        for path, one in zip((self.seg, self.sr), results, strict=True):
            one.write(path)


def work():
    return Work(
        job_key="conformance",
        generation=1,
        created_at=datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        card=CARD,
        model_digest="c" * 64,
        settings_digest="d" * 64,
        parameters="device=cpu",
        node_name="test-node",
        software_version="0.1.0",
    )


def findings_for(volume):
    """A ragged segment from the voxels themselves and a ball off centre that overlaps it."""
    voxels = volume.voxels.astype(np.float32)
    size = np.array(voxels.shape)
    at = np.indices(voxels.shape).reshape(3, -1).T * volume.spacing
    centre, radius = size * volume.spacing * (0.4, 0.55, 0.35), float(min(size * volume.spacing)) * 0.3
    ball = (np.linalg.norm(at - centre, axis=1) < radius).reshape(voxels.shape)
    bright = voxels > np.percentile(voxels, 80)
    bright[: size[0] // 5] = False
    labels = np.where(bright, 7, 0).astype(np.uint8)
    return Findings(
        (Segment("Bright", labels, 7), Segment("Ball", ball), Segment("Never there", np.zeros(voxels.shape, np.uint8))),
        (
            Measurement(VOLUME, float(bright.sum()) * volume.voxel_ml, MILLILITRE, "Bright"),
            Measurement(INTENSITY, float(voxels[bright].mean()), NO_UNIT, "Bright"),
            Measurement(INTENSITY, float(voxels[ball].mean()), NO_UNIT, "Ball"),
            Measurement(INTENSITY, float(voxels.mean()), NO_UNIT),
        ),
    )


@pytest.fixture(scope="module", params=[*PHANTOMS, *REAL])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    if request.param in PHANTOMS:
        return Made(write_phantom(folder / "source", PHANTOMS[request.param]), folder)
    source = request.getfixturevalue("shared_data") / REAL[request.param]
    return Made(identified(sorted(path for path in source.iterdir() if path.is_file()), folder), folder)


def identified(paths, folder):
    """The files themselves, or copies with UIDs where de-identification has left none."""
    if pydicom.dcmread(paths[0], stop_before_pixels=True).get("SOPInstanceUID"):
        return paths
    copies = []
    for number, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = derive_uid("study"), derive_uid("series")
        ds.Modality = "CT"
        copies.append(folder / f"{number}.dcm")
        ds.save_as(copies[-1])
    return copies


def errors_of(path):
    """Lines in which dciodvfy states an error; it writes to standard error."""
    verdict = run(tool("dciodvfy"), "-new", path)
    return [line for line in (verdict.stderr + verdict.stdout).splitlines() if line.startswith("Error")]


def test_dciodvfy_finds_no_error(made):
    assert errors_of(made.seg) == []
    assert errors_of(made.sr) == []


def test_dciodvfy_would_have_found_one(made, tmp_path):
    """The negative control: without it, a validator that reads nothing would pass too."""
    seg = highdicom.seg.segread(made.seg)
    del seg.SegmentSequence[0].SegmentLabel
    seg.save_as(tmp_path / "broken.dcm")
    assert errors_of(tmp_path / "broken.dcm")


def test_dsrdump_reads_the_report_without_a_message(made):
    dump = run(tool("dsrdump"), made.sr)
    assert (dump.returncode, dump.stderr) == (0, "")
    assert "Tracking Identifier" in dump.stdout
    assert "CONTINUOUS" not in dump.stdout


def test_dcmqi_reads_exactly_the_voxels(made, tmp_path):
    command = (
        tool("segimage2itkimage"),
        "--inputDICOM",
        made.seg,
        "--outputDirectory",
        tmp_path,
        "--outputType",
        "nii",
    )
    outcome = run(*command)
    assert outcome.returncode == 0, outcome.stderr
    for number, segment in enumerate(made.findings.segments[:2], 1):
        (path,) = tmp_path.glob(f"{number}.nii*")
        assert np.array_equal(on_the_grid(path, made.loaded.volume), segment.mask)


def on_the_grid(path, volume):
    """The voxels of a NIfTI image on a volume's grid, found by their place in the patient."""
    image = nibabel.load(path)
    at = np.argwhere(np.asarray(image.dataobj) > 0)
    ras = nibabel.affines.apply_affine(image.affine, at)
    indices = nibabel.affines.apply_affine(np.linalg.inv(volume.affine), ras * (-1, -1, 1))
    whole = indices.round().astype(int)
    assert np.abs(indices - whole).max() < 0.05
    mask = np.zeros(volume.voxels.shape, bool)
    mask[tuple(whole.T)] = True
    assert mask.sum() == len(at)
    return mask


def test_dcmqi_reads_the_values(made, tmp_path):
    target = tmp_path / "report.json"
    outcome = run(tool("tid1500reader"), "--inputDICOM", made.sr, "--outputMetadata", target)
    assert outcome.returncode == 0, outcome.stderr
    read = {
        group["TrackingIdentifier"]: [
            (one["quantity"]["CodeMeaning"], float(one["value"]), one["units"]["CodeValue"])
            for one in group["measurementItems"]
            if "Axis" not in one["quantity"]["CodeMeaning"]  # of a lesion, from its outline: another test's
        ]
        for group in json.loads(target.read_text(errors="replace"))["Measurements"]
    }
    volume = made.loaded.volume
    ball = Measurement(VOLUME, float(made.findings.segments[1].mask.sum()) * volume.voxel_ml, MILLILITRE, "Ball")
    bright, intensity, of_ball, whole = made.findings.measurements
    assert read == {
        name: [(one.concept.meaning, pytest.approx(one.value, rel=1e-9), one.unit.value) for one in values]
        for name, values in (("Bright", (bright, intensity)), ("Ball", (ball, of_ball)), ("Whole image", (whole,)))
    }


def test_highdicom_reads_exactly_the_voxels_of_each_source_frame(made):
    seg = highdicom.seg.segread(made.seg)
    slices = made.loaded.evidence.slices
    options = {"assert_missing_frames_are_empty": True, "segment_numbers": [1, 2]}
    if slices[0].frame_number is None:
        read = seg.get_pixels_by_source_instance([ref.sop_instance_uid for ref in slices], **options)
    else:
        uid, numbers = slices[0].sop_instance_uid, [ref.frame_number for ref in slices]
        read = seg.get_pixels_by_source_frame(uid, numbers, **options)
    for row, segment in enumerate(made.findings.segments[:2]):
        assert np.array_equal(read[..., row] > 0, segment.mask)


def test_highdicom_places_the_volume_where_the_source_lies(made):
    volume = highdicom.seg.segread(made.seg).get_volume(segment_numbers=[2], combine_segments=False)
    at = np.argwhere(volume.array[..., 0] > 0)
    places = nibabel.affines.apply_affine(volume.affine, at)
    indices = nibabel.affines.apply_affine(np.linalg.inv(made.loaded.volume.affine), places)
    mask = np.zeros(made.loaded.volume.voxels.shape, bool)
    mask[tuple(indices.round().astype(int).T)] = True
    assert np.array_equal(mask, made.findings.segments[1].mask)


def test_highdicom_reads_the_report(made):
    content = highdicom.sr.srread(made.sr).content
    groups = content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["Bright", "Ball"]
    assert [len(group.get_measurements()) for group in groups] == [2, 4], "a lesion has a long and a short axis"
    (whole,) = content.get_planar_roi_measurement_groups()
    assert (whole.tracking_identifier, len(whole.get_measurements())) == ("Whole image", 1)
    for group in groups:
        (region,) = group.roi
        assert math.isclose(*region.value[[0, -1], 0])
