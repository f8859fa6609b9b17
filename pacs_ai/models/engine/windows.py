"""A network over a large image, window by window: weighted, summed on the device, finished plane by plane.

The sums are kept for one row of windows only. As soon as no further window touches a plane along the first axis, the
plane is divided by its weights and handed on (`slabs`), so the whole output need never exist: a segmentation of a
hundred classes takes its labels from each slab (`pacs_ai.models.engine.labels`).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pacs_ai.errors import OutOfResources, PipelineFault
from pacs_ai.models.engine import memory, precision, tiling

if TYPE_CHECKING:
    from pacs_ai.models.engine.precision import Precision
    from pacs_ai.models.engine.tiling import Tiling

_log = logging.getLogger(__name__)

Network = Callable[[torch.Tensor], torch.Tensor]
_CPU = torch.device("cpu")
#: Voxels of a batch on a CPU: four windows of 48^3 ran twice as fast as one, of 64^3 and more as fast (measured).
_CPU_VOXELS = 4 * 48**3


@dataclass
class Runner:
    """Networks on a device; where memory runs out it goes on with smaller batches, then on the CPU.

    Parameters
    ----------
    networks
        Whose outputs are averaged; `pacs_ai.models.engine.precision.arranged` has put them on the device.
    device
        Where they compute.
    precision
        In what number format.
    batch
        Windows at a time; 0: 4 on a GPU, on a CPU as many as `_CPU_VOXELS` hold, since large ones gain nothing.
    mirrored
        Combinations of spatial axes, from 0, along which the image is mirrored as well; the outputs are averaged.
    pad_batch
        Whether a last, smaller batch is filled up: compiled networks want one shape.
    """

    networks: Sequence[Network]
    device: torch.device
    precision: Precision = "auto"
    batch: int = 0
    mirrored: Sequence[tuple[int, ...]] = ()
    pad_batch: bool = False
    told: list[str] = field(default_factory=list)
    """What was given up for want of memory, in words."""

    def __post_init__(self) -> None:
        self._dtype = precision.chosen(self.precision, self.device)

    def settle(self, window: Sequence[int]) -> int:
        """Return how many windows of a size are taken at a time, decided at the first call."""
        if not self.batch:
            few = max(1, min(4, _CPU_VOXELS // math.prod(window)))
            self.batch = few if self.device.type == "cpu" else 4
        return self.batch

    @torch.inference_mode()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean output (windows, channels, ...) float32 of (windows, channels, ...) float32."""
        outputs: list[torch.Tensor] = []
        while (done := sum(len(one) for one in outputs)) < len(windows):
            part = windows[done : done + (self.batch or len(windows))]
            try:
                outputs.append(self._forward(part.to(self.device)))
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error) or not self._gave_in():
                    raise
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _forward(self, part: torch.Tensor) -> torch.Tensor:
        count = len(part)
        if self.pad_batch and count < self.batch:
            part = torch.cat([part, part[:1].expand(self.batch - count, *part.shape[1:])])
        with precision.computing(self._dtype, self.device):
            total = self._averaged(part)
        return total[:count]

    def _averaged(self, part: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for network, flips in itertools.product(self.networks, ((), *self.mirrored)):
            axes = [axis + 2 for axis in flips]
            output = network(part.flip(axes) if axes else part)
            _check(output, part)
            output = (output.flip(axes) if axes else output).float()
            total = output if total is None else total.add_(output)
        assert total is not None
        parts = len(self.networks) * (1 + len(self.mirrored))
        return total if parts == 1 else total.div_(parts)

    def _gave_in(self) -> bool:
        """Take the next smaller step; False where there is none."""
        memory.release(self.device)
        if self.batch > 1:
            self.batch //= 2
            self.told.append(f"memory ran out: {self.batch} window(s) at a time")
        elif self.device.type != "cpu" and all(isinstance(one, torch.nn.Module) for one in self.networks):
            self.networks = [_on_cpu(one) for one in self.networks]
            self.device, self._dtype, self.pad_batch = _CPU, torch.float32, False
            self.told.append("memory ran out on the GPU: the rest was computed on the CPU")
        else:
            return False
        _log.warning(self.told[-1])
        return True


def _check(output: object, part: torch.Tensor) -> None:
    if not isinstance(output, torch.Tensor) or output.shape[2:] != part.shape[2:]:
        raise PipelineFault(
            "the network returns no single image of its input's size, which windows need: "
            f"{getattr(output, 'shape', type(output).__name__)} for {tuple(part.shape)}"
        )


def _on_cpu(network: Network) -> torch.nn.Module:
    """Return the network, without what compiling made of it, on the CPU."""
    assert isinstance(network, torch.nn.Module)
    plain = getattr(network, "_orig_mod", network)  # where torch.compile made it
    assert isinstance(plain, torch.nn.Module)
    return plain.to(_CPU)


@dataclass
class _Sums:
    """Weighted sums of one row of windows and of their weights; plane 0 lies at index `start` of the image."""

    values: torch.Tensor
    weights: torch.Tensor
    start: int = 0

    @classmethod
    def zeros(cls, channels: int, tiling_: Tiling, device: torch.device) -> _Sums:
        size = (tiling_.window[0], *tiling_.shape[1:])
        try:
            return cls(torch.zeros((channels, *size), device=device), torch.zeros(size, device=device))
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if device.type == "cpu":
                raise OutOfResources(f"no memory for the sums of {channels} channels: {error}") from error
            memory.release(device)
            return cls.zeros(channels, tiling_, _CPU)

    def add(self, output: torch.Tensor, weight: torch.Tensor, place: tuple[slice, ...]) -> None:
        self.values[(slice(None), *place)].addcmul_(output.to(self.values.device), weight)
        self.weights[place] += weight

    def finished(self, planes: int) -> torch.Tensor:
        """Return (channels, planes, ...), a view that holds until `move`."""
        return self.values[:, :planes].div_(self.weights[:planes])

    def move(self, planes: int) -> None:
        """Drop the first planes and make room for as many at the end."""
        for sums, axis in ((self.values, 1), (self.weights, 0)):
            kept = sums.shape[axis] - planes
            if kept:
                later = sums.narrow(axis, planes, kept)
                sums.narrow(axis, 0, kept).copy_(later if kept <= planes else later.clone())
            sums.narrow(axis, kept, planes).zero_()
        self.start += planes


def slabs(
    image: torch.Tensor, runner: Runner, tiling_: Tiling, weight: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the finished planes of a prediction along the first spatial axis, in order.

    Parameters
    ----------
    image
        (channels, ...) float32 of the tiling's shape, on any device. A tiling of three axes with a window of one plane
        is one of a network of two: the axis is taken away before the network and put back after.
    runner
        The network.
    tiling_, weight
        Where the windows lie, and the weights of their voxels, of the window's shape and nowhere 0.

    Yields
    ------
    start, planes
        Index of the first plane, and (channels, planes, ...) float32; the tensor is used again after the next step.
    """
    flat = len(tiling_.window) == 3 and tiling_.window[0] == 1
    sums: _Sums | None = None
    rows, *others = tiling_.starts
    for row, following in itertools.pairwise((*rows, tiling_.shape[0])):
        places = list(itertools.product((row,), *others))
        for some in _parts(places, runner.settle(tiling_.window)):
            windows = torch.stack([image[(slice(None), *_slices(place, tiling_))] for place in some])
            outputs = runner(windows.squeeze(2) if flat else windows)
            if flat:
                outputs = outputs.unsqueeze(2)
            if sums is None:
                sums = _Sums.zeros(outputs.shape[1], tiling_, runner.device)
                weight = weight.to(sums.values.device)
            for place, output in zip(some, outputs, strict=True):
                sums.add(output, weight, _slices((row - sums.start, *place[1:]), tiling_))
        assert sums is not None
        yield row, sums.finished(following - row)
        if following < tiling_.shape[0]:
            sums.move(following - row)


def _parts(places: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield the places by batches of one size, whatever the runner makes of them."""
    for first in range(0, len(places), size):
        yield places[first : first + size]


def _slices(place: Sequence[int], tiling_: Tiling) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(place, tiling_.window, strict=True))


def predict(  # noqa: PLR0913 - MONAI's own parameters, so that it can stand in its place
    image: torch.Tensor,
    network: Network,
    roi_size: Sequence[int] | int,
    overlap: float | Sequence[float] = 0.25,
    mode: str = "constant",
    sigma_scale: float | Sequence[float] = 0.125,
    sw_batch_size: int = 0,
    *,
    padding_mode: str = "constant",
    cval: float = 0.0,
    device: torch.device | None = None,
    precision: Precision = "fp32",
) -> torch.Tensor:
    """Return a network's output over a whole image, as MONAI's ``sliding_window_inference`` does, to 1e-4.

    Parameters
    ----------
    image
        (images, channels, ...) float32 with two or three axes of space.
    network
        (windows, channels, ...) -> (windows, classes, ...) of the same size, on `device`.
    roi_size
        Of a window; an axis of 0 or less takes the whole image.
    overlap, mode, sigma_scale
        Of neighbouring windows, as a share; "gaussian" or "constant" weights; width of the Gaussian.
    sw_batch_size
        Windows at a time; 0: as `Runner` thinks best.
    padding_mode, cval
        How an image smaller than a window is filled up, centred (`torch.nn.functional.pad`).
    device
        Where the network lies; None: where the image does.
    precision
        See `Precision`.

    Returns
    -------
    Tensor
        (images, classes, ...) float32 on the image's device.
    """
    space = image.ndim - 2
    roi = [roi_size] * space if isinstance(roi_size, int) else list(roi_size)
    window = tuple(size if size > 0 else whole for size, whole in zip(roi, image.shape[2:], strict=True))
    filled, inner = padded(image, window, padding_mode, cval)
    tiling_ = tiling.even(filled.shape[2:], window, _each(overlap, space))
    weight = tiling.gaussian(window, _each(sigma_scale, space)) if mode == "gaussian" else torch.ones(window)
    runner = Runner([network], device or image.device, precision, sw_batch_size)
    outputs = []
    for one in filled:
        output: torch.Tensor | None = None
        for start, planes in slabs(one, runner, tiling_, weight):
            if output is None:
                output = torch.empty((planes.shape[0], *tiling_.shape), device=image.device)
            output[:, start : start + planes.shape[1]] = planes
        assert output is not None
        outputs.append(output[(slice(None), *inner)])
    return torch.stack(outputs)


def padded(
    image: torch.Tensor, window: Sequence[int], mode: str = "constant", value: float = 0.0
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Return (..., *space) filled up to at least the window's size, centred, and where the image lies in it."""
    sizes = image.shape[-len(window) :]
    short = [max(width - size, 0) for width, size in zip(window, sizes, strict=True)]
    inner = tuple(slice(gap // 2, gap // 2 + size) for gap, size in zip(short, sizes, strict=True))
    if not any(short):
        return image, inner
    amounts = [edge for gap in reversed(short) for edge in (gap // 2, gap - gap // 2)]
    if mode == "constant":
        return torch.nn.functional.pad(image, amounts, value=value), inner
    return torch.nn.functional.pad(image, amounts, mode=mode), inner


def _each(value: float | Sequence[float], count: int) -> tuple[float, ...]:
    return (float(value),) * count if isinstance(value, int | float) else tuple(value)
