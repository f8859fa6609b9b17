"""Which model packages there are on this machine, and how each stands: in use, to be installed, or broken and why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault
from pacs_ai.models import digest
from pacs_ai.models.package import MODEL, ZOO, folders, read

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.models.package import Package


class State(StrEnum):
    """How a package stands."""

    BUILT_IN = "comes with the node"
    INSTALLED = "installed"
    OUTDATED = "outdated"
    AVAILABLE = "not installed"
    BROKEN = "broken"


@dataclass(frozen=True)
class Entry:
    """One package.

    Parameters
    ----------
    name
        What routes and commands call it: its folder's name.
    folder
        Where it lies.
    package
        None where its model.toml cannot be read.
    fault
        Why not, else "".
    """

    name: str
    folder: Path
    package: Package | None
    fault: str = ""

    @property
    def state(self) -> State:
        """How it stands, without comparing digests."""
        if self.package is None:
            return State.BROKEN
        if self.package.missing:
            return State.AVAILABLE
        if self.folder.parent == ZOO:
            return State.BUILT_IN
        return State.INSTALLED if self.current else State.OUTDATED

    @property
    def current(self) -> bool:
        """Whether the card is the one that comes with the node, where one of this name does."""
        if self.package is None or not (ZOO / self.name / MODEL).is_file():
            return True
        recipe = read(ZOO / self.name)
        return hashlib.sha256(recipe.card_with(self.package.model.files)).hexdigest() == self.package.sha256

    @property
    def advice(self) -> str:
        """The command that installs it, else ""."""
        return self.package.command if self.package is not None and self.state is State.AVAILABLE else ""

    @property
    def update(self) -> str:
        """The command that puts the node's own card in the place of an older one, else ""; its weights are kept."""
        return f"pacs-ai models install {self.name} --force" if self.state is State.OUTDATED else ""

    @property
    def repair(self) -> str:
        """What brings its files back where they are not those of the card."""
        if self.folder.parent == ZOO:
            return "install pacs_ai again: its files were changed"
        recipe = ZOO / self.name
        brought = f"pacs-ai models install {self.name} --from FOLDER"
        return f"{read(recipe).command if (recipe / MODEL).is_file() else brought} --force"

    def verified(self) -> str:
        """Compare every file that there is with its digest; "" where all are right, else what is wrong.

        A package that comes with the node and is not installed has fewer files than its table; those that are there
        must be right, and no other may be.
        """
        if self.package is None:
            return self.fault
        files = {**self.package.model.files, MODEL: self.package.sha256}
        if self.folder.parent == ZOO:
            files = {name: value for name, value in files.items() if name not in self.package.missing}
        try:
            digest.verify(self.folder, files, MODEL)
        except PipelineFault as error:
            return str(error)
        return ""


def entries(models: Path | None) -> list[Entry]:
    """Return every package, sorted by name; an installed one hides the node's recipe of that name.

    Parameters
    ----------
    models
        Folder of installed packages.
    """
    found: dict[str, Entry] = {}
    for folder in folders(models):
        if folder.name not in found:
            found[folder.name] = entry(folder)
    return [found[name] for name in sorted(found)]


def entry(folder: Path) -> Entry:
    """Return how one folder stands."""
    try:
        return Entry(folder.name, folder, read(folder))
    except PipelineFault as error:
        return Entry(folder.name, folder, None, str(error))
