"""A bundle's configuration, read by MONAI's own parser, with the device set and reading and writing of files cut."""

from __future__ import annotations

import re
import sys
import warnings
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from pacs_ai.errors import PipelineFault
from pacs_ai.models.bundle_metadata import described

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from pacs_ai.models.bundle_spec import BundleSpec

CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
WEIGHTS = ("models/model.pt", "models/model.ts")
#: Transforms that read or write files, by the last part of their name.
READS = {"LoadImaged", "LoadImageD", "LoadImageDict"}
WRITES = {"SaveImaged", "SaveImageD", "SaveImageDict", "SaveImage"}
WRITES |= {"SaveClassificationd", "SaveClassificationD", "SaveClassificationDict"}
#: Takes the place of a transform that was cut, so that the others keep their index.
NOTHING = {"_target_": "monai.transforms.Identity"}
REFERENCE = re.compile(r"\$?@([\w:#]+)")
SUM = re.compile(r"\$?\s*@[\w:#]+(\s*\+\s*@[\w:#]+)*\s*")
CUDA = re.compile(
    r"\$\s*torch\.device\(\s*['\"]cuda(:\d+)?['\"]\s*"
    r"(if torch\.cuda\.is_available\(\) else ['\"]cpu['\"]\s*)?\)"
)
#: What MONAI and torch say of well-formed bundles that nobody who runs them can change.
KNOWN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    ("Detected deprecated name", UserWarning),  # metadata of the zoo's older bundles
    (r"monai\.\S+ \S+: Current default value of argument", FutureWarning),  # MONAI on its own defaults
    ("there are more than 1 component have name", UserWarning),  # the first is taken, as in MONAI's own run
    ("inverse has been called but no invertible transforms", UserWarning),  # Invertd after intensities only
    ("Detected pickle protocol", UserWarning),  # weights that are refused right after
    ("`torch.jit.load` is deprecated", DeprecationWarning),
)


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Silence `KNOWN_WARNINGS`, and no others, while third-party code runs."""
    with warnings.catch_warnings():
        for message, category in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        yield


@contextmanager
def own_modules(folder: Path, kept: dict[str, ModuleType]) -> Iterator[None]:
    """Let the bundle import its own ``scripts``, and no other bundle's: its modules are put aside again afterwards.

    Parameters
    ----------
    folder
        The bundle.
    kept
        The bundle's modules that were imported before; filled on leaving.
    """
    before = set(sys.modules)
    writes_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a __pycache__ would be a file that nobody named
    sys.path.insert(0, str(folder))
    sys.modules.update(kept)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_bytecode
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], folder):
                kept[name] = sys.modules.pop(name)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    spec = getattr(module, "__spec__", None)
    places = [getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ())]
    return any(isinstance(place, str) and Path(place).is_relative_to(folder) for place in places)


def _walk(config: Any, item: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every item below `config` with its id, parents first."""
    yield item, config
    if isinstance(config, dict | list):
        for _, child, value in ReferenceResolver.iter_subconfigs(id=item, config=config):
            yield from _walk(value, child)


def target(config: Any) -> str:
    """Return the last part of a component's ``_target_``; "" where it is none."""
    name = config.get("_target_", "") if isinstance(config, dict) else ""
    return name.rsplit(".", 1)[-1] if isinstance(name, str) else ""


class Parser(Protocol):
    """A configuration by the ids of its items ("inferer::roi_size"), and the objects that they describe."""

    def get(self, id: str = "", default: Any | None = None) -> Any:  # noqa: A002 - MONAI's name
        """Return an item as written."""

    def __contains__(self, id: str | int) -> bool:  # noqa: A002 - MONAI's name
        """Whether there is such an item."""

    def __setitem__(self, id: str | int, config: Any) -> None:  # noqa: A002 - MONAI's name
        """Put another item in its place."""

    def get_parsed_content(self, id: str = "") -> Any:  # noqa: A002 - MONAI's name
        """Return what the item describes."""


def inference_file(spec: BundleSpec) -> str:
    """Return the path of the inference configuration in the folder; `PipelineFault` where there is none."""
    for name in (spec.config,) if spec.config else CONFIGS:
        if name in spec.files:
            return name
    raise PipelineFault(
        f"{spec.folder} has no {spec.config or ', '.join(CONFIGS)}: name its inference configuration "
        "by config of [[pipeline]]"
    )


def trusted_parser(spec: BundleSpec, metadata: Mapping[str, Any]) -> Parser:
    """Return MONAI's own parser, which executes what the bundle's author wrote, when items are built."""
    parser = ConfigParser()
    parser.read_config(spec.folder.resolve() / inference_file(spec))
    parser.read_meta(deepcopy(dict(metadata)))
    parser.parse()  # resolves macros, executes nothing
    return parser  # type: ignore[no-any-return]


class Configuration:
    """The inference configuration of one bundle.

    Parameters
    ----------
    spec
        Folder, file, overrides.
    parser
        Its content, and what makes objects of it: `trusted_parser`, or the declared reader.
    device
        "cpu", "cuda:0": takes the place of every device that the bundle chooses by itself.

    Attributes
    ----------
    keys
        What the bundle's own LoadImaged would load, in its order.
    channel_first
        Whether that LoadImaged would add the channel axis.
    """

    def __init__(self, spec: BundleSpec, parser: Parser, device: str) -> None:
        self.spec = spec
        self.folder = spec.folder.resolve()
        self.parser = parser
        self.parser["bundle_root"] = str(self.folder)
        self._set_device(device)
        self._override()
        self.keys, self.channel_first = self._cut_files()

    def _set_device(self, device: str) -> None:
        own = self.parser.get("device")
        for item, value in list(_walk(self.parser.get())):
            chosen = isinstance(value, str) and (value == own or CUDA.fullmatch(value) is not None)
            if chosen and item != "device" and isinstance(own, str):
                self.parser[item] = "@device"
            elif chosen:
                self.parser[item] = f"$torch.device('{device}')"
        self.parser["device"] = f"$torch.device('{device}')"

    def _override(self) -> None:
        for item, value in self.spec.overrides.items():
            parent = "::".join(ReferenceResolver.split_id(item)[:-1])
            if parent not in self.parser:
                raise PipelineFault(
                    f"overrides of [[pipeline]] names {item!r}, but the bundle's configuration has no {parent!r}"
                )
            self.parser[ReferenceResolver.normalize_id(item)] = value

    def _cut_files(self) -> tuple[tuple[str, ...], bool]:
        """Put nothing in the place of LoadImaged and SaveImaged; return the keys that are to be loaded."""
        for parts in filter(None, (self.preprocessing, self.postprocessing)):
            self._write_out(f"{parts}::transforms")
        loads = [(item, value) for item, value in _walk(self.parser.get(self.preprocessing)) if target(value) in READS]
        if not loads:
            raise PipelineFault(
                f"the preprocessing of {self.folder.name} begins with no LoadImaged: only bundles that work on "
                "dictionaries can be run"
            )
        keys: list[str] = []
        channel_first = False
        for item, value in loads:
            found = self.value(f"{self.preprocessing}::{item}::keys")
            keys += [found] if isinstance(found, str) else list(found)
            channel_first |= "ensure_channel_first" in value and bool(
                self.value(f"{self.preprocessing}::{item}::ensure_channel_first")
            )
        cut = [f"{self.preprocessing}::{item}" for item, _ in loads]
        if self.postprocessing is not None:
            after = _walk(self.parser.get(self.postprocessing))
            cut += [f"{self.postprocessing}::{item}" for item, value in after if target(value) in WRITES]
        for item in cut:
            self.parser[item] = dict(NOTHING)
        return tuple(dict.fromkeys(str(key) for key in keys)), channel_first

    def _write_out(self, item: str) -> None:
        """Put the steps themselves where a Compose refers to lists of them ("$@transforms", "$@first + @others")."""
        written = self.parser.get(item)
        if not isinstance(written, str) or not SUM.fullmatch(written):
            return
        lists = [self.parser.get(self.follow(match[1])) for match in REFERENCE.finditer(written)]
        if all(isinstance(steps, list) for steps in lists):
            self.parser[item] = deepcopy([step for steps in lists for step in steps])

    def follow(self, item: str) -> str:
        """Return the id at the end of a chain of references ("evaluator::network" -> "network")."""
        seen = {item}
        while isinstance(value := self.parser.get(item), str) and (match := REFERENCE.fullmatch(value)):
            item = ReferenceResolver.normalize_id(match[1])
            if item in seen:
                raise PipelineFault(f"{self.folder.name}: {item} refers to itself")
            seen.add(item)
        return item

    def part(self, role: str) -> str | None:
        """Return the id of what the bundle's evaluator uses in a role ("network", "inferer"), None if there is none."""
        evaluator = self.parser.get("evaluator")
        if isinstance(evaluator, dict):
            if target(evaluator) != "SupervisedEvaluator":
                raise PipelineFault(
                    f"{self.folder.name} runs an evaluator of its own ({evaluator.get('_target_')}): only bundles "
                    "whose evaluator is MONAI's SupervisedEvaluator can be run"
                )
            if role in evaluator:
                return self.follow(f"evaluator::{role}")
        return self.follow(role) if role in self.parser else None

    @property
    def preprocessing(self) -> str:
        """The id of the transform of the evaluator's data set; ``preprocessing`` by custom."""
        loader = self.part("val_data_loader")
        dataset = self.follow(f"{loader}::dataset") if loader and f"{loader}::dataset" in self.parser else "dataset"
        if f"{dataset}::transform" in self.parser:
            return self.follow(f"{dataset}::transform")
        if "preprocessing" in self.parser:
            return self.follow("preprocessing")
        raise PipelineFault(f"the configuration of {self.folder.name} has no preprocessing")

    @property
    def postprocessing(self) -> str | None:
        """The id of the evaluator's postprocessing."""
        return self.part("postprocessing")

    def value(self, item: str) -> Any:
        """Build and return an item; this executes the bundle's code."""
        return self.parser.get_parsed_content(item)

    @property
    def channels(self) -> int:
        """Channels of the network's output, as the metadata say; 1 where they do not."""
        metadata = self.parser.get("_meta_")
        return described(metadata if isinstance(metadata, dict) else {}).count

    def checkpoint(self) -> tuple[str, str, bool]:
        """Return the path, the key of the network and the strictness of the CheckpointLoader; path "" for none."""
        for item, value in _walk(self.parser.get()):
            if target(value) == "CheckpointLoader":
                key = next(iter(value.get("load_dict") or {"model": None}))
                return str(self.value(f"{item}::load_path")), key, str(value.get("strict", True)) == "True"
        return "", "model", True

    def weights(self) -> tuple[str, str, bool]:
        """Return the weights' path in the folder, the key under which they may lie in it, and whether all must fit."""
        loaded, key, strict = self.checkpoint()
        path = self.spec.weights or loaded
        named = Path(self.folder, path).resolve() if path else None
        wanted = [named.relative_to(self.folder).as_posix()] if named and named.is_relative_to(self.folder) else []
        for name in wanted if self.spec.weights else [*wanted, *WEIGHTS]:
            if name in self.spec.files:
                return name, key, strict
        raise PipelineFault(
            f"{self.folder} has no weights ({path or WEIGHTS[0]}): fetch them (the zoo's large_files.yml says where "
            "they lie), then renew the table of digests in [[pipeline]]"
        )
