"""An ONNX file as a pipeline: segmentation by sliding windows, or answers of a classifier, by onnxruntime.

An ONNX graph holds operators and numbers, no code of its author's; custom operators are not registered here, and
weights that lie outside of the file are read only from the package's own folder. What the file does not say, how
images are scaled and on which voxels, stands in ``model.toml`` under [settings].
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from pacs_ai.config import Section, faults
from pacs_ai.errors import OutOfResources, PipelineFault, Reason, Refused
from pacs_ai.pipeline import Array, Card, Classification, Findings, Frames, Given, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from pacs_ai.models.engine.labels import LabelMap
    from pacs_ai.models.engine.resample import Grids
    from pacs_ai.models.package import Package

_MISSING = "ONNX models need onnxruntime: pip install pacs_ai[onnx] (onnxruntime-gpu in its place for NVIDIA GPUs)"


class Settings(Section):
    """``[settings]`` of a package with the runtime ``onnx``."""

    file: str = "model.onnx"
    """The ONNX file."""
    task: Literal["segmentation", "classification"] = "segmentation"
    """What its output is: channels of the input's size, or one number for each question."""
    size: tuple[int, ...] = ()
    """Segmentation: windows, in (slice, row, column); classification: (rows, columns) of the network's image."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of neighbouring windows, as a share."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel size of the training images (slice, row, column); empty: as received."""
    low: float = 0.0
    """Modality value that becomes 0; values below are cut off."""
    high: float = 1.0
    """Modality value that becomes 1; values above are cut off."""
    mean: float = 0.0
    """Then subtracted."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Then divided by."""
    axes: Literal["src", "csr"] = "src"
    """Order of the network's axes: slice, row, column, or column, slice, row reversed: column, row, slice."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What turns the output into probabilities; segmentation by sigmoid: every channel is a label of its own."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of a segmentation by sigmoid."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Of onnxruntime on a CPU; 0: as many as it likes."""


class OnnxModel:
    """The pipeline of one package.

    Parameters
    ----------
    package
        Its `files` name the ONNX file and every file in which its weights lie.

    Raises
    ------
    PipelineFault
        The settings have faults, or the file's weights lie outside of the package.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self.card: Card = package.card
        try:
            self._settings = Settings.model_validate(package.model.settings)
        except ValidationError as error:
            raise PipelineFault(f"settings of {package.model.name}: {faults(error)}") from error
        self._session: Any = None

    def prepare(self, device: str) -> None:
        """Check every file's digest, then have onnxruntime load the graph.

        Raises
        ------
        PipelineFault
            onnxruntime is missing, a file differs, lies outside, or is no graph that onnxruntime knows.
        """
        self._package.verify()
        name = self._settings.file
        if name not in self._package.model.files:
            raise PipelineFault(f"[files] of {self._package.model.name} does not name {name}")
        self._check_weights_are_inside(name)
        try:
            import onnxruntime as ort  # type: ignore[import-untyped]
        except ImportError as error:
            raise PipelineFault(_MISSING) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._settings.threads
        options.log_severity_level = 3
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.startswith("cuda") else []
        providers = [one for one in wanted if one in ort.get_available_providers()] or ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(str(self._package.folder / name), options, providers=providers)
        except _onnx_faults() as error:
            raise PipelineFault(f"onnxruntime does not load {name}: {str(error)[:300]}") from error

    def _check_weights_are_inside(self, name: str) -> None:
        from pacs_ai.models.convert.formats import onnx_graph

        beside = PurePosixPath(name).parent
        for external in onnx_graph.read(self._package.folder, name).external:
            path = PurePosixPath(external)
            inside = not path.is_absolute() and ".." not in path.parts and "\\" not in external
            if not inside or (beside / path).as_posix() not in self._package.model.files:
                raise PipelineFault(
                    f"{name} takes weights from {external!r}, which is none of the package's files: nothing outside of "
                    "the model's folder is read; put the file beside it and make model.toml anew"
                )

    def release(self) -> None:
        """Give the session and its memory back; `prepare` loads it again."""
        self._session = None

    def run(self, inputs: Mapping[str, Given]) -> Findings:
        """Segment the volumes, or answer the card's questions about the images.

        Raises
        ------
        Refused
            An input is missing, or holds values that are no numbers.
        PipelineFault
            The output is not of the shape that the settings promise.
        OutOfResources
            The memory does not suffice.
        """
        if self._session is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        for name in self.card.inputs:
            if name not in inputs:
                raise Refused(f"the series {name} is missing", Reason.MISSING_INPUT)
        try:
            return self._segmented(inputs) if self._settings.task == "segmentation" else self._classified(inputs)
        except MemoryError as error:
            raise OutOfResources(f"not enough memory for {self.card.name}") from error

    def _scaled(self, values: Array) -> Array:
        settings = self._settings
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            words = "the series holds values that are no numbers, from which no result can be computed"
            raise Refused(words, Reason.INTENSITY)
        scaled = (values.astype(np.float32) - settings.low) / (settings.high - settings.low)
        return np.asarray((np.clip(scaled, 0, 1) - settings.mean) / settings.std, dtype=np.float32)

    # -- segmentation

    def _segmented(self, inputs: Mapping[str, Given]) -> Findings:
        from pacs_ai.models.grid import aligned

        volumes = {name: _volume(name, inputs) for name in self.card.inputs}
        (first_name, first), *_ = volumes.items()
        arrays = [aligned(volume, first, name, first_name) for name, volume in volumes.items()]
        labels = self._labels(np.stack([self._scaled(array) for array in arrays]), first)
        return Findings(segments=self._segments(labels), grid=first_name)

    def _labels(self, image: Array, first: Volume) -> Array | tuple[Array, ...]:
        """Return the label map, or one mask per channel, on the grid of the volume."""
        import torch

        from pacs_ai.models.engine import tiling
        from pacs_ai.models.engine.resample import Grids, resampled
        from pacs_ai.models.engine.windows import Runner, padded, slabs

        shape = first.shape
        wanted = self._settings.spacing_mm or first.spacing
        size = tuple(max(round(n * mm / to), 1) for n, mm, to in zip(shape, first.spacing, wanted, strict=True))
        there, back = Grids(shape, size, (1, 1, 1)), Grids(size, shape, (1, 1, 1))
        image = np.stack([resampled(channel, there) for channel in image])
        window = self._window(size)
        full, inner = padded(torch.from_numpy(image), window)
        tiles = tiling.even(full.shape[1:], window, (self._settings.overlap,) * 3)
        weight = tiling.gaussian(window, (0.125,) * 3)
        runner = Runner([self._network], torch.device("cpu"), "fp32", 1)
        maps: list[LabelMap] = []
        for start, planes in slabs(full, runner, tiles, weight):
            maps = maps or self._maps(len(planes), back)
            low, high = (min(max(edge - start, 0), planes.shape[1]) for edge in (inner[0].start, inner[0].stop))
            if high > low:
                part = planes[:, low:high, inner[1], inner[2]]
                for number, one in enumerate(maps):
                    one.take(part if len(maps) == 1 and one.regions is None else part[number : number + 1])
        labels = tuple(one.labels for one in maps)
        return labels if self._settings.activation == "sigmoid" else labels[0]

    def _maps(self, channels: int, back: Grids) -> list[LabelMap]:
        """Return what takes the labels: one map of the largest channel, or one for each channel above its threshold."""
        from pacs_ai.models.engine.labels import LabelMap

        highest = max(self._package.model.labels, default=0)
        sigmoid = self._settings.activation == "sigmoid"
        if highest >= channels + (1 if sigmoid and 0 not in self._package.model.labels else 0):
            raise PipelineFault(f"the output has {channels} channels, [labels] names number {highest}")
        if sigmoid:
            return [LabelMap(back, regions=(1,)) for _ in range(channels)]
        return [LabelMap(back, classes=channels)]

    def _window(self, size: Sequence[int]) -> tuple[int, int, int]:
        stated = self._settings.size or tuple(size)
        if len(stated) == 2:
            return 1, stated[0], stated[1]
        one, two, three = stated
        return one, two, three

    def _network(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the output of windows (windows, channels, slice, row, column), logits against the threshold."""
        import torch

        reverse = self._settings.axes == "csr"
        turned = windows.transpose(2, -1) if reverse else windows
        output = torch.from_numpy(self._ran(turned.contiguous().numpy()))
        output = output.transpose(2, -1) if reverse and output.ndim == windows.ndim else output
        if self._settings.activation == "sigmoid":
            return output - float(np.log(self._settings.threshold / (1 - self._settings.threshold)))
        return output

    def _ran(self, image: Array) -> Array:
        """Return the first output of the graph as float32."""
        first = self._session.get_inputs()[0]
        try:
            output = self._session.run(None, {first.name: image})[0]
        except _onnx_faults() as error:
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise PipelineFault(
                f"{self._settings.file} takes {first.shape}, and refused {image.shape}: {str(error)[:200]}"
            ) from error
        return np.asarray(output, dtype=np.float32)

    def _segments(self, labels: Array | tuple[Array, ...]) -> tuple[Segment, ...]:
        coded = sorted(self._package.model.labels.items())
        if isinstance(labels, tuple):
            offset = 0 if 0 in self._package.model.labels else 1
            masks = [(table.name, labels[value - offset] == 1) for value, table in coded]
            return tuple(Segment(name, mask) for name, mask in masks if mask.any())
        return tuple(Segment(table.name, labels, value) for value, table in coded if (labels == value).any())

    # -- classification

    def _classified(self, inputs: Mapping[str, Given]) -> Findings:
        import torch

        (name, given), *_ = ((name, inputs[name]) for name in self.card.inputs)
        if not isinstance(given, Frames) or not given.images:
            raise Refused(f"{name} holds no single images, which a classifier needs", Reason.DIMENSIONS)
        pixels = self._scaled(given.images[0].pixels)
        image = torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())[None]
        if self._settings.size:
            image = torch.nn.functional.interpolate(image, self._settings.size, mode="bilinear", antialias=True)
        wanted = self._session.get_inputs()[0].shape
        if len(wanted) == 4 and wanted[1] == 3 and image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        output = torch.from_numpy(self._ran(image.contiguous().numpy())).reshape(-1)
        if len(output) != len(self.card.questions):
            raise PipelineFault(f"the output has {len(output)} values, the card {len(self.card.questions)} questions")
        if self._settings.activation != "none":
            output = output.sigmoid() if self._settings.activation == "sigmoid" else output.softmax(0)
        return Findings(classifications=self._answers(output.tolist()), grid=name)

    def _answers(self, probabilities: list[float]) -> tuple[Classification, ...]:
        answers = []
        for question, probability in zip(self.card.questions, probabilities, strict=True):
            answer = question.positive if probability >= question.threshold else question.negative
            if question.reported and answer is not None:
                answers.append(Classification(question.concept, answer, float(np.clip(probability, 0, 1))))
        return tuple(answers)


def _volume(name: str, inputs: Mapping[str, Given]) -> Volume:
    found = inputs[name]
    if not isinstance(found, Volume) or found.voxels.size == 0:
        raise Refused(f"the series {name} is no volume", Reason.GEOMETRY)
    return found


def _onnx_faults() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: errors of its own, which have no base in common, and Python's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

    found = [getattr(state, name) for name in dir(state)]
    own = [one for one in found if isinstance(one, type) and issubclass(one, Exception)]
    return (RuntimeError, ValueError, *own)
