"""A bundle at work, by whatever loader it was built: preprocessing, network, postprocessing, the grid of the source.

Two loaders build such parts: that for trusted code (`pacs_ai.models.bundle_program`) and the declared one
(`pacs_ai.models.runtimes.monai_bundle`).
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer

from pacs_ai.errors import OutOfResources, PipelineFault
from pacs_ai.models.bundle_config import without_known_warnings
from pacs_ai.models.engine import memory, processor
from pacs_ai.models.grid import aligned, nearest, ras_affine, reoriented, same_grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pacs_ai.models.bundle_spec import BundleSpec
    from pacs_ai.pipeline import Array, Volume

#: What a bundle's own code and MONAI's parser raise.
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Result:
    """What postprocessing returned, on the grid of the first input, axes slice, row, column.

    Parameters
    ----------
    label_map
        uint8 or uint16 where the bundle returns one channel, else empty.
    channels
        One mask per channel where the bundle returns several, else None.
    """

    label_map: Array
    channels: tuple[Array, ...] | None = None


@contextmanager
def explained(name: str, doing: str) -> Iterator[None]:
    """Turn what third-party code raises into an error that says which bundle did what."""
    try:
        with without_known_warnings():
            yield
    except (MemoryError, *BROKEN) as error:
        causes = list(_causes(error))
        if any(memory.is_out_of_memory(cause) for cause in causes):
            raise OutOfResources(_memory_advice(name, doing)) from error
        first = causes[-1]
        said = f"{type(error).__name__}: {error}"
        because = "" if first is error else f" ({type(first).__name__}: {first})"
        raise PipelineFault(f"{name} broke while {doing}: {said}{because}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it wraps: MONAI's parser and transforms wrap what goes wrong in them."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _memory_advice(name: str, doing: str) -> str:
    return (
        f"not enough memory for {name} while {doing}: run it on a larger device, or set in overrides of [[pipeline]] "
        'a smaller "inferer#sw_batch_size", or "inferer#device" = "cpu", which collects the result in main memory'
    )


@dataclass(frozen=True)
class Parts:
    """What a loader built of a bundle, on one device.

    Parameters
    ----------
    network, inferer, preprocessing, postprocessing
        Callables; the last is None where the bundle has none.
    keys, channel_first
        As `pacs_ai.models.bundle_config.Configuration`.
    mixed_precision
        Whether the network runs under torch.autocast on CUDA.
    channels
        Of the network's output, as the metadata say; 1 where they do not.
    """

    network: Any
    inferer: Any
    preprocessing: Any
    postprocessing: Any
    keys: tuple[str, ...]
    channel_first: bool
    mixed_precision: bool
    channels: int


def _ready(parts: Parts, device: torch.device) -> Any:
    """Return the network, compiled for the processor where it will see windows of one size, many times over."""
    if device.type != "cpu" or not isinstance(parts.inferer, SlidingWindowInferer):
        return parts.network
    return processor.compiled(parts.network) if isinstance(parts.network, torch.nn.Module) else parts.network


class Chain:
    """A bundle's parts, run one after another.

    Parameters
    ----------
    spec
        What the configuration says of the bundle.
    parts
        What its loader built.
    device
        Where they are.
    """

    def __init__(self, spec: BundleSpec, parts: Parts, device: torch.device) -> None:
        self.spec = spec
        self.name = spec.name or spec.folder.name
        self.parts = parts
        self.device = device
        self._network = _ready(parts, device)

    def run(self, volumes: Mapping[str, Volume]) -> Result:
        """Run the bundle on volumes, in the order of its channels; the first one's grid is the result's.

        Raises
        ------
        Refused
            The volumes share no voxel.
        PipelineFault, OutOfResources
            See `pacs_ai.models.bundle.MonaiBundle.run`.
        """
        first = next(iter(volumes.values()))
        with explained(self.name, "running"):
            return self._result(self.predict(self._entries(volumes), first.voxels.shape), first)

    def predict_volume(self, volume: Volume) -> Any:
        """Return what the postprocessing leaves of one volume: of a classifier, its answer."""
        return self.predict(self._entries({"image": volume}), volume.voxels.shape)

    def predict(self, entries: Mapping[str, MetaTensor], outer: tuple[int, ...]) -> Any:
        """Return what the postprocessing leaves under "pred".

        Parameters
        ----------
        entries
            Key -> image, as the bundle's LoadImaged would have returned it.
        outer
            Shape of the grid to which the result is brought back, for the estimate of memory.
        """
        parts = self.parts
        with torch.no_grad():
            batch = list_data_collate([parts.preprocessing(dict(entries))])
            image = batch[parts.keys[0] if "image" not in batch else "image"].to(self.device)
            self._check_memory(image.shape[2:], outer)
            cuda = parts.mixed_precision and self.device.type == "cuda"
            with torch.autocast("cuda") if cuda else nullcontext():
                prediction = parts.inferer(image, self._network)
            processor.release([self._network])
            self._check_numbers(prediction)
            [entry] = decollate_batch({**batch, "image": image, "pred": prediction})
            del batch, image, prediction
            return (parts.postprocessing(entry) if parts.postprocessing else entry)["pred"]

    def _entries(self, volumes: Mapping[str, Volume]) -> dict[str, MetaTensor]:
        """Return what the bundle's LoadImaged would have returned: one image per key, or one of all as channels."""
        (first_name, first), *_ = volumes.items()
        arrays = [aligned(volume, first, name, first_name) for name, volume in volumes.items()]
        affine = ras_affine(first.affine)
        images = []
        for array in arrays:
            image, turned = np.asarray(array, dtype=np.float32).transpose(2, 1, 0), affine
            if self.spec.orientation:
                image, turned = reoriented(image, affine, self.spec.orientation)
            images.append(np.ascontiguousarray(image))
        keys = self.parts.keys
        if all(name in keys for name in volumes):
            return {name: self._image(image, turned) for name, image in zip(volumes, images, strict=True)}
        if len(images) == 1:
            return {keys[0]: self._image(images[0], turned)}
        return {keys[0]: _meta_tensor(np.stack(images), turned, channel=0)}

    def _image(self, image: Array, affine: Array) -> MetaTensor:
        if self.parts.channel_first:
            return _meta_tensor(image[None], affine, channel=0)
        return _meta_tensor(image, affine, channel=float("nan"))

    def _check_memory(self, inner: tuple[int, ...], outer: tuple[int, ...]) -> None:
        """Refuse what cannot fit, before an hour of computing ends in a killed process.

        Counted are the network's output and its activation (float32) and, where the bundle brings all channels back
        to the source grid before it takes the largest, that grid's channels as read (float32) and resampled (float64).
        """
        free = memory.free_bytes(self.device) if self.device.type == "cpu" else None
        if self.spec.memory_limit_gb is not None:
            free = self.spec.memory_limit_gb * memory.GIB
        channels = self.parts.channels
        steps = [type(step).__name__ for step in getattr(self.parts.postprocessing, "transforms", ())]
        outside = "Invertd" in steps and "AsDiscreted" in steps[steps.index("Invertd") :]
        need = channels * (8.0 * float(np.prod(inner)) + (12.0 * float(np.prod(outer)) if outside else 0.0))
        if free is not None and need > free:
            raise OutOfResources(
                f"{self.name} would need {need / memory.GIB:.1f} GB for {channels} channels of this series, "
                f"{free / memory.GIB:.1f} GB are free: give it more memory, or override postprocessing by overrides in "
                "[[pipeline]] so that AsDiscreted comes before Invertd (with nearest_interp = true)"
            )

    def _check_numbers(self, prediction: Any) -> None:
        if not isinstance(prediction, torch.Tensor):
            raise PipelineFault(f"the network of {self.name} returns {type(prediction).__name__}, not one tensor")
        if not all(bool(torch.isfinite(channel).all()) for channel in prediction[0]):
            raise PipelineFault(
                f"the network of {self.name} returned values that are no numbers, which would pass for background"
                + (
                    ": set mixed_precision = false in [[pipeline]]"
                    if self.device.type == "cuda" and self.parts.mixed_precision
                    else ""
                )
            )

    def _result(self, result: Any, first: Volume) -> Result:
        """Bring the result onto the source grid and into whole numbers."""
        if not isinstance(result, MetaTensor):
            raise PipelineFault(f"the postprocessing of {self.name} returns no MetaTensor: where it lies is not known")
        affine = result.affine.detach().cpu().numpy().astype(np.float64)
        values = result.detach().cpu().numpy()
        if values.ndim == 3:
            values = values[None]
        if values.ndim != 4:
            raise PipelineFault(f"{self.name} returns {values.ndim} axes instead of channel and three of space")
        planes = [self._whole(channel, affine, first) for channel in values]
        if len(planes) == 1:
            return Result(planes[0])
        if any(plane.max() > 1 for plane in planes):
            raise PipelineFault(f"{self.name} returns {len(planes)} channels with values other than 0 and 1")
        return Result(np.empty((0, 0, 0), np.uint8), tuple(plane == 1 for plane in planes))

    def _whole(self, values: Array, affine: Array, first: Volume) -> Array:
        """One channel as uint8 or uint16 on the source grid; axes slice, row, column."""
        top = float(values.max())
        whole = values.astype(np.uint8 if top < 256 else np.uint16)
        if not np.array_equal(whole, values):
            raise PipelineFault(
                f"{self.name} returns values between labels: let its postprocessing, by overrides in [[pipeline]], end "
                "in AsDiscreted, and let Invertd after AsDiscreted have nearest_interp = true"
            )
        shape, target = first.voxels.shape[::-1], ras_affine(first.affine)
        whole, affine = reoriented(whole, affine, target)
        if not same_grid(whole.shape, affine, shape, target):
            whole = nearest(whole, affine, shape, target)
        return np.ascontiguousarray(whole.transpose(2, 1, 0))


def _meta_tensor(array: Array, affine: Array, channel: float) -> MetaTensor:
    """Wrap an image as MONAI's readers do; `affine` is index -> RAS mm, `channel` the axis or NaN for none."""
    shape = array.shape[-3:]
    meta = {
        "original_affine": affine.copy(),
        "spatial_shape": np.asarray(shape),
        "space": "RAS",
        "original_channel_dim": channel,
        "filename_or_obj": "image",
    }
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine.copy()), meta=meta)
