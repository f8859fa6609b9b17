"""A brain PET made less noisy by the T1 of the same head: a derived series, with figures of its noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.grid import aligned, ras_affine, reoriented, same_grid
from pacs_ai.models.readings import head_gate
from pacs_ai.models.readings.liver_grid import box_of, brought_back, zoomed
from pacs_ai.pipeline import PERCENT, Card, Code, Derived, Findings, Measurement, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.networks.apetnet import Apetnet
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array

#: Voxels that the network was trained on; a grid within the tolerance is taken as it is.
VOXEL_MM = 1.0
TOLERANCE_MM = 0.05
#: Both images are divided by this percentile.
BRIGHTEST = 99.99
#: Above this part of its largest value the T1 shows the head.
HEAD_FROM = 0.1
#: Width and length of a head, in mm, and least part of it in which there is activity.
LEAST_HEAD_MM, LARGEST_HEAD_MM = 90.0, 340.0
LEAST_ACTIVE = 0.1
#: Edge of the cube in which noise is measured, in mm.
CUBE_MM = 15.0
#: Planes of the network's input that are computed at once.
SLAB = 24
#: Smoothing is the nearest derivation of PS3.16 CID 7203; the description names the model.
SMOOTHING = Code("113087", "DCM", "Smoothing")
#: Coefficient of variation within a cube, and the change of the mean there; PS3.16 has no such concepts.
NOISE_BEFORE = Code("CVBEFORE", "99PACSAI", "Coefficient of variation as received")
NOISE_AFTER = Code("CVAFTER", "99PACSAI", "Coefficient of variation denoised")
MEAN_CHANGE = Code("MEANCHANGE", "99PACSAI", "Change of the mean by denoising")


class PetDenoise:
    """Denoises the PET ``pet`` by the T1 ``t1`` with pyapetnet.

    Outside of the head that the T1 shows, the PET stays as it is. The noise is measured in the cube of 15 mm, within
    the active part of the head, in which the T1 is most even: it is chosen without a look at the PET's noise.

    Parameters
    ----------
    package
        Has no settings.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._network: Apetnet | None = None
        self._device = "cpu"

    @property
    def card(self) -> Card:
        """What ``model.toml`` says."""
        return self._package.card

    def prepare(self, device: str) -> None:
        """Load the network onto the device."""
        from pacs_ai.models.networks.apetnet import Apetnet

        network = Apetnet()
        network.load_state_dict(self._package.tensors())
        self._network, self._device = network.eval().to(device), device

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Return the denoised series on the grid of ``pet``, and three figures of the noise in per cent.

        Raises
        ------
        Refused
            Where the PET is a sinogram, the MR says that it is no T1, or shows no head that lies in the PET.
        """
        pet, t1 = inputs["pet"], inputs["t1"]
        if "SINOGRAM" in pet.header.get("ImageType", "").upper().split("\\"):
            raise Refused("pet is a sinogram, not an image: reconstruct it first", Reason.MODALITY)
        head_gate.check_header(t1.header)
        if self._network is None:
            self.prepare(self._device)
        anatomy = _on_pet(t1, pet)
        images, spacing = _upright(pet, pet.voxels), _spacing(pet)
        head = _upright(pet, anatomy)
        box = _head(head, images, spacing)
        factors = [mm / VOXEL_MM if abs(mm - VOXEL_MM) > TOLERANCE_MM else 1.0 for mm in spacing]
        seen = np.maximum(zoomed(images[box], factors), 0)
        guide = zoomed(head[box], factors)
        made = self._denoised(seen, guide)
        figures = _noise(seen, made, guide)
        result = np.array(images, np.float32)
        result[box] = brought_back(made, result[box].shape, factors) if factors != [1.0] * 3 else made
        back = _turned_back(pet, result)
        return Findings(measurements=figures, images=(Derived("Denoised", SMOOTHING, back),), grid="pet")

    def _denoised(self, pet: Array, t1: Array) -> Array:
        """Return the network's answer on its own grid, slab by slab, which changes nothing of it."""
        import torch

        from pacs_ai.models.networks.apetnet import REACH

        assert self._network is not None
        scale = [max(float(np.percentile(one, BRIGHTEST)), 1e-12) for one in (pet, t1)]
        made = np.empty(pet.shape, np.float32)
        for first in range(0, pet.shape[2], SLAB):
            low, high = max(0, first - REACH), min(pet.shape[2], first + SLAB + REACH)
            given = [
                torch.from_numpy(np.ascontiguousarray(one[..., low:high] / by, np.float32))[None, None].to(self._device)
                for one, by in zip((pet, t1), scale, strict=True)
            ]
            with torch.inference_mode():
                answer = self._network(*given)[0, 0].float().cpu().numpy()
            end = min(pet.shape[2], first + SLAB)
            made[..., first:end] = answer[..., first - low : end - low]
        return made * np.float32(scale[0])


def _on_pet(t1: Volume, pet: Volume) -> Array:
    """Return the T1 on the PET's grid, to which the node brought it, or on which it lies by its Frame of Reference."""
    if same_grid(t1.shape, t1.affine, pet.shape, pet.affine):
        return t1.voxels
    if not t1.frame_of_reference_uid or t1.frame_of_reference_uid != pet.frame_of_reference_uid:
        words = "t1 and pet have different frames of reference and were not registered: their places are unknown"
        raise Refused(words, Reason.ALIGNMENT)
    return aligned(t1, pet, "t1", "pet")


def _upright(pet: Volume, voxels: Array) -> Array:
    """Return voxels on the PET's grid with axes x, y, z (RAS)."""
    return reoriented(voxels.transpose(2, 1, 0), ras_affine(pet.affine), "RAS")[0]


def _spacing(pet: Volume) -> tuple[float, float, float]:
    affine = reoriented(pet.voxels.transpose(2, 1, 0), ras_affine(pet.affine), "RAS")[1]
    x, y, z = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    return x, y, z


def _turned_back(pet: Volume, made: Array) -> Array:
    like = ras_affine(pet.affine)
    affine = reoriented(pet.voxels.transpose(2, 1, 0), like, "RAS")[1]
    return np.ascontiguousarray(reoriented(made, affine, like)[0].transpose(2, 1, 0))


def _head(t1: Array, pet: Array, spacing: tuple[float, float, float]) -> tuple[slice, slice, slice]:
    """Return where the T1 shows the head; refuse what is none, or has no activity."""
    shown = t1 > HEAD_FROM * float(t1.max())
    if not shown.any():
        raise Refused("t1 is empty where the PET is: they show different places", Reason.ALIGNMENT)
    box = box_of(shown)
    size = [(one.stop - one.start) * mm for one, mm in zip(box, spacing, strict=True)]
    if min(size) < LEAST_HEAD_MM or max(size[:2]) > LARGEST_HEAD_MM:
        words = " x ".join(f"{mm:.0f}" for mm in size)
        told = f"what t1 shows within pet measures {words} mm, which is no head: the model knows brains only"
        raise Refused(told, Reason.BODY_PART)
    active = float(np.mean(pet[box] > 0.1 * float(np.percentile(pet[box], 99.5))))
    if active < LEAST_ACTIVE:
        told = f"only {100 * active:.0f} % of the head that t1 shows has activity: pet shows another place"
        raise Refused(told, Reason.ALIGNMENT)
    return box


def _noise(before: Array, after: Array, t1: Array) -> tuple[Measurement, Measurement, Measurement]:
    """Return the coefficient of variation before and after, and the change of the mean, in the most even cube."""
    cube = _most_even(before, t1)
    old, new = before[cube], after[cube]
    values = (100 * old.std() / old.mean(), 100 * new.std() / new.mean(), 100 * (new.mean() / old.mean() - 1))
    first, second, third = (
        Measurement(concept, float(value), PERCENT)
        for concept, value in zip((NOISE_BEFORE, NOISE_AFTER, MEAN_CHANGE), values, strict=True)
    )
    return first, second, third


def _most_even(pet: Array, t1: Array) -> tuple[slice, slice, slice]:
    """Return the cube in which the T1 varies least by its mean, among those as active as a brain."""
    from scipy import ndimage

    size = round(CUBE_MM / VOXEL_MM)
    mean = ndimage.uniform_filter(t1, size)
    square = ndimage.uniform_filter(t1 * t1, size)
    active = ndimage.uniform_filter(pet, size)
    varies = np.sqrt(np.maximum(square - mean * mean, 0)) / np.maximum(mean, 1e-6)
    wanted = (active > 0.25 * float(np.percentile(pet, 99.5))) & (mean > 0.25 * float(np.percentile(t1, 99.5)))
    half = size // 2
    inner = np.zeros(pet.shape, bool)
    inner[half:-half, half:-half, half:-half] = True
    wanted &= inner
    if not wanted.any():
        words = "no part of the head is active enough for a brain: pet shows another tracer, or another place"
        raise Refused(words, Reason.OUT_OF_DISTRIBUTION)
    at = np.unravel_index(int(np.argmin(np.where(wanted, varies, np.inf))), pet.shape)
    x, y, z = (slice(int(one) - half, int(one) + half + 1) for one in at)
    return x, y, z
