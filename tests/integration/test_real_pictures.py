"""Pictures, maps and derived images of a real CT, with faults of its own, pass the validator."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from encode_material import make_work
from objects import only
from picture_material import PROBABILITY, PURE, SMOOTHING, validator_errors

from pacs_ai.encode.case import Case
from pacs_ai.encode.pictures.overlay import encode_overlay
from pacs_ai.encode.pictures.secondary_capture import encode_secondary_capture
from pacs_ai.encode.pictures.summary import encode_summary
from pacs_ai.encode.voxels.derived import encode_derived_images
from pacs_ai.encode.voxels.parametric_map import encode_parametric_map
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import Derived, Findings, Map, Segment
from pacs_ai.profiles import Kind

MAKERS = {
    only(Kind.SECONDARY_CAPTURE): encode_secondary_capture,
    only(Kind.OVERLAY, "multi-frame"): encode_overlay,
    only(Kind.OVERLAY, "single-frame"): encode_overlay,
    only(Kind.SUMMARY): encode_summary,
    only(Kind.PARAMETRIC_MAP): encode_parametric_map,
    only(Kind.DERIVED_IMAGES): encode_derived_images,
}


@pytest.fixture(scope="module")
def real(shared_data):
    loaded = load_volume(sorted((shared_data / "ct_chest_tcga_thick").glob("*.dcm")))
    air = (loaded.volume.voxels < -700) & (loaded.volume.voxels > -950)
    smooth = loaded.volume.voxels.astype(np.float32) * 0.95
    findings = Findings(
        (Segment("Right lung", air),),
        maps=(Map("Probability", PROBABILITY, PURE, air.astype(np.float32), "Right lung"),),
        images=(Derived("Denoised", SMOOTHING, smooth),),
    )
    return Case(findings, {"image": loaded.evidence}, {"image": loaded.volume}, make_work())


@pytest.mark.parametrize("encoding", MAKERS, ids=lambda one: f"{one.kind}-{one.form}")
def test_a_real_ct_passes_the_validator(encoding, real, tmp_path):
    made = MAKERS[encoding](real, encoding, None)
    assert made
    assert not validator_errors(made[len(made) // 2], tmp_path)


def test_dcmqi_reads_every_number_of_the_map(real, tmp_path):
    program = shutil.which("paramap2itkimage", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("DCMQI MISSING: paramap2itkimage is not installed, so the map was not read by another")
    (made,) = encode_parametric_map(real, only(Kind.PARAMETRIC_MAP), None)
    made.write(tmp_path / "map.dcm")
    command = [program, "--inputDICOM", tmp_path / "map.dcm", "--outputDirectory", tmp_path, "--outputType", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    (written,) = tmp_path.glob("*.nii*")
    values = np.frombuffer(gzip.decompress(written.read_bytes())[352:], "<f4").reshape(real.volume.shape)
    expected = real.findings.maps[0].voxels
    assert any(np.array_equal(values[::s, ::r, ::c], expected) for s in (1, -1) for r in (1, -1) for c in (1, -1))
