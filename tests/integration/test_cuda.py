"""The same findings on an NVIDIA GPU as on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pacs_ai.models.bundle import BundleSpec, MonaiBundle
from pacs_ai.models.digest import digests
from pacs_ai.models.lung import CtLung
from pacs_ai.testing import Phantom, phantom_truth

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Volume

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def _needs_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("NO NVIDIA GPU: nothing was tested on CUDA here")


def test_auto_takes_the_gpu():
    from pacs_ai.infer.device import resolve_device

    assert resolve_device("auto").startswith("cuda")


@pytest.mark.parametrize("spacing", [None, (5.0, 0.8, 0.8)])
def test_ct_lung_finds_the_same_voxels(spacing):
    phantom = Phantom(spacing=spacing) if spacing is None else Phantom(slices=60, spacing=spacing)
    volume = phantom.volume()
    found = {}
    for device in ("cpu", "cuda:0"):
        pipeline = CtLung()
        pipeline.prepare(device)
        found[device] = pipeline.run({"image": volume})
    assert np.array_equal(found["cpu"].segments[0].voxels, found["cuda:0"].segments[0].voxels)
    for cpu, cuda in zip(found["cpu"].measurements, found["cuda:0"].measurements, strict=True):
        assert cuda.value == pytest.approx(cpu.value, rel=1e-5)
    truth = phantom_truth(phantom)
    for measurement in found["cuda:0"].measurements:
        if measurement.unit.value == "ml":
            assert measurement.value == pytest.approx(truth.volumes_ml[measurement.label], rel=0.01)


def test_bundle_gives_the_same_labels_with_mixed_precision(shared_bundles, tmp_path):
    from test_zoo_bundles import installed

    folder = installed(shared_bundles / "spleen_ct_segmentation", tmp_path, seed=3)
    volume = Phantom(slices=40, rows=96, columns=96, spacing=(5.0, 4.0, 4.0)).volume()
    found = {device: labels_of(folder, volume, device) for device in ("cpu", "cuda:0")}
    assert np.mean(found["cpu"] == found["cuda:0"]) >= 0.99


def labels_of(folder: Path, volume: Volume, device: str) -> np.ndarray:
    bundle = MonaiBundle(BundleSpec(folder=folder, files=digests(folder)))
    bundle.prepare(device)
    return bundle.run({"image": volume}).segments[0].mask


def test_exhausted_gpu_memory_is_a_crash_that_is_tried_again():
    import torch

    from pacs_ai.infer.analysis import foreign_code

    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(MemoryError), foreign_code("greedy", "running"):
        torch.empty(free * 2, dtype=torch.uint8, device="cuda:0")
    assert torch.zeros(8, device="cuda:0").sum().item() == 0
