"""Where segments are: how many voxels each has in each slice, and which rows they touch.

A label map is surveyed once, by its runs: neighbours of one value. There are a few thousand in a slice of 262,144
voxels, and they tell how many voxels each label has and which rows it touches; only those are compared and packed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Array, Segment

Counts = npt.NDArray[np.int64]


def plane(segment: Segment, index: int) -> npt.NDArray[np.bool_]:
    """Return the mask of one slice, (rows, columns) bool, C-contiguous."""
    voxels = segment.voxels[index]
    mask = voxels if voxels.dtype == np.bool_ else voxels == segment.number
    return np.ascontiguousarray(mask)


@dataclass(frozen=True)
class Survey:
    """Where segments are.

    Parameters
    ----------
    counts
        (segments, slices): voxels.
    tops, bottoms
        (segments, slices): the first row with a voxel and the one after the last; both 0 where there is none.
    """

    counts: Counts
    tops: Counts
    bottoms: Counts

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Survey:
        """Look once at every array that the segments have."""
        slices = segments[0].voxels.shape[0] if segments else 0
        found = np.zeros((3, len(segments), slices), np.int64)
        sharing: defaultdict[int, list[int]] = defaultdict(list)
        for row, segment in enumerate(segments):
            sharing[id(segment.voxels)].append(row)
        for rows in sharing.values():
            labels, numbers = labels_of([segments[row] for row in rows])
            distinct, places = np.unique(numbers, return_inverse=True)
            for index in range(slices):
                found[:, rows, index] = _survey_plane(labels[index], distinct)[:, places]
        return cls(*found)


def labels_of(segments: Sequence[Segment]) -> tuple[Array, Array]:
    """Return the array that these segments share as unsigned integers, and their numbers in it, of its type.

    A number that the type cannot hold is 0, which no segment has.
    """
    voxels = segments[0].voxels
    if voxels.dtype == np.bool_:
        return voxels.view(np.uint8), np.ones(len(segments), np.uint8)
    largest = np.iinfo(voxels.dtype).max
    numbers = [segment.number if segment.number <= largest else 0 for segment in segments]
    return voxels, np.array(numbers, voxels.dtype)


def _survey_plane(labels: Array, distinct: Array) -> Counts:
    """Return (3, numbers): voxels, first row and the row after the last of each of the ascending numbers."""
    flat = labels.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values = flat[starts]
    keys = np.searchsorted(distinct, values)
    keys[keys == len(distinct)] = 0
    wanted = (values == distinct[keys]) & (values != 0)
    keys = keys[wanted]
    ends = np.append(starts[1:], len(flat))[wanted]
    starts = starts[wanted]
    found = np.zeros((3, len(distinct)), np.int64)
    found[0] = np.bincount(keys, weights=ends - starts, minlength=len(distinct))
    found[1, keys[::-1]] = starts[::-1] // labels.shape[1]  # of several values for one place the last one stays
    found[2, keys] = (ends - 1) // labels.shape[1] + 1
    return found


def count_voxels(segments: Sequence[Segment]) -> Counts:
    """Return how many voxels each segment has in each slice, (segments, slices)."""
    return Survey.of(segments).counts
