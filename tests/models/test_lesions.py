"""The lesion detector's decisions on planted spheres: found once, where they are, in every orientation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.models.package import ZOO, Package, read
from pacs_ai.models.readings.lesion_settings import LesionSettings
from pacs_ai.models.runtimes.lesion_detection import LesionDetection
from pacs_ai.pipeline import Shape, Volume

if TYPE_CHECKING:
    from pacs_ai.pipeline import Detection

LUNG, TISSUE = -850, 40
#: Centres in LPS mm; all have this diameter.
SPHERES = ((-14.0, -12.0, 10.0), (12.0, 8.0, -9.0), (10.0, -14.0, 12.0))
DIAMETER = 8.0
#: In mm: what windows that cut a sphere move its box by, and half a voxel.
NEAR = 1.0


def turn(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


#: Directions of slices, rows and columns, as columns of a matrix.
ORIENTATIONS = {
    "axial": np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]),
    "axial, downwards": np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]]),
    "coronal": np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]]),
    "sagittal": np.array([[1, 0, 0], [0, 0, 1.0], [0, -1, 0]]),
    "oblique": turn(12) @ np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]),
}


def chest(directions: np.ndarray, spacing=(1.25, 0.8, 0.8), shape=(40, 60, 60), spheres=SPHERES) -> Volume:
    """Lung everywhere, and spheres of soft tissue."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"))
    places = np.einsum("ij,jabc->iabc", affine[:3, :3], index) + affine[:3, 3][:, None, None, None]
    voxels = np.full(shape, LUNG, np.int16)
    for centre in spheres:
        apart = np.linalg.norm(places - np.array(centre)[:, None, None, None], axis=0)
        voxels[apart <= DIAMETER / 2] = TISSUE
    return Volume(voxels, affine, "CT")


class Planted(torch.nn.Module):
    """Stands in for a trained network: around soft tissue it is sure, and draws the box of the sphere there."""

    anchors = torch.tensor([[6.0, 8, 4], [8, 6, 4], [10, 10, 6]])  # MONAI rounds half of 5 down
    size = DIAMETER / torch.tensor([0.703125, 0.703125, 1.25])

    def forward(self, image: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        levels: dict[str, list[torch.Tensor]] = {"classification": [], "box_regression": []}
        tissue = (image - 0.2).clamp(min=0)
        mean = self._mean(tissue)
        where = [torch.arange(size, dtype=image.dtype) for size in image.shape[2:]]
        grid = torch.meshgrid(*where, indexing="ij")
        shifts = [self._mean(tissue * axis) / mean.clamp(min=1e-6) - axis for axis in grid]
        for level in range(3):
            # anchors are centred on the cells of the feature map
            x, y, z = (slice(step // 2, None, step) for step in (4 << level, 4 << level, 2 << level))
            sure = 60 * mean[:, :, x, y, z] - 5 if level == 0 else mean[:, :, x, y, z] * 0 - 20
            levels["classification"].append(sure.repeat(1, 3, 1, 1, 1))
            at = [shift[:, 0, x, y, z] for shift in shifts]
            deltas = []
            for anchor in self.anchors * (1 << level):
                deltas += [shift / side for shift, side in zip(at, anchor, strict=True)]
                deltas += [torch.full_like(at[0], float(one)) for one in torch.log(self.size / anchor)]
            levels["box_regression"].append(torch.stack(deltas, 1))
        return levels

    @staticmethod
    def _mean(values: torch.Tensor) -> torch.Tensor:
        for kernel in ((13, 1, 1), (1, 13, 1), (1, 1, 7)):
            values = torch.nn.functional.avg_pool3d(values, kernel, 1, [size // 2 for size in kernel])
        return values


def package(name: str = "ct-lung-nodules", **settings) -> Package:
    one = read(ZOO / name)
    model = one.model.model_copy(update={"settings": {**one.model.settings, **settings}})
    return replace(one, model=model)


def planted(**settings) -> LesionDetection:
    pipeline = LesionDetection(package(**settings))
    pipeline.install(Planted(), "cpu")
    return pipeline


def place(found: Detection, volume: Volume) -> np.ndarray:
    """Return the middle of the outline in LPS mm."""
    assert found.region is not None
    assert found.region.shape is Shape.POLYLINE
    column, row = (found.region.points.min(0) + found.region.points.max(0)) / 2 - 0.5
    return (volume.affine @ [found.region.index, row, column, 1])[:3]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_sphere_is_found_once_where_it_is(orientation):
    volume = chest(ORIENTATIONS[orientation])
    findings = planted().run({"image": volume})
    assert len(findings.detections) == len(SPHERES)
    for centre in SPHERES:
        apart = [float(np.linalg.norm(place(one, volume) - centre)) for one in findings.detections]
        assert min(apart) < NEAR
    for one in findings.detections:
        assert one.probability is not None
        assert one.probability > 0.9
        diameter, volume_ml = (measurement.value for measurement in one.measurements)
        assert diameter == pytest.approx(DIAMETER, abs=0.2)
        assert volume_ml == pytest.approx(np.pi / 6 * diameter**3 / 1000, rel=0.05)
        assert one.diameters is not None
        assert one.diameters.index == one.region.index
        long, short = (
            np.linalg.norm((line[1] - line[0]) * volume.spacing[2:0:-1])
            for line in (one.diameters.long_axis, one.diameters.short_axis)
        )
        assert DIAMETER - 0.3 < short <= long + 1e-4 < DIAMETER + 0.3


def test_windows_find_what_the_whole_finds_and_nothing_twice():
    volume = chest(ORIENTATIONS["axial"])
    whole = planted(window=[512, 512, 192]).boxes(volume)
    tiled = planted(window=[48, 48, 16]).boxes(volume)
    assert len(whole) == len(SPHERES) == len([box for box in tiled if box.probability >= 0.5])
    for one in whole:
        nearest = min(tiled, key=lambda other: float(np.linalg.norm(one.centre - other.centre)))
        assert np.linalg.norm(one.centre - nearest.centre) < NEAR


@pytest.mark.parametrize("settings", [{"smallest_mm": 9.0}, {"largest_mm": 5.0}, {"threshold": 0.99999999}])
def test_thresholds_of_size_and_probability(settings):
    assert planted(**settings).run({"image": chest(ORIENTATIONS["axial"])}).detections == ()


def test_no_lesion_is_an_answer():
    assert planted().run({"image": chest(ORIENTATIONS["axial"], spheres=())}).detections == ()


def test_a_lesion_at_the_border_stays_within_the_image():
    volume = chest(ORIENTATIONS["axial"], spheres=((-22.0, 0.0, 0.0),))
    (found,) = planted().run({"image": volume}).detections
    assert found.region is not None
    assert found.region.points.min() >= 0
    assert (found.region.points <= [60, 60]).all()


def test_what_is_refused():
    with pytest.raises(Refused, match="missing"):
        planted().run({})
    bright = chest(ORIENTATIONS["axial"])
    with pytest.raises(Refused, match="no air"):
        planted().run({"image": replace(bright, voxels=bright.voxels + 1000)})
    with pytest.raises(PipelineFault, match="before it was prepared"):
        LesionDetection(package()).run({"image": bright})
    for wrong in ({"nonsense": 1}, {"threshold": 0.001}, {"window": [50, 48, 16]}, {"seed_weights": "3"}):
        with pytest.raises(PipelineFault, match="of ct-lung-nodules"):
            LesionDetection(package(**wrong))


def test_the_settings_are_those_of_the_published_configuration(shared_bundles):
    import json

    published = json.loads((shared_bundles / "lung_nodule_ct_detection/configs/inference.json").read_text())
    ours = LesionSettings()
    steps = {step["_target_"]: step for step in published["preprocessing"]["transforms"]}
    assert list(ours.spacing_mm) == steps["Spacingd"]["pixdim"]
    scale = steps["ScaleIntensityRanged"]
    assert (*ours.window_hu, 0.0, 1.0) == (scale["a_min"], scale["a_max"], scale["b_min"], scale["b_max"])
    anchors = published["anchor_generator"]
    assert [list(shape) for shape in ours.anchors] == anchors["base_anchor_shapes"]
    assert [2**level for level in range(len(ours.layers) + 1)] == anchors["feature_map_scales"]
    assert list(ours.window) == published["infer_patch_size"]
    assert list(ours.divisible) == published["size_divisible"]
    operations = " ".join(published["detector_ops"])
    for words in ("score_thresh=0.02", "nms_thresh=0.22", "detections_per_img=300", "overlap=0.25"):
        assert words in operations
    assert f"conv1_t_stride={list(ours.first_stride)}".replace(" ", "") in published["backbone"]
    assert f",{list(ours.layers)}".replace(" ", "") in published["feature_extractor"]


def test_both_packages_of_the_zoo_wait_for_a_checkpoint():
    for name in ("ct-lung-nodules", "ct-lesions"):
        one = read(ZOO / name)
        assert one.missing == ("weights.safetensors",)
        with pytest.raises(PipelineFault, match="is not here"):
            one.build()
        assert LesionDetection(one).card.labels
