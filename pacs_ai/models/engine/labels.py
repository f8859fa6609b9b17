"""From slabs of a network's output to labels on the source's grid; the output itself is never there as a whole.

Between two grids lies a linear interpolation, whose result is nowhere larger than its largest neighbour. So in a block
of voxels most classes are ruled out before anything is interpolated: one whose largest value lies below the smallest
value of another can win nowhere in the block. Where a single class is left, which is nearly everywhere, the block has
its label without any arithmetic. The result is that of interpolating everything and taking the largest.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.models.engine.resample import Grids
    from pacs_ai.pipeline import Array

#: Values of one block, which stay in the cache of a processor.
_BLOCK_VALUES = 200_000
_BLOCK = (8, 16, 16)
#: Values interpolated at a time on a GPU, where whole planes are quicker than looking what can be spared.
_GPU_VALUES = 1 << 28


@dataclass(frozen=True)
class _Span:
    """Indices of the new grid, the old ones that they hang on, and the weights between (new, old)."""

    new: slice
    old: slice
    weights: torch.Tensor | None


class _Axis:
    """One axis of two grids: which old planes each new one hangs on."""

    def __init__(self, matrix: Array) -> None:
        used = matrix != 0
        self.size = matrix.shape[0]
        self.first = used.argmax(1)
        self.last = matrix.shape[1] - 1 - used[:, ::-1].argmax(1)
        self._same = matrix.shape[0] == matrix.shape[1]
        self._matrix = torch.from_numpy(matrix.astype(np.float32))

    def span(self, start: int, stop: int, device: torch.device) -> _Span:
        old = slice(int(self.first[start]), int(self.last[stop - 1]) + 1)
        weights = None if self._same else self._matrix[start:stop, old].to(device)
        return _Span(slice(start, stop), old, weights)

    def spans(self, length: int, device: torch.device) -> list[_Span]:
        """Cut the axis into parts that hang on about `length` old planes each."""
        cuts, start = [0], int(self.first[0])
        for index in range(self.size):
            if self.first[index] >= start + length:
                cuts.append(index)
                start = int(self.first[index])
        return [self.span(one, other, device) for one, other in zip(cuts, [*cuts[1:], self.size], strict=True)]


@dataclass
class LabelMap:
    """A label map on the source's grid that fills as slabs of the network's output come in.

    Parameters
    ----------
    grids
        From the network's grid to the source's; linear, or nearest, along each axis.
    regions
        None: each voxel gets the number of its largest channel. Else channel i paints `regions[i]` where it is above 0
        (a probability above 0.5), later channels over earlier ones.
    classes
        Largest label + 1, which decides between uint8 and uint16.
    """

    grids: Grids
    regions: Sequence[int] | None = None
    classes: int = 256
    labels: Array = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.zeros(self.grids.new_sizes, np.uint8 if self.classes <= 256 else np.uint16)
        self._axes = [_Axis(self.grids.matrix(axis)) for axis in range(3)]
        self._kept: torch.Tensor | None = None
        self._start = 0
        self._done = 0

    def take(self, planes: torch.Tensor) -> None:
        """Take the next planes (channels, planes, rows, columns) float32; they are not needed afterwards."""
        with _one_thread(planes.device):
            self._take(planes)

    def _take(self, planes: torch.Tensor) -> None:
        slab = planes if self._kept is None else torch.cat([self._kept, planes], 1)
        stop = self._start + slab.shape[1]
        first = self._axes[0]
        ready = int(np.searchsorted(first.last, stop))
        most = max(1, _GPU_VALUES // (len(slab) * math.prod(self.grids.new_sizes[1:])))
        while self._done < ready:
            until = int(np.searchsorted(first.first, first.first[self._done] + _BLOCK[0]))
            if slab.device.type != "cpu":
                until = self._done + most
            span = first.span(self._done, min(max(until, self._done + 1), ready), slab.device)
            self._fill(span, slab[:, span.old.start - self._start : span.old.stop - self._start])
            self._done = span.new.stop
        needed = min(int(first.first[self._done]), stop) if self._done < first.size else stop
        self._kept, self._start = slab[:, needed - self._start :].clone(), needed

    def _fill(self, deep: _Span, slab: torch.Tensor) -> None:
        """Label the source planes of one span."""
        for high, wide in self._blocks(slab):
            block = slab[:, :, high.old, wide.old]
            found = self._decided(block, (deep, high, wide))
            self.labels[deep.new, high.new, wide.new] = found

    def _blocks(self, slab: torch.Tensor) -> Iterator[tuple[_Span, _Span]]:
        rows, columns = self.grids.sizes[1:]
        if slab.device.type == "cpu":
            many = max(1.0, math.sqrt(_BLOCK_VALUES / (len(slab) * math.prod(_BLOCK))))
            rows, columns = int(_BLOCK[1] * many), int(_BLOCK[2] * many)
        wide = self._axes[2].spans(columns, slab.device)
        for high in self._axes[1].spans(rows, slab.device):
            for one in wide:
                yield high, one

    def _decided(self, block: torch.Tensor, spans: tuple[_Span, _Span, _Span]) -> Array | int:
        """Return the labels of one block, or the one label that all of it has."""
        values = block.reshape(len(block), -1)
        low, high = values.amin(1), values.amax(1)
        if self.regions is not None:
            return self._painted(block, low > 0, high > 0, spans)
        left = torch.nonzero(high >= low.max())[:, 0]
        if len(left) == 1:
            return int(left[0])
        several = _interpolated(block if len(left) == len(block) else block[left], spans)
        return left[several.max(0).indices].cpu().numpy().astype(self.labels.dtype)

    def _painted(
        self, block: torch.Tensor, surely: torch.Tensor, possibly: torch.Tensor, spans: tuple[_Span, _Span, _Span]
    ) -> Array | int:
        assert self.regions is not None
        if bool((surely == possibly).all()):
            return next((self.regions[i] for i in range(len(block) - 1, -1, -1) if surely[i]), 0)
        labels = np.zeros([span.new.stop - span.new.start for span in spans], self.labels.dtype)
        for i in torch.nonzero(possibly)[:, 0].tolist():
            labels[(_interpolated(block[i : i + 1], spans)[0] > 0).cpu().numpy()] = self.regions[i]
        return labels


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Compute small blocks by one thread: two that wait for each other took six times as long (measured)."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _interpolated(block: torch.Tensor, spans: tuple[_Span, _Span, _Span]) -> torch.Tensor:
    """Return (channels, slices, rows, columns) of the source's grid."""
    deep, high, wide = (span.weights for span in spans)
    if wide is not None:
        block = block @ wide.T
    if high is not None:
        block = torch.matmul(high, block)
    if deep is not None:
        flat = torch.matmul(deep, block.flatten(2))
        block = flat.reshape(len(block), deep.shape[0], *block.shape[2:])
    return block
