"""A CT on the grid of the lesion detector: axes x, y, z towards right, front and head of the patient, values 0 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, ScaleIntensityRange, Spacing

from pacs_ai.models.grid import ras_affine

if TYPE_CHECKING:
    from pacs_ai.models.readings.lesion_settings import LesionSettings
    from pacs_ai.pipeline import Array, Volume


def on_grid(volume: Volume, settings: LesionSettings) -> tuple[Array, Array]:
    """Return the image, (x, y, z) float32, and its affine, (4, 4) voxel -> RAS mm, as the published transforms do.

    MONAI's Orientation("RAS"), Spacing (linear) and ScaleIntensityRange are used, so that they are the published ones;
    where a series is oblique, Spacing keeps its directions, as in MONAI.
    """
    voxels = np.ascontiguousarray(volume.voxels.transpose(2, 1, 0), dtype=np.float32)
    image = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(ras_affine(volume.affine)))
    image = Orientation("RAS", labels=None)(image)
    image = Spacing(settings.spacing_mm, mode="bilinear")(image)
    low, high = settings.window_hu
    image = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(image)
    return image[0].numpy(), image.affine.numpy().astype(np.float64)
