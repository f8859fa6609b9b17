"""Segmentations read again as voxels by tools that did not write them: highdicom, and dcmqi where it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest


def by_highdicom(path, evidence):
    """Segment Number -> mask (slices, rows, columns) on the grid of the sources."""
    read = highdicom.seg.segread(path)
    options = {"assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    if evidence.slices[0].frame_number is None:
        pixels = read.get_pixels_by_source_instance([one.sop_instance_uid for one in evidence.slices], **options)
    else:
        numbers = [one.frame_number for one in evidence.slices]
        pixels = read.get_pixels_by_source_frame(evidence.slices[0].sop_instance_uid, numbers, **options)
    return {int(number): pixels[..., place] for place, number in enumerate(read.segment_numbers)}


def by_dcmqi(path, volume, folder):
    """Segment Number -> mask (slices, rows, columns); each voxel lies where dcmqi says it lies in the patient."""
    found = {}
    for values in _files_of_dcmqi(path, volume, folder).values():
        for number in np.unique(values[values > 0]).tolist():
            found.setdefault(int(number), np.zeros(volume.shape, bool))[values == number] = True
    return found


def by_dcmqi_values(path, volume, folder):
    """Segment Number -> values (slices, rows, columns) of a fractional segmentation, as `by_dcmqi`."""
    return _files_of_dcmqi(path, volume, folder)


def _files_of_dcmqi(path, volume, folder):
    """Number of the file -> values (slices, rows, columns)."""
    tool = Path(sys.executable).with_name("segimage2itkimage")
    if not tool.exists():
        pytest.skip("READER MISSING: pip install dcmqi; nothing was read by it")
    folder.mkdir()
    command = [tool, "--inputDICOM", path, "--outputDirectory", folder, "-p", "seg", "-t", "nii"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        int(file.name.removeprefix("seg-").removesuffix(".nii.gz")): _in_place(nibabel.load(file), volume)
        for file in sorted(folder.glob("*.nii.gz"))
    }


def _in_place(image, volume):
    values = np.asanyarray(image.dataobj)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    to_index = np.linalg.inv(volume.affine) @ to_lps
    places = np.argwhere(values)
    exact = places @ to_index[:3, :3].T + to_index[:3, 3]
    indices = np.rint(exact).astype(int)
    assert np.abs(exact - indices).max() < 0.01
    found = np.zeros(volume.shape, values.dtype)
    found[tuple(indices.T)] = values[tuple(places.T)]
    return found
