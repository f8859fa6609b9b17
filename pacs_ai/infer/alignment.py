"""Several series of one study on one grid: resampled where they share coordinates, registered rigidly where not."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pacs_ai.encode.ground import shown_as
from pacs_ai.errors import Reason, Refused
from pacs_ai.pipeline import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.pipeline import Array, Card, Findings, Given

Matrix = npt.NDArray[np.float64]

#: Of each level: voxel size in mm, width of its Gaussian in mm, part of the voxels that are looked at.
LEVELS = ((8.0, 4.0, 1.0), (4.0, 2.0, 0.5), (2.0, 1.0, 0.1))
FEWEST_BLOCKS = 12  #: along each axis
MOST_STEPS, SEED = 200, 1
BINS = 48  #: of the joint histogram of the mutual information (Mattes et al., IEEE TMI 2003)
#: Two registrations, each way, may disagree by so much anywhere in the field of view.
MOST_INCONSISTENT_MM = 3.0
#: Two unrelated images have 1; the least that is taken (Studholme et al., Pattern Recognition 1999).
LEAST_NMI = 1.03
#: Part of the first input's grid that the other must cover.
LEAST_COVERED = 0.05


@dataclass(frozen=True)
class Registration:
    """How one volume lies in the coordinates of another.

    Parameters
    ----------
    matrix
        (4, 4): coordinates of the fixed volume -> coordinates of the moving one, in mm in LPS; a rigid motion.
    inconsistency_mm
        How far apart the registrations fixed -> moving and moving -> fixed carry the corners of the middle half of the
        fixed volume: the quality figure, 0 at best.
    nmi
        Normalised mutual information (H(a) + H(b)) / H(a, b) of what overlaps, 1 to 2.
    """

    matrix: Matrix
    inconsistency_mm: float
    nmi: float


def grid_of(card: Card) -> str:
    """Return the input onto whose grid others are brought: the card's first that is not itself to be brought."""
    return next((name for name, wanted in card.inputs.items() if not wanted.align), next(iter(card.inputs)))


def on_own_grid(card: Card, findings: Findings) -> Findings:
    """Return the findings; those on an input that was brought onto another's grid lie on that one."""
    wanted = card.inputs.get(findings.grid)
    return replace(findings, grid=grid_of(card)) if wanted is not None and wanted.align else findings


def align(card: Card, inputs: Mapping[str, Given]) -> tuple[dict[str, Given], tuple[str, ...]]:
    """Return the inputs, those to be aligned on the grid of the first, and how well that went, in words.

    Raises
    ------
    Refused
        Where an input is no volume, shows another place, or cannot be registered with confidence.
    """
    found, notes = dict(inputs), []
    first = grid_of(card)
    for name, wanted in card.inputs.items():
        if wanted.align and name != first:
            found[name], note = _onto(first, inputs[first], name, inputs[name])
            notes.append(note)
    return found, tuple(notes)


def _onto(first: str, ground: Given, name: str, given: Given) -> tuple[Volume, str]:
    fixed = shown_as(ground)
    if not isinstance(fixed, Volume) or not isinstance(given, Volume):
        raise Refused(f"{name} cannot be brought onto the grid of {first}: both must be volumes", Reason.ALIGNMENT)
    if fixed.frame_of_reference_uid and fixed.frame_of_reference_uid == given.frame_of_reference_uid:
        matrix, note = np.eye(4), f"{name} was resampled onto the grid of {first}: one frame of reference"
    else:
        found = register(fixed, given)
        figures = f"agreement within {found.inconsistency_mm:.1f} mm, normalised mutual information {found.nmi:.2f}"
        if found.inconsistency_mm > MOST_INCONSISTENT_MM or found.nmi < LEAST_NMI:
            raise Refused(
                f"{name} and {first} have different frames of reference and cannot be registered with confidence: "
                f"{figures}; needed are {MOST_INCONSISTENT_MM:g} mm and {LEAST_NMI:g}",
                Reason.ALIGNMENT,
            )
        matrix, note = found.matrix, f"{name} was registered rigidly to {first}: {figures}"
    moved, covered = resample(fixed, given, matrix)
    if covered < LEAST_COVERED:
        raise Refused(f"{name} covers {100 * covered:.0f} % of {first}: they show different places", Reason.ALIGNMENT)
    return moved, note if covered > 1 - LEAST_COVERED else f"{note}; it covers {100 * covered:.0f} % of it"


def resample(fixed: Volume, moving: Volume, matrix: Matrix) -> tuple[Volume, float]:
    """Return the moving volume on the fixed grid, linearly interpolated, and which part of the grid it covers.

    Parameters
    ----------
    matrix
        As of `Registration`. Where there is nothing of the moving volume, its smallest value stands.
    """
    sitk = _toolkit()

    ground, transform = _image(fixed), _transform(matrix)
    lowest = float(moving.voxels.min())
    image = sitk.Resample(_image(moving), ground, transform, sitk.sitkLinear, lowest, sitk.sitkFloat32)
    values: Array = sitk.GetArrayFromImage(image)
    if moving.voxels.dtype.kind in "iu":
        values = np.rint(values).astype(moving.voxels.dtype)
    solid = sitk.Image(_image(moving).GetSize(), sitk.sitkUInt8) + 1
    solid.CopyInformation(_image(moving))
    inside = sitk.Resample(solid, ground, transform, sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8)
    covered = float(sitk.GetArrayViewFromImage(inside).mean())
    moved = replace(moving, voxels=values, affine=fixed.affine, frame_of_reference_uid=fixed.frame_of_reference_uid)
    return moved, covered


def register(fixed: Volume, moving: Volume) -> Registration:
    """Find the rigid motion that brings two volumes of one patient together, of whatever modality.

    Mutual information over three resolutions, from the better of two starts (the middles of the volumes, and of what
    they show); deterministic: one thread, samples drawn with one seed. Takes some seconds.
    """
    still, moved_levels = _pyramid(fixed), _pyramid(moving)
    with _one_thread():
        there = _matrix(_optimise(still, moved_levels))
        back = _matrix(_optimise(moved_levels, still))
    corners = _corners(fixed)
    apart = (back @ there @ corners - corners)[:3]
    inconsistency = float(np.linalg.norm(apart, axis=0).max())
    moved, _ = resample(fixed, moving, there)
    return Registration(there, inconsistency, normalised_mutual_information(fixed.voxels, moved.voxels))


def normalised_mutual_information(one: Array, other: Array) -> float:
    """Return (H(a) + H(b)) / H(a, b) of two arrays of one shape, in 64 bins each; 1 where they are unrelated."""
    steps = tuple(slice(None, None, max(1, size // 96)) for size in one.shape)
    joint, _, _ = np.histogram2d(one[steps].ravel(), other[steps].ravel(), 64)
    total = joint / joint.sum()
    both, first, second = (_entropy(part) for part in (total, total.sum(axis=1), total.sum(axis=0)))
    return (first + second) / both if both > 0 else 1.0


def _entropy(part: Array) -> float:
    filled = part[part > 0]
    return float(-(filled * np.log(filled)).sum())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK use one thread: the order in which several add up the histogram changes the result."""
    process = _toolkit().ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)


def _toolkit() -> Any:
    """Return SimpleITK, which takes a third of a second to import and has no types."""
    import SimpleITK

    return SimpleITK


def _corners(volume: Volume) -> Matrix:
    """Return (4, 8): the corners of the middle half of a volume in the patient."""
    ends = [((size - 1) * 0.25, (size - 1) * 0.75) for size in volume.shape]
    corners: Matrix = volume.affine @ np.array([[*corner, 1.0] for corner in product(*ends)]).T
    return corners


def _image(volume: Volume) -> Any:
    """Return the volume as SimpleITK's image: x runs along columns, y along rows, z along slices."""
    sitk = _toolkit()

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels, np.float32))
    spacing = volume.spacing
    axes = volume.affine[:3, :3] / np.array(spacing)
    image.SetSpacing([spacing[2], spacing[1], spacing[0]])
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection(axes[:, ::-1].ravel().tolist())
    return image


def _pyramid(volume: Volume) -> list[Any]:
    """Return the volume at each level: means of blocks, smoothed."""
    sitk = _toolkit()
    return [sitk.DiscreteGaussian(_image(_blocks(volume, size_mm)), sigma_mm**2) for size_mm, sigma_mm, _ in LEVELS]


def _blocks(volume: Volume, size_mm: float) -> Volume:
    """Return the means of blocks of about this size; what does not fill a block at the end is left out."""
    factors = [
        max(1, min(round(size_mm / spacing), size // FEWEST_BLOCKS))
        for spacing, size in zip(volume.spacing, volume.shape, strict=True)
    ]
    kept = [size // factor for size, factor in zip(volume.shape, factors, strict=True)]
    whole = volume.voxels[tuple(slice(0, count * factor) for count, factor in zip(kept, factors, strict=True))]
    split = whole.reshape([size for pair in zip(kept, factors, strict=True) for size in pair])
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * factors
    affine[:3, 3] += volume.affine[:3, :3] @ [(factor - 1) / 2 for factor in factors]
    return replace(volume, voxels=split.mean(axis=(1, 3, 5), dtype=np.float32), affine=affine)


def _optimise(still: Sequence[Any], moved: Sequence[Any]) -> Any:
    """Return SimpleITK's rigid transform from the coordinates of one pyramid to those of the other."""
    transform = _start(still[0], moved[0])
    for level, pair in zip(LEVELS, zip(still, moved, strict=True), strict=True):
        transform = _climb(*pair, transform, level)
    return transform


def _start(still: Any, moved: Any) -> Any:
    """Return the better of two starts by mutual information."""
    sitk = _toolkit()

    kinds = sitk.CenteredTransformInitializerFilter
    starts = [
        sitk.Euler3DTransform(sitk.CenteredTransformInitializer(still, moved, sitk.Euler3DTransform(), kind))
        for kind in (kinds.GEOMETRY, kinds.MOMENTS)
    ]
    starts.append(_at_rest(still))
    return min(starts, key=lambda start: _score(still, moved, start))


def _at_rest(still: Any) -> Any:
    sitk = _toolkit()

    middle = still.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in still.GetSize()])
    start = sitk.Euler3DTransform()
    start.SetCenter(middle)
    return start


def _score(still: Any, moved: Any, start: Any) -> float:
    method = _method()
    method.SetInitialTransform(start)
    try:
        return float(method.MetricEvaluate(still, moved))
    except RuntimeError:  # the volumes do not overlap so
        return float("inf")


def _method(part: float = 1.0) -> Any:
    sitk = _toolkit()

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(part, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _climb(still: Any, moved: Any, start: Any, level: tuple[float, float, float]) -> Any:
    """Return the transform after one level; `Refused` where the volumes do not overlap."""
    sitk = _toolkit()

    size_mm, _, part = level
    method = _method(part)
    method.SetOptimizerAsRegularStepGradientDescent(
        size_mm / 2, size_mm / 2000, MOST_STEPS, relaxationFactor=0.8, gradientMagnitudeTolerance=1e-10
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(still, moved)
    except RuntimeError as error:
        raise Refused(
            "two series have different frames of reference and cannot be registered: they do not overlap",
            Reason.ALIGNMENT,
        ) from error
    return sitk.Euler3DTransform(found.GetNthTransform(0) if hasattr(found, "GetNthTransform") else found)


def _matrix(transform: Any) -> Matrix:
    """Return the (4, 4) matrix of a rigid transform."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3).tolist()]
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(columns).T
    matrix[:3, 3] = origin
    return matrix


def _transform(matrix: Matrix) -> Any:
    sitk = _toolkit()

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.asarray(matrix)[:3, :3].ravel().tolist())
    transform.SetTranslation(np.asarray(matrix)[:3, 3].tolist())
    return transform
