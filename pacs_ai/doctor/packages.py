"""Whether the model packages are the files that their cards name, and what to do about one that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.doctor.findings import Finding, Level
from pacs_ai.models.catalogue import State, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.config import Config

AREA = "models"


def examine(config: Config) -> Iterator[Finding]:
    """Yield a finding for each package whose files differ from its card, else one that says how many are sound."""
    used = {route.run for route in config.route}
    used |= {section.model or section.use for section in config.pipeline if section.name in used}
    here = [entry for entry in entries(config.models_folder) if entry.state is not State.AVAILABLE]
    faults = [(entry, entry.verified()) for entry in here]
    for entry, words in faults:
        if words:
            level = Level.FAULT if entry.name in used else Level.WARNING
            yield Finding(level, AREA, entry.name, words, f"{entry.repair}, or take {entry.folder} away")
    if not any(words for _, words in faults):
        yield Finding(Level.OK, AREA, "packages", f"{len(here)} installed, every file as its card names it")
