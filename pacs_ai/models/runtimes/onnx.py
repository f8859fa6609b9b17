"""An ONNX file as a pipeline: segmentation by sliding windows, or answers of a classifier, by onnxruntime.

An ONNX graph holds operators and numbers, no code of its author's; custom operators are not registered here, and
weights that lie outside of the file are read only from the package's own folder. What the file does not say, how
images are scaled and on which voxels, stands in ``model.toml`` under [settings].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from pacs_ai.errors import OutOfResources, PipelineFault, Reason, Refused
from pacs_ai.model_sections import Section, faults
from pacs_ai.models.runtimes.onnx_session import Session
from pacs_ai.pipeline import Array, Card, Classification, Findings, Frames, Given, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from pacs_ai.models.engine.labels import LabelMap
    from pacs_ai.models.engine.resample import Grids
    from pacs_ai.models.package import Package


Millimetres = Annotated[float, Field(gt=0)]


class Settings(Section):
    """``[settings]`` of a package with the runtime ``onnx``."""

    file: str = "model.onnx"
    """The ONNX file."""
    task: Literal["segmentation", "classification"] = "segmentation"
    """What its output is: channels of the input's size, or one number for each question."""
    size: tuple[int, ...] = ()
    """Segmentation: windows, in (slice, row, column) or (row, column); classification: (rows, columns) of the network's
    image. Empty: what the file fixes, else the whole image."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of neighbouring windows, as a share."""
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
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

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        if self.low >= self.high:
            raise ValueError("`low` must be less than `high`")
        axes = (2,) if self.task == "classification" else (2, 3)
        if self.size and (len(self.size) not in axes or min(self.size) < 1):
            raise ValueError(f"`size` of a {self.task} has {' or '.join(str(one) for one in axes)} numbers from 1 on")
        return self


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
        self._session: Session | None = None
        self._size: tuple[int, ...] = ()
        given = {table.given for table in package.model.inputs.values()}
        wanted = "volume" if self._settings.task == "segmentation" else "frames"
        if given != {wanted}:
            raise PipelineFault(
                f"the inputs of {package.model.name} are given as {', '.join(sorted(given))}; a "
                f'{self._settings.task} by ONNX takes given = "{wanted}"'
            )

    def prepare(self, device: str) -> None:
        """Check every file's digest, then have onnxruntime load the graph.

        Raises
        ------
        PipelineFault
            onnxruntime is missing, a file differs, lies outside, or is no graph that onnxruntime knows.
        """
        self._package.verify()
        self._session = Session(self._package, self._settings.file, device, self._settings.threads)
        size, stated = self._session.size[:: -1 if self._settings.axes == "csr" else 1], self._settings.size
        if stated and size and stated not in {size, (1, *size)}:
            raise PipelineFault(
                f"{self._settings.file} takes images of {list(size)}, [settings] of {self.card.name} states size = "
                f"{list(stated)}: leave it out"
            )
        self._size = stated or size

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
        except (MemoryError, RuntimeError) as error:
            from pacs_ai.models.engine.memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            raise OutOfResources(f"not enough memory for {self.card.name}") from error

    def _scaled(self, values: Array) -> Array:
        settings = self._settings
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            words = "the series holds values that are no numbers, from which no result can be computed"
            raise Refused(words, Reason.INTENSITY)
        scaled = (values.astype(np.float32) - settings.low) / (settings.high - settings.low)
        return np.asarray((np.clip(scaled, 0, 1) - settings.mean) / settings.std, dtype=np.float32)

    @property
    def _prepared(self) -> Session:
        if self._session is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        return self._session

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
        stated = self._size or tuple(size)
        one, two, three = stated if len(stated) == 3 else (1, *stated)
        return one, two, three

    def _network(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the output of windows (windows, channels, slice, row, column), logits against the threshold."""
        import torch

        reverse = self._settings.axes == "csr"
        turned = windows.transpose(2, -1) if reverse else windows
        output = torch.from_numpy(self._prepared(turned.contiguous().numpy()))
        output = output.transpose(2, -1) if reverse and output.ndim == windows.ndim else output
        if output.ndim != windows.ndim or (len(output), *output.shape[2:]) != (len(windows), *windows.shape[2:]):
            raise PipelineFault(
                f"{self._settings.file} answers images of {tuple(windows.shape)} by {tuple(output.shape)}: of a "
                "segmentation, (windows, channels) and the image's own size are wanted"
            )
        if self._settings.activation == "sigmoid":
            return output - float(np.log(self._settings.threshold / (1 - self._settings.threshold)))
        return output

    def _segments(self, labels: Array | tuple[Array, ...]) -> tuple[Segment, ...]:
        coded = sorted(self._package.model.labels.items())
        if isinstance(labels, tuple):
            offset = 0 if 0 in self._package.model.labels else 1
            masks = [(table.name, labels[value - offset] == 1) for value, table in coded]
            return tuple(Segment(name, mask) for name, mask in masks if mask.any())
        return tuple(Segment(table.name, labels, value) for value, table in coded if (labels == value).any())

    # -- classification

    def _classified(self, inputs: Mapping[str, Given]) -> Findings:
        """Answer the questions by the mean probability over the images."""
        (name, given), *_ = ((name, inputs[name]) for name in self.card.inputs)
        if not isinstance(given, Frames) or not given.images:
            raise Refused(f"{name} holds no single images, which a classifier needs", Reason.DIMENSIONS)
        rows = [self._probabilities(frame.pixels) for frame in given.images]
        return Findings(classifications=self._answers(np.mean(rows, axis=0).tolist()), grid=name)

    def _probabilities(self, pixels: Array) -> Array:
        """Return one probability for each question about one image."""
        import torch

        scaled = self._scaled(pixels)
        image = torch.from_numpy(scaled[None] if scaled.ndim == 2 else scaled.transpose(2, 0, 1).copy())[None]
        if self._size:
            image = torch.nn.functional.interpolate(image, self._size, mode="bilinear", antialias=True)
        wanted = self._prepared.shape
        if len(wanted) == 4 and wanted[1] == 3 and image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        output = torch.from_numpy(self._prepared(image.contiguous().numpy())).reshape(-1)
        if len(output) != len(self.card.questions):
            raise PipelineFault(f"the output has {len(output)} values, the card {len(self.card.questions)} questions")
        if self._settings.activation != "none":
            output = output.sigmoid() if self._settings.activation == "sigmoid" else output.softmax(0)
        return np.asarray(output.double().numpy())

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
