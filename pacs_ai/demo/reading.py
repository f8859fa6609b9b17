"""Which reading the demo shows: its card, whether its weights are here, and the route that brings it its images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import UserError
from pacs_ai.models import catalogue
from pacs_ai.models.catalogue import State
from pacs_ai.models.registry import Registry
from pacs_ai.testing import samples

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pacs_ai.pipeline import Card, Input

#: What the demo shows where no reading is named.
DEFAULT = "ct-lung"
#: Of any other reading the demo PACS gets what OHIF gets, and one picture page.
PROFILE = "demo"
_PROFILE = """\
[[profile]]
name = "demo"
objects = [
  { kind = "segmentation", only = "volumes" },
  { kind = "report" },
  { kind = "text-report" },
  { kind = "secondary-capture" },
  { kind = "derived-images" },
]

"""


@dataclass(frozen=True)
class Reading:
    """A reading that can be shown.

    Parameters
    ----------
    name
        As routes and commands call it.
    card
        Its card.
    models
        Folder of installed packages, None where none is needed.
    """

    name: str
    card: Card
    models: Path | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is the one whose phantom has a known truth."""
        return self.name == DEFAULT

    def tables(self, peer: str) -> str:
        """Return the tables of the demo's configuration that are this reading's own: folder, [[profile]], [[route]]."""
        inputs, further = self.card.inputs, samples.CONDITIONS.get(self.name, {})
        conditions = {name: _when(wanted, further.get(name, {})) for name, wanted in inputs.items()}
        if len(conditions) == 1:
            (single,) = conditions.values()
            asked = f"when = {single}"
        else:
            asked = "\n".join(["wait_seconds = 10.0", *(f"inputs.{name} = {one}" for name, one in conditions.items())])
        folder = f"[models]\nfolder = {json.dumps(str(self.models))}\n\n" if self.models is not None else ""
        return f'{folder}{_PROFILE}[[route]]\nrun = "{self.name}"\ndeliver_to = ["{peer}"]\n{asked}\n'


def _when(wanted: Input, further: Mapping[str, Any]) -> str:
    """Return conditions as an inline table."""
    keys: dict[str, Any] = {"modality": list(wanted.modality), **further}
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) + " }"


def find(name: str, models: Path) -> Reading:
    """Return the reading of that name.

    Raises
    ------
    UserError
        There is none, or its weights are not installed; the message says what to do.
    """
    known = {entry.name: entry for entry in catalogue.entries(models)}
    entry = known.get(name)
    if entry is not None and entry.state is State.AVAILABLE:
        brought = entry.advice.endswith("--from FOLDER")
        offline = "" if brought else f"\n(where there is no internet: {entry.advice} --from FOLDER)"
        raise UserError(
            f"the weights of {name} are not in {models}: {entry.advice}{offline}, or name another folder with --models"
        )
    registry = Registry(models=models)
    if name not in registry.names():
        reason = registry.broken.get(name, "")
        fault = f"{name} cannot be used: {reason}" if reason else f"there is no reading {name!r}" if name else ""
        raise UserError("\n".join(line for line in (fault, *listing(models)) if line))
    return Reading(name, registry.card(name), models.resolve())


def listing(models: Path) -> list[str]:
    """Return a line for each reading: its name, how its weights stand, and what it reads."""
    entries = {entry.name: entry for entry in catalogue.entries(models)}
    registry = Registry(models=models)
    rows: dict[str, tuple[str, str]] = {}
    for name, entry in entries.items():
        title = entry.package.model.title if entry.package else entry.fault
        rows[name] = (str(entry.state), title)
    for name in registry.names():
        state = State.BUILT_IN if registry.is_own(name) else State.INSTALLED
        rows.setdefault(name, (str(state), registry.card(name).title))
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {state:<19}  {_sample(name)}{title}" for name, (state, title) in sorted(rows.items())]
    return ["readings, and where their weights are (* a sample study is made for it):", *lines]


def _sample(name: str) -> str:
    return "* " if name in samples.SAMPLES or name == DEFAULT else "  "
