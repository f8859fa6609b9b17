"""A trained nnU-Net v2 as a pipeline: the folder as it was published, read without ``nnunetv2`` and executing nothing.

``plans.json`` and ``dataset.json`` say how images are prepared and which network was trained; its weights lie in
``fold_*/checkpoint_final.pth``, read as tensors only, or converted in ``weights.safetensors``. The models of
TotalSegmentator are such folders. What each label is, in codes, says ``model.toml``.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 18, 203-211 (2021), doi:10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from pacs_ai.errors import OutOfResources, PipelineFault
from pacs_ai.model_sections import Section, faults
from pacs_ai.models.bundle_findings import checked
from pacs_ai.pipeline import Array, Card, Findings, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pacs_ai.models.convert.nnunet import Trained
    from pacs_ai.models.engine.labels import LabelMap
    from pacs_ai.models.engine.windows import Runner
    from pacs_ai.models.package import Package
    from pacs_ai.models.runtimes.nnunet_images import Prepared
    from pacs_ai.models.runtimes.nnunet_plans import Plans

WEIGHTS = "weights.safetensors"


class Settings(Section):
    """``[settings]`` of a package with the runtime ``nnunet``."""

    configuration: str = ""
    """Configuration of plans.json; empty: the one that the weights were trained in."""
    folds: tuple[str, ...] = ()
    """Folds whose outputs are averaged; empty: all that are there."""
    mirroring: bool = False
    """Whether mirrored images are predicted too, as nnU-Net does by default: up to 8 times the time."""
    step: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Distance of neighbouring windows as a share of their size."""
    orientation: Annotated[str, Field(pattern="^([RL][AP][SI])?$")] = ""
    """Axes of the training images ("RAS", "LPS"), where they differ from DICOM's and plans.json does not tell."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format: auto is mixed precision on a GPU, float32 on a CPU."""
    batch: Annotated[int, Field(ge=0)] = 0
    """Windows at a time; 0: chosen by the device."""
    compile: bool = False
    """Whether the network is compiled for an NVIDIA GPU: minutes at start, faster windows."""
    foreground_above: float | None = None
    """Only what lies near voxels above this value (of the first input) is computed; empty: everything."""
    foreground_margin_mm: Annotated[float, Field(ge=0)] = 20.0
    """How near."""
    ignored: tuple[int, ...] = ()
    """Labels of the model that are not reported."""


@dataclass(frozen=True)
class Prediction:
    """Labels (slices, rows, columns) on the source's grid, seconds of each step, and what memory did not allow."""

    labels: Array
    seconds: Mapping[str, float]
    told: tuple[str, ...]


class NnUnet:
    """The pipeline of one package.

    Parameters
    ----------
    package
        Its `files` name plans.json, dataset.json, and the weights.

    Raises
    ------
    PipelineFault
        The settings have faults, or the weights are not among the files.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self.card: Card = package.card
        try:
            self._settings = Settings.model_validate(package.model.settings)
        except ValidationError as error:
            raise PipelineFault(f"settings of {package.model.name}: {faults(error)}") from error
        if not _weight_files(package):
            raise PipelineFault(
                f"{package.model.name} lists no {WEIGHTS} and no fold_*/checkpoint_final.pth among its files: "
                "make its model.toml anew with pacs-ai models new"
            )
        self._plans: Plans | None = None
        self._runner: Runner | None = None

    def prepare(self, device: str) -> None:
        """Check every file's digest, build the network of each fold, and load its weights onto the device.

        Raises
        ------
        PipelineFault
            A file differs; plans or weights are not understood; a label is not coded.
        OutOfResources
            The device has no memory for the network.
        """
        import torch

        from pacs_ai.models.engine import memory, processor
        from pacs_ai.models.engine.windows import Runner
        from pacs_ai.models.runtimes import nnunet_plans

        self._package.verify()
        trained = self._trained()
        wanted = self._settings.configuration or trained.configuration
        if not wanted:
            raise PipelineFault(f"name the configuration in [settings] of {self._package.model.name}")
        plans = nnunet_plans.read(self._package, wanted)
        self._check(plans)
        where = torch.device(device)
        try:
            networks = [self._network(plans, trained.folds[fold], where) for fold in self._folds(trained)]
            processor.prepare(networks, (len(plans.channels), *plans.patch_size))
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            raise OutOfResources(f"no memory on {device} for the network of {self._package.model.name}") from error
        self._plans = plans
        self._runner = Runner(
            networks,
            where,
            self._settings.precision,
            self._settings.batch,
            _combinations(trained.mirror_axes) if self._settings.mirroring else (),
            pad_batch=self._settings.compile,
        )

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Segment one set of series.

        Parameters
        ----------
        inputs
            The card's names -> volumes, in the order of the network's channels, on the first's grid or brought there.

        Raises
        ------
        Refused
            A series is missing, has values that are no numbers, or shows nothing.
        OutOfResources
            Neither device nor main memory suffice.
        """
        labels = self.predict({name: checked(name, inputs) for name in self.card.inputs}).labels
        present = {int(value) for plane in labels for value in np.flatnonzero(np.bincount(plane.reshape(-1)))}
        segments = tuple(
            Segment(table.name, labels, value)
            for value, table in sorted(self._package.model.labels.items())
            if value in present
        )
        return Findings(segments=segments, grid=next(iter(self.card.inputs)))

    def release(self) -> None:
        """Give the networks and their memory back; `prepare` loads them again."""
        from pacs_ai.models.engine import memory

        if self._runner is not None:
            device, self._runner = self._runner.device, None
            memory.release(device)

    def predict(self, volumes: Mapping[str, Volume]) -> Prediction:
        """Return the label map of volumes in the order of the channels, with the seconds of each step."""
        import torch

        from pacs_ai.models.engine import memory, processor
        from pacs_ai.models.runtimes import nnunet_images as images

        if self._runner is None or self._plans is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        plans, settings = self._plans, self._settings
        first, start = next(iter(volumes.values())), time.perf_counter()
        orientation = settings.orientation or plans.orientation
        above = settings.foreground_above
        foreground = None if above is None else images.Foreground(above, settings.foreground_margin_mm)
        # as received, turned and resampled, in float32; and the labels
        need = (12.0 * len(volumes) + 2.0) * first.voxels.size
        memory.check_room(need, torch.device("cpu"), f"a series of {' x '.join(map(str, first.shape))} voxels")
        stack, spacing = images.stacked(volumes, orientation)
        prepared = images.prepare(stack, spacing, plans, foreground)
        del stack
        between = time.perf_counter()
        found, exporting = self._labels(prepared, plans, self._runner)
        after = time.perf_counter()
        labels = images.as_received(images.restored(found.labels, prepared, plans), first, orientation)
        seconds = {
            "preprocess": between - start,
            "model": after - between - exporting,
            "export": exporting + time.perf_counter() - after,
        }
        processor.release(self._runner.networks)
        memory.release(self._runner.device)
        return Prediction(np.ascontiguousarray(labels), seconds, tuple(self._runner.told))

    def _labels(self, prepared: Prepared, plans: Plans, runner: Runner) -> tuple[LabelMap, float]:
        """Return the labels on the cropped grid, taken from each slab, and the seconds that this took."""
        import torch

        from pacs_ai.models.engine import memory, tiling
        from pacs_ai.models.engine.labels import LabelMap
        from pacs_ai.models.engine.windows import padded, slabs

        window = self._window(prepared, plans, memory.free_bytes(runner.device))
        image, inner = padded(torch.from_numpy(prepared.image), window)
        if len(plans.patch_size) == 2:
            plane = tiling.balanced(image.shape[2:], window[1:], self._settings.step)
            tiles = tiling.Tiling(tuple(image.shape[1:]), window, (tuple(range(image.shape[1])), *plane.starts))
        else:
            tiles = tiling.balanced(image.shape[1:], window, self._settings.step)
        weight = tiling.blurred_point(window)
        highest = max((*plans.names, *(plans.regions or ())), default=0)
        labels, exporting = LabelMap(prepared.grids, plans.regions, highest + 1), 0.0
        for start, planes in slabs(image, runner, tiles, weight):
            begun = time.perf_counter()
            low, high = (min(max(edge - start, 0), planes.shape[1]) for edge in (inner[0].start, inner[0].stop))
            if high > low:
                labels.take(planes[:, low:high, inner[1], inner[2]])
            exporting += time.perf_counter() - begun
        return labels, exporting

    def _window(self, prepared: Prepared, plans: Plans, free: float | None) -> tuple[int, ...]:
        """Return the size of the windows: the plans', or shorter ones where memory does not allow these."""
        from pacs_ai.models.engine import memory

        if len(plans.patch_size) == 2:
            return (1, *plans.patch_size)
        strides = plans.network["arch_kwargs"]["strides"]
        multiple = [math.prod(step if isinstance(step, int) else step[axis] for step in strides) for axis in range(3)]
        shape = [max(size, width) for size, width in zip(prepared.image.shape[1:], plans.patch_size, strict=True)]
        return memory.fit_window(plans.patch_size, shape, plans.heads, free, multiple)

    def _trained(self) -> Trained:
        from pacs_ai.models.convert import nnunet as checkpoints

        package = self._package
        if WEIGHTS in package.model.files:
            return checkpoints.unpacked(package.tensors(WEIGHTS))
        return checkpoints.trained((checkpoints.fold_of(name), package.read(name)) for name in _weight_files(package))

    def _folds(self, trained: Trained) -> tuple[str, ...]:
        folds = self._settings.folds or tuple(trained.folds)
        missing = [fold for fold in folds if fold not in trained.folds]
        if missing or not folds:
            raise PipelineFault(
                f"fold {', '.join(missing) or '?'} is not among the weights of {self._package.model.name}: "
                f"there are {', '.join(trained.folds) or 'none'}"
            )
        return folds

    def _network(self, plans: Plans, tensors: Mapping[str, torch.Tensor], device: torch.device) -> torch.nn.Module:
        from pacs_ai.models.engine import precision, processor
        from pacs_ai.models.runtimes import nnunet_network

        network = nnunet_network.build(plans)
        nnunet_network.load(network, tensors)
        network = precision.arranged(network, device)
        if device.type == "cpu":
            return network if self._settings.precision == "bf16" else processor.compiled(network)
        return precision.compiled(network, device) if self._settings.compile else network

    def _check(self, plans: Plans) -> None:
        """Hold the card against the plans: as many inputs as channels, and every label coded."""
        name, labels = self._package.model.name, self._package.model.labels
        if len(self.card.inputs) != len(plans.channels):
            raise PipelineFault(
                f"the network of {name} takes {len(plans.channels)} channels, {', '.join(plans.channels)}; "
                f"[inputs] names {len(self.card.inputs)}"
            )
        expected = set(plans.names) - set(self._settings.ignored)
        for what, values in (("no label for", expected - set(labels)), ("a label too many:", set(labels) - expected)):
            if values:
                said = ", ".join(f"{value} ({plans.names.get(value, 'unknown')})" for value in sorted(values))
                raise PipelineFault(f"[labels] of {name} has {what} {said}")


def _weight_files(package: Package) -> tuple[str, ...]:
    files = package.model.files
    if WEIGHTS in files:
        return (WEIGHTS,)
    return tuple(sorted(name for name in files if name.startswith("fold_") and name.endswith("/checkpoint_final.pth")))


def _combinations(axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return every way to mirror along some of the axes: (0,), (1,), (0, 1) ..."""
    return tuple(some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count))
