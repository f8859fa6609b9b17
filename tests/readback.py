"""Results as a PACS got them, read again with tools that did not write them: highdicom, pydicom, dciodvfy."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
from pydicom import dcmread

from pacs_ai.infer.summary import mask_digest
from pacs_ai.pipeline import Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from pacs_ai.store.views import JobView


@dataclass(frozen=True)
class Sources:
    """The instances that were sent, slices ascending along their normal as in a `Volume`."""

    uids: tuple[str, ...]
    first: Dataset

    @staticmethod
    def of(paths: Iterable[Path]) -> Sources:
        """Read the headers of one series."""
        headers = [dcmread(path, stop_before_pixels=True) for path in paths]
        row, column = np.reshape(headers[0].ImageOrientationPatient, (2, 3)).astype(float)
        headers.sort(key=lambda ds: float(np.cross(row, column) @ np.asarray(ds.ImagePositionPatient, float)))
        return Sources(tuple(str(ds.SOPInstanceUID) for ds in headers), headers[0])


def dciodvfy_errors(path: Path) -> list[str]:
    """Return the lines in which dciodvfy states an error (it writes to standard error)."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("VALIDATOR MISSING: apt-get install dicom3tools; no result was held against dciodvfy")
    done = subprocess.run(
        [tool, "-new", str(path)], capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def masks(seg: Path, sources: Sources) -> dict[str, np.ndarray]:
    """Return Segment Label -> mask (slices, rows, columns) on the grid of the sources."""
    read = highdicom.seg.segread(seg)
    options = {"assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    found = {}
    for number in read.segment_numbers:
        pixels = read.get_pixels_by_source_instance(list(sources.uids), segment_numbers=[number], **options)
        found[str(read.get_segment_description(number).segment_label)] = pixels[..., 0] > 0
    return found


def references(ds: Dataset) -> set[str]:
    """Return the SOP Instance UIDs in the references of a SEG (PS3.3 C.12.2)."""
    return {
        str(instance.ReferencedSOPInstanceUID)
        for series in ds.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    }


def evidence(ds: Dataset) -> set[str]:
    """Return the SOP Instance UIDs of the evidence of an SR (PS3.3 C.17.2)."""
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def assert_right(seg: Path, sr: Path, job: JobView, sources: Sequence[Sources]) -> dict[str, np.ndarray]:
    """Assert that a SEG and an SR are of this patient, cite exactly these sources, and hold what the job found.

    Parameters
    ----------
    sources
        Of every input; the first is the one on whose grid the segments lie.

    Returns
    -------
    Segment Label -> mask (slices, rows, columns).
    """
    segmentation, report, first = dcmread(seg), dcmread(sr), sources[0].first
    for ds in (segmentation, report):
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
            assert ds.get(keyword) == first.get(keyword), keyword
    received = {uid for one in sources for uid in one.uids}
    assert references(segmentation) == set(sources[0].uids)
    assert evidence(report) == received | {str(segmentation.SOPInstanceUID)}
    assert segmentation.FrameOfReferenceUID == first.FrameOfReferenceUID
    found = masks(seg, sources[0])
    stated = {one["label"]: one for one in job.findings["segments"]}
    assert set(found) == set(stated)
    for label, mask in found.items():
        assert np.count_nonzero(mask) == stated[label]["voxels"]
        if stated[label]["sha256"]:
            assert mask_digest(Segment(label, mask)) == stated[label]["sha256"]
    assert_values(sr, job)
    return found


def assert_values(sr: Path, job: JobView) -> None:
    """Assert that the report's measurements are the job's, each in the group of its segment."""
    groups = highdicom.sr.srread(sr).content.get_volumetric_roi_measurement_groups()
    read = {
        (str(group.tracking_identifier), one.name.meaning, one.unit.value, round(float(one.value), 6))
        for group in groups
        for one in group.get_measurements()
    }
    stated = {
        (one["label"], one["concept"], one["unit"], round(one["value"], 6))
        for one in job.findings["measurements"]
        if one["label"]
    }
    assert stated <= read
