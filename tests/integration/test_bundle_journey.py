"""Bundles of MONAI's model zoo in the node: from C-STORE to a valid SEG and SR in the PACS, also of four series.

Their networks have seeded random weights, so what they find is noise, but it has to arrive voxel for voxel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from keeping_peer import KeepingPeer
from pydicom.uid import MRImageStorage
from readback import Sources, assert_right, dciodvfy_errors
from running_node import nodes, peer_table
from test_zoo_bundles import BRATS_LABELS, installed

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.models.digest import digests
from pacs_ai.states import JobState
from pacs_ai.testing import Phantom
from pacs_ai.testing.series import iterate_phantom

if TYPE_CHECKING:
    from pathlib import Path

WAIT_SECONDS = 3.0
#: Loading takes a while on a busy machine, as three networks do.
READY_SECONDS = 240.0
SERIES = ("t1c", "t1", "t2", "flair")
#: A part of the patient small enough for a CPU: 3 mm, 60 x 144 x 144 mm.
CORNER = Phantom(20, 48, 48, spacing=(3.0, 3.0, 3.0))


def label_table(label):
    table = {"name": label.name, "category": _triplet(label.category), "type": _triplet(label.type)}
    return table | ({"modifier": _triplet(label.modifier)} if label.modifier else {})


def _triplet(code):
    return [code.value, code.scheme, code.meaning]


def pipelines(folders):
    """[[pipeline]] of each bundle: every file by its digest, and a window small enough for a CPU."""
    spleen, body, brats = (
        {"name": name, "bundle": folder, "files": digests(folder)} for name, folder in folders.items()
    )
    spleen["overrides"] = {"inferer#roi_size": [64, 64, 32], "inferer#overlap": 0.1}
    body["overrides"] = {"displayable_configs#highres": False, "inferer#roi_size": [64, 64, 32]}
    brats["overrides"] = {"inferer#roi_size": [64, 64, 32], "inferer#overlap": 0.1}
    brats["labels"] = {value: label_table(label) for value, label in BRATS_LABELS.items()}
    return [spleen, body, brats]


ROUTES = [
    {"when": {"modality": "CT", "description": "spleen"}, "run": "spleen", "deliver_to": ["pacs"]},
    {"when": {"modality": "CT", "description": "body"}, "run": "body", "deliver_to": ["pacs"]},
    {
        "inputs": {name: {"modality": "MR", "description": name} for name in SERIES},
        "run": "brats",
        "deliver_to": ["pacs"],
        "wait_seconds": WAIT_SECONDS,
    },
]


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    peer = KeepingPeer(folder=tmp_path_factory.mktemp("pacs"))
    peer.start()
    yield peer
    peer.stop()


@pytest.fixture(scope="module")
def running(shared_bundles, pacs, tmp_path_factory):
    """A node with three bundles, ready."""
    folder = tmp_path_factory.mktemp("bundles")
    names = {
        "spleen": "spleen_ct_segmentation",
        "body": "wholeBody_ct_segmentation",
        "brats": "brats_mri_segmentation",
    }
    folders = {name: installed(shared_bundles / bundle, folder, seed=3) for name, bundle in names.items()}
    (folders["body"] / "models/model.pt").rename(folders["body"] / "models/model_lowres.pt")
    with nodes(folder) as make:
        node = make(
            peer=[peer_table("pacs", pacs.ae_title, pacs.port)],
            pipeline=pipelines(folders),
            route=ROUTES,
        ).start()
        node.until(lambda: "ready on cpu" in node.log(), seconds=READY_SECONDS, what="loaded networks")
        yield node


@pytest.fixture
def node(running):
    yield running
    running.account()


def write_series(folder: Path, phantom: Phantom, description: str) -> list[Path]:
    """Write a phantom's series under a description; in an MR's clothes where it is one of `SERIES`."""
    folder.mkdir()
    paths = []
    for number, ds in enumerate(iterate_phantom(phantom)):
        ds.SeriesDescription = description
        if description in SERIES:
            ds.Modality, ds.SOPClassUID = "MR", MRImageStorage
            ds.SeriesInstanceUID = derive_uid(ds.SeriesInstanceUID, description)
            ds.SOPInstanceUID = derive_uid(ds.SOPInstanceUID, description)
            ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            contrast = (np.maximum(ds.pixel_array, 0) ** (1.0 - 0.15 * SERIES.index(description))).astype(np.int16)
            ds.PixelData = contrast.tobytes()
            for keyword in ("KVP", "ConvolutionKernel", "GantryDetectorTilt"):
                delattr(ds, keyword)
        paths.append(folder / f"{number:03d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def assert_arrived(node, pacs, job, series):
    """Assert that a valid SEG and SR lie in the PACS; returns the masks."""
    seg, sr = (pacs.path(one.sop_instance_uid) for one in node.results(job.id))
    assert dciodvfy_errors(seg) == []
    assert dciodvfy_errors(sr) == []
    return assert_right(seg, sr, job, [Sources.of(paths) for paths in series])


@pytest.mark.parametrize(("name", "seed", "fewest"), [("spleen", 401, 1), ("body", 402, 5)])
def test_a_ct_bundle(node, pacs, tmp_path, name, seed, fewest):
    phantom = replace(CORNER, seed=seed)
    paths = write_series(tmp_path / "ct", phantom, name)
    node.send_all(paths)
    job = node.delivered(phantom.study_instance_uid)
    masks = assert_arrived(node, pacs, job, [paths])
    assert len(masks) >= fewest
    assert job.pipeline == name


def brats_series(tmp_path, seed, names):
    """Series of one study that share their frame of reference; name -> files."""
    study = replace(CORNER, seed=seed)
    return study, {name: write_series(tmp_path / name, study, name) for name in names}


def test_four_series_are_one_input(node, pacs, tmp_path):
    study, series = brats_series(tmp_path, 410, SERIES)
    for name in reversed(SERIES):
        node.send_all(series[name])
    job = node.delivered(study.study_instance_uid)
    assert [name for name, _, _ in job.sources] == sorted(SERIES)
    masks = assert_arrived(node, pacs, job, [series[name] for name in SERIES])
    assert set(masks) <= {label.name for label in BRATS_LABELS.values()}
    assert masks


def test_a_study_without_flair_is_refused_in_words(node, tmp_path):
    study, series = brats_series(tmp_path, 420, SERIES[:3])
    for paths in series.values():
        node.send_all(paths)
    job = node.job_in(study.study_instance_uid, JobState.REFUSED, JobState.DONE)
    assert job.state is JobState.REFUSED
    assert "flair missing" in job.reason
    assert f"waited {WAIT_SECONDS:g} s" in job.reason
    assert node.results(job.id) == []
