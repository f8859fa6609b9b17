"""Findings on a frontal chest film, by the student that comes with the node or by a checkpoint that the user brings.

The networks are told apart by the setting `network`: ``student`` (EfficientNet-Lite0), ``chexnet`` and
``torchxrayvision`` (DenseNet-121). All of them answer with one probability per finding; the card says which answers
are good enough to be reported, and from which probability on they are "present". The most urgent finding gives the
film its priority in the worklist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.model_sections import Section
from pacs_ai.models.readings.answers import answers
from pacs_ai.pipeline import Classification, Code, Findings, Map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from pacs_ai.models.package import Package
    from pacs_ai.models.readings.film_gate import Look, Objection
    from pacs_ai.pipeline import Array, Card, Frame, Frames

PRIORITY = Code("260870009", "SCT", "Priority")
URGENT = Code("priority-urgent", "99PACSAI", "Urgent: read first")
ROUTINE = Code("priority-routine", "99PACSAI", "Routine")
SALIENCY = Code("130404", "DCM", "Saliency")
_PURE = Code("{ratio}", "UCUM", "ratio")
GATE = "gate.safetensors"


class Settings(Section):
    """The settings of a chest-film package."""

    network: str = "student"
    """`student`, `chexnet` or `torchxrayvision`."""
    outputs: tuple[str, ...]
    """The network's outputs in order, by the names of the card's questions; what the card does not ask is dropped."""
    slopes: tuple[float, ...] = ()
    """Of each output: what its logit is multiplied by before the sigmoid (Platt); empty: 1."""
    offsets: tuple[float, ...] = ()
    """And what is then added; empty: 0."""
    working_points: tuple[float, ...] = ()
    """Of each output: probability that becomes one half, as torchxrayvision scales its answers; empty: none."""
    urgent: dict[str, float] = Field(default_factory=dict)
    """Finding -> probability from which the film is urgent."""
    likeness: float = 0.0
    """Least correlation with the mean film; see `Look`."""
    residue: float = 1.0
    """Largest unexplained part of the variance; see `Look`."""
    distance: float = 0.0
    """Largest Mahalanobis distance of a film to the training films; 0, and of the DenseNets always: not looked at."""
    saliency: bool = False
    """Whether a map is returned that shows where the most probable finding was seen."""


class Network(Protocol):
    """What the three networks have in common."""

    def maps(self, film: torch.Tensor) -> torch.Tensor:
        """Return (n, channels, rows, columns)."""

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, outputs)."""

    def activation(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, outputs, rows, columns): where in the film the answers come from."""


@dataclass(frozen=True)
class Kind:
    """One of the networks: how it is built, what it is shown of a film, and whether that is one view of all of it."""

    build: Callable[[int], Network]
    views: Callable[[Array], torch.Tensor]
    whole: bool = False


@dataclass(frozen=True)
class Seen:
    """What the network makes of one film.

    Parameters
    ----------
    chances
        (outputs,) probabilities.
    maps
        (outputs, rows, columns) class activation maps over the first view.
    distance
        Of the features, 0 where it is not looked at.
    """

    chances: npt.NDArray[np.float64]
    maps: npt.NDArray[np.float32]
    distance: float


def kind_of(name: str) -> Kind:
    """Return the network of that name; `PipelineFault` where there is none."""
    from pacs_ai.models.networks.chest_student import ChestStudent
    from pacs_ai.models.networks.densenet import DenseNet121
    from pacs_ai.models.readings.radiograph import chexnet_views, student_views, xrv_views

    kinds = {
        "student": Kind(ChestStudent, student_views, whole=True),
        "chexnet": Kind(lambda answers: DenseNet121(3, answers), chexnet_views),
        "torchxrayvision": Kind(lambda answers: DenseNet121(1, answers), xrv_views),
    }
    if name not in kinds:
        raise PipelineFault(f"the setting network is {name!r}; known are {', '.join(kinds)}")
    return kinds[name]


class ChestFilm:
    """The pipeline of all chest-film packages.

    Parameters
    ----------
    package
        With ``weights.safetensors``, and `GATE` where films are held against the mean film.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._settings = Settings.model_validate(package.model.settings)
        self._kind: Kind | None = None
        self._network: Any = None
        self._look: Look | None = None
        self._device = "cpu"

    @property
    def card(self) -> Card:
        """The package's card."""
        return self._package.card

    @property
    def gate(self) -> Look | None:
        """What films are held against; None where the package has no `GATE`, or before `prepare`."""
        return self._look

    def prepare(self, device: str) -> None:
        """Load the weights."""
        from pacs_ai.models.readings.film_gate import Look

        kind = kind_of(self._settings.network)
        network: Any = kind.build(len(self._settings.outputs))
        weights = {name: tensor.float() for name, tensor in self._package.tensors().items()}
        try:
            lost = network.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise PipelineFault(f"the weights of {self._package.model.name} are not its network's: {error}") from error
        missing = [name for name in lost.missing_keys if not name.endswith("num_batches_tracked")]
        if missing or lost.unexpected_keys:
            raise PipelineFault(f"the weights of {self._package.model.name} are not its network's: {lost}")
        if GATE in self._package.model.files:
            self._look = Look.of(self._package.tensors(GATE), self._settings.likeness, self._settings.residue)
        self._kind, self._network, self._device = kind, network.eval().to(device), device

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Answer the card's questions; of several frontal films the highest probability of each finding counts."""
        from pacs_ai.models.readings.film_gate import objection

        if self._network is None:
            self.prepare(self._device)
        frames = inputs["image"]
        against = [objection(frame, self._look) for frame in frames.images]
        frontal = [index for index, reason in enumerate(against) if reason is None]
        if not frontal:
            raise _refusal([reason for reason in against if reason is not None])
        seen = [self.look(frames.images[index]) for index in frontal]
        limit = self._settings.distance
        if limit and (farthest := max(one.distance for one in seen)) > limit:
            raise Refused(
                f"the film is unlike those that the model was trained on (distance {farthest:.1f}, at most {limit:g})",
                Reason.OUT_OF_DISTRIBUTION,
            )
        chances = np.max([one.chances for one in seen], axis=0)
        return Findings(classifications=self._answers(chances), maps=self._maps(seen, frontal, frames))

    def look(self, frame: Frame) -> Seen:
        """Show one film to the network."""
        import torch

        assert self._kind is not None
        with torch.inference_mode():
            views = self._kind.views(frame.pixels).to(self._device)
            maps = self._network.maps(views)
            logits = self._network.logits(maps).cpu()
            away = float(self._network.distance(maps).max()) if self._settings.distance else 0.0
            activation = self._network.activation(maps[:1])[0].float().cpu().numpy()
        return Seen(self._chances(logits.double().numpy()), activation, away)

    def _chances(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return probabilities (outputs,) of logits (views, outputs)."""
        settings = self._settings
        slopes, offsets = np.asarray(settings.slopes or 1.0), np.asarray(settings.offsets or 0.0)
        chances = (1 / (1 + np.exp(-(logits * slopes + offsets)))).mean(axis=0)
        if not settings.working_points:
            return np.asarray(chances)
        points = np.asarray(settings.working_points)
        above = 1 - (1 - chances) / (2 * (1 - points))
        return np.asarray(np.where(chances < points, chances / (2 * points), above))

    def _answers(self, chances: npt.NDArray[np.float64]) -> tuple[Classification, ...]:
        by_name = {name: float(chance) for name, chance in zip(self._settings.outputs, chances, strict=True)}
        questions = self.card.questions
        given = answers(questions, [by_name[question.name] for question in questions])
        if not self._settings.urgent:
            return given
        reported = {question.name for question in questions if question.reported}
        urgent = any(by_name[name] >= least for name, least in self._settings.urgent.items() if name in reported)
        return (Classification(PRIORITY, URGENT if urgent else ROUTINE), *given)

    def _maps(self, seen: Sequence[Seen], frontal: Sequence[int], frames: Frames) -> tuple[Map, ...]:
        """Return where the most probable reported finding was seen, 0 to 1 over the film."""
        if not self._settings.saliency or frames.shape is None or self._kind is None or not self._kind.whole:
            return ()
        from pacs_ai.models.readings.shrinking import resized

        asked = {question.name: question.threshold for question in self.card.questions if question.reported}
        names = self._settings.outputs
        surest, output = max(
            ((film, k) for film in range(len(seen)) for k, name in enumerate(names) if name in asked),
            key=lambda pair: seen[pair[0]].chances[pair[1]] - asked[names[pair[1]]],
        )
        voxels = np.zeros(frames.shape, np.float32)
        activation = resized(seen[surest].maps[output], *frames.shape[1:], "triangle")
        low, high = float(activation.min()), float(activation.max())
        voxels[frontal[surest]] = (activation - low) / max(high - low, 1e-6)
        return (Map(f"Saliency: {names[output]}"[:64], SALIENCY, _PURE, voxels),)


def _refusal(against: Sequence[Objection]) -> Refused:
    """Return the reason of a single image, or of the first of several."""
    what = "this is no film" if len(against) == 1 else f"none of {len(against)} images is a film"
    return Refused(f"{what} that can be read: {against[0].words}", against[0].reason)
