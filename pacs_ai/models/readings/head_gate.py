"""Whether a series is a T1-weighted MR of a whole head, by what its header says and by what it shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage

from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.readings.conform import Conformed
    from pacs_ai.pipeline import Array, Volume

#: Least size of what a series covers, and of the head in it: left to right, front to back, feet to head, in mm.
LEAST_COVERED_MM = (120.0, 140.0, 110.0)
LEAST_HEAD_MM = (105.0, 130.0, 100.0)
#: Largest distance of neighbouring voxels in mm.
LARGEST_SPACING_MM = 2.1
#: Longest echo time in ms with which an image may still be T1-weighted.
LONGEST_ECHO_MS = 30.0
#: Brightness (of 255) from which a voxel belongs to the head.
TISSUE = 30
#: The topmost plane may show at most this part of the largest one: the vertex is in the image.
LARGEST_TOP = 0.5

_DIRECTIONS = ("from right to left", "from front to back", "from feet to head")
_OTHER = re.compile(r"T2|FLAIR|DWI|DTI|ADC|SWI|SWAN|TOF|ANGIO|STIR|BOLD|ASL|PERF|DIFF|LOCALI|SCOUT", re.IGNORECASE)
_T1 = re.compile(r"T1|MP-?RAGE|SPGR|BRAVO|TFE|FSPGR", re.IGNORECASE)
_STEP = 4
#: Fewer coarse voxels than this are nothing.
_LEAST_SEEN = 100


def check_header(header: Mapping[str, str]) -> None:
    """Refuse what the header says is not T1-weighted; a header that says nothing passes.

    Raises
    ------
    Refused
        The echo time is long, Acquisition Contrast (0008,9209) is another, or the description names another sequence.
    """
    echo = header.get("EchoTime", "").split("\\")[0].strip()
    if echo and _number(echo) > LONGEST_ECHO_MS:
        words = f"the echo time is {_number(echo):.0f} ms, at most {LONGEST_ECHO_MS:.0f} ms in T1-weighted images"
        raise Refused(f"{words}: the series is none", Reason.MODALITY)
    contrast = header.get("AcquisitionContrast", "").upper()
    if contrast not in {"", "T1", "MIXED", "UNKNOWN"}:
        raise Refused(f"Acquisition Contrast is {contrast}: the series is not T1-weighted", Reason.MODALITY)
    described = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}"
    found = _OTHER.search(described)
    if found and not _T1.search(described):
        words = f"the description of the series says {found.group()}: it is no T1-weighted head"
        raise Refused(words, Reason.MODALITY)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def check_coverage(volume: Volume) -> None:
    """Refuse a series that is too small for a whole head, or too coarse; errors as `check_header`."""
    coarsest = max(volume.spacing)
    if coarsest > LARGEST_SPACING_MM:
        raise Refused(
            f"voxels lie {coarsest:.1f} mm apart: a three-dimensional T1 series of at most {LARGEST_SPACING_MM} mm is "
            "needed",
            Reason.RESOLUTION,
        )
    axes = np.abs(volume.affine[:3, :3])
    # by the axis of the patient that each axis of the grid is nearest to
    covered = [float((axes[patient] * volume.shape).max()) for patient in range(3)]
    for mm, least, direction in zip(covered, LEAST_COVERED_MM, _DIRECTIONS, strict=True):
        if mm < least:
            words = f"the series covers only {mm:.0f} mm {direction}: too little for a whole head"
            raise Refused(words, Reason.TOO_FEW)


def check_head(head: Conformed, volume: Volume) -> None:
    """Refuse what does not look like a head with its top in the image; errors as `check_header`."""
    coarse = head.voxels[::_STEP, ::_STEP, ::_STEP]
    tissue = _largest(scipy.ndimage.binary_opening(coarse > TISSUE))
    if np.count_nonzero(tissue) < _LEAST_SEEN:
        raise Refused("the series shows next to nothing: no head is to be seen", Reason.INTENSITY)
    extents = [int(np.ptp(np.flatnonzero(tissue.any(_others(axis))))) * _STEP for axis in (0, 2, 1)]
    for mm, least, direction in zip(extents, LEAST_HEAD_MM, _DIRECTIONS, strict=True):
        if mm < least:
            words = f"what the series shows is only {mm} mm {direction}: too little for a whole head"
            raise Refused(words, Reason.BODY_PART)
    areas = scipy.ndimage.binary_fill_holes(tissue).sum(axis=(0, 2))
    covered = _covered(head, volume)
    top = int(np.flatnonzero(covered >= 0.5 * covered.max())[0])
    if areas[top : top + 2].max() > LARGEST_TOP * areas.max():
        raise Refused("the top of the head is not in the image, or this is no head", Reason.BODY_PART)


def _others(axis: int) -> tuple[int, int]:
    first, second = (one for one in range(3) if one != axis)
    return first, second


def _largest(mask: Array) -> Array:
    """Return the largest connected part of a mask."""
    parts, count = scipy.ndimage.label(mask)
    if count < 2:
        return mask
    largest: Array = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return largest


def _covered(head: Conformed, volume: Volume) -> Array:
    """Return how many voxels of each coarse plane, from head to feet, lie in the source."""
    turn = np.linalg.inv(volume.affine) @ head.affine
    steps = np.arange(0, head.voxels.shape[0], _STEP)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    at = grid @ turn[:3, :3].T + turn[:3, 3]
    inside = np.all((at >= -0.5) & (at <= np.array(volume.shape) - 0.5), axis=-1)
    counts: Array = inside.sum(axis=(0, 2))
    return counts
