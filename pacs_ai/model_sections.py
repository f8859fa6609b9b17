"""What the configuration and the cards of models say of a model: its inputs, its labels, its [[pipeline]].

Here is also what all tables of either are made of: `Section`, the kinds of values, and how faults are told.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

AeTitle = Annotated[
    str,
    Field(min_length=1, max_length=16, pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]*[\x21-\x5b\x5d-\x7e])?$"),
]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
#: Code Value, Coding Scheme Designator (SH) and Code Meaning (LO).
Triplet = tuple[
    Annotated[str, Field(min_length=1, max_length=64)],
    Annotated[str, Field(min_length=1, max_length=16)],
    Annotated[str, Field(min_length=1, max_length=64)],
]


class Section(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def faults(error: ValidationError) -> str:
    """Return every fault on a line of its own, each with its path in the file."""
    return "\n".join(f"  {_where(fault)}: {_words(fault)}" for fault in error.errors())


def faults_in(error: ValidationError, root: type[BaseModel]) -> str:
    """As `faults`, in an administrator's words, and with the key that an unknown one may have been meant to be."""
    lines = []
    for fault in error.errors():
        told, given = _TOLD.get(fault["type"]), fault.get("ctx", {})
        words = _words(fault) if told is None else told.format(**given)
        if fault["type"] == "extra_forbidden":
            words += _meant(root, fault["loc"])
        lines.append(f"  {_where(fault)}: {words}")
    return "\n".join(lines)


#: pydantic's type of a fault -> what an administrator is told.
_TOLD = {
    "missing": "is missing",
    "string_too_long": "may have at most {max_length} characters",
    "string_too_short": "may not be empty",
    "string_pattern_mismatch": "has a character, or a blank at an end, that is not allowed here",
    "string_type": "must be text, in quotes",
    "int_type": "must be a whole number, without quotes",
    "int_parsing": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "float_parsing": "must be a number, without quotes",
    "bool_type": "must be true or false, without quotes",
    "bool_parsing": "must be true or false, without quotes",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "may be at most {le}",
    "tuple_type": "must be a list: [...]",
}


def _where(fault: ErrorDetails) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in fault["loc"]) or "the file"


def _words(fault: ErrorDetails) -> str:
    return "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")


def _meant(root: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """Return the key that an unknown one is most like, as a question; "" where it is like none."""
    kind: Any = root
    for part in path[:-1]:
        if isinstance(part, str):
            field = getattr(kind, "model_fields", {}).get(part)
            kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
            kind = next((one for one in kinds if hasattr(one, "model_fields")), None)
    like = get_close_matches(str(path[-1]), getattr(kind, "model_fields", {}), 1)
    return f"; is {like[0]} meant?" if like else ""


class LabelTable(Section):
    """One label of a bundle: a channel or a value of its output, coded."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """Segment Label."""
    category: Triplet = ("123037004", "SCT", "Anatomical Structure")
    """Segmented Property Category: Code Value, Coding Scheme Designator, Code Meaning."""
    type: Triplet
    """Segmented Property Type."""
    modifier: Triplet | None = None
    """Segmented Property Type Modifier, the laterality for instance."""
    colour: tuple[int, int, int] | None = None
    """Display colour, sRGB 0 to 255; chosen for you where missing."""


class InputTable(Section):
    """One named input of a bundle, in the order of the image channels."""

    modality: tuple[str, ...] = ("CT", "MR", "PT")
    """Accepted Modality values."""
    min_slices: Annotated[int, Field(ge=1)] = 1
    """Fewest slices."""
    max_slice_spacing_mm: Annotated[float, Field(gt=0)] | None = None
    """Largest distance between slices in mm."""
    given: Literal["volume", "frames", "time-series", "waveform"] = "volume"
    """What the model gets: one volume, single images, a volume over time, or a waveform."""
    body_part: tuple[str, ...] = ()
    """Accepted Body Part Examined, where a series states one; empty: any."""
    view: tuple[str, ...] = ()
    """Accepted View Position, or code meaning of the view; empty: any."""
    align: bool = False
    """Whether it is brought onto the grid of the first input, registered where the Frames of Reference differ."""
    laterality: tuple[str, ...] = ()
    """Accepted Image Laterality or Laterality, `L` or `R`, which the image must then state; empty: any."""
    min_age_years: Annotated[float, Field(ge=0)] | None = None
    """Youngest patient; a series that does not tell the age is accepted with a note."""
    max_age_years: Annotated[float, Field(ge=0)] | None = None
    """Oldest patient."""
    contrast: Literal["any", "without", "with"] = "any"
    """Whether a contrast medium (Contrast/Bolus Agent) has to be absent or present."""
    phase: tuple[str, ...] = ()
    """Accepted contrast phases (`portal`, `arterial`), where Series Description or Protocol Name tells one; empty:
    any."""
    lossy: bool = True
    """Whether images that were compressed with loss are accepted."""
    burned_in: bool = True
    """Whether images that say they have text in their pixels (Burned In Annotation) are accepted."""
    min_rows: Annotated[int, Field(ge=1)] = 1
    """Fewest rows."""
    min_columns: Annotated[int, Field(ge=1)] = 1
    """Fewest columns."""
    max_pixel_spacing_mm: Annotated[float, Field(gt=0)] | None = None
    """Largest distance of rows or columns in mm; an image that tells none is refused."""
    intensity: tuple[float, float] | None = None
    """Least and greatest modality value between which nine tenths of the voxels must lie."""
    min_times: Annotated[int, Field(ge=2)] = 2
    """Fewest times of a volume over time."""
    min_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Shortest volume over time, or waveform."""
    channels: tuple[str, ...] = ()
    """Channels that a waveform must have (`II`); empty: any."""


class Pipeline(Section):
    """A pipeline with settings of its own, or a MONAI bundle. Installed plugins are there without it."""

    name: Name
    """What routes and commands call it."""
    use: str = ""
    """Entry point (group `pacs_ai.pipelines`) that it is; empty: the one called `name`. Not with `bundle`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the plugin. Other settings are other work: results get other UIDs."""
    timeout_seconds: Seconds = 900.0
    """A job that runs longer is ended, and counts as a crash."""
    model: str = ""
    """Model package that it is, where that bears another name; an installed package needs no section."""
    digest: str = ""
    """Digest of the package (`pacs-ai models show`): another package of that name is refused. Without it results are
    marked for research, whatever the package says."""
    bundle: Path | None = None
    """Folder of a MONAI bundle; a relative path counts from the configuration file. Its configuration executes code,
    so every file is named in `files`."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 (hex) of every file of the bundle: `pacs-ai config bundle FOLDER` prints it."""
    labels: dict[int, LabelTable] = Field(default_factory=dict)
    """Value (label map) or channel of the bundle's output -> coded label."""
    inputs: dict[str, InputTable] = Field(default_factory=dict)
    """Named inputs in channel order; empty: one called `image`."""
    title: str = ""
    """A few words for Series Description; empty: the bundle's name."""
    procedure: Triplet | None = None
    """Procedure reported in the SR (CID 100 where possible)."""
    manufacturer: str = ""
    """Who makes the model; empty: the bundle's authors."""
    clearance: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    """Content Qualification of the results. RESEARCH adds "not for clinical use"."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Configuration ids of the bundle to set, as `monai.bundle run --id value` would: `{"inferer#overlap" = 0.25}`."""
    config: str = ""
    """Inference configuration within the bundle; empty: `configs/inference.json`, `.yaml` or `.yml`."""
    weights: str = ""
    """Weights within the bundle; empty: what its CheckpointLoader names, else `models/model.pt`, `models/model.ts`."""
    orientation: Annotated[str, Field(pattern=r"^([LR][PA][SI]|)$")] = ""
    """Axis codes (`LPS`) to which volumes are turned first, for a bundle without an Orientation of its own."""
    mixed_precision: bool | None = None
    """torch.autocast on CUDA; empty: as the bundle's evaluator says, on where it says nothing."""
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = None
    """A series whose arrays would need more memory is not analysed; empty: what is free, on the CPU."""
    seed_weights: int | None = None
    """For trials without weights: seed of random weights. Results are noise and say so."""

    @model_validator(mode="after")
    def _one_kind(self) -> Pipeline:
        if sum((self.bundle is not None, bool(self.use), bool(self.model))) > 1:
            raise ValueError("give one of `use`, `model` and `bundle`")
        if self.digest and self.bundle is not None:
            raise ValueError("`digest` belongs to a model package; a bundle has `files`")
        given = sorted(self.model_fields_set - {"name", "use", "model", "digest", "settings", "timeout_seconds"})
        if self.bundle is None and given:
            raise ValueError(f"{', '.join(given)} belong(s) to a `bundle`")
        if self.bundle is not None and self.settings:
            raise ValueError("`settings` belong to a plugin; a bundle has `overrides`")
        return self
