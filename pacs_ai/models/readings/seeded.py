"""Trials with random weights: the card says so, so that nobody takes noise for a result."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault
from pacs_ai.models.digest import digest_of
from pacs_ai.pipeline import Clearance

if TYPE_CHECKING:
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Card

#: The setting of a package that asks for them: a whole number.
SEED = "seed_weights"


def seed_of(package: Package) -> int | None:
    """Return the seed of a package that has no other setting, None where it runs with weights of its own.

    Raises
    ------
    PipelineFault
        It has other settings, or the seed is no whole number.
    """
    settings = package.model.settings
    if set(settings) - {SEED}:
        raise PipelineFault(f"settings of {package.model.name} may name {SEED} only")
    return whole(settings.get(SEED), package.model.name)


def whole(seed: object, name: str) -> int | None:
    """Return a seed of the package `name`, or None; `PipelineFault` where it is no whole number."""
    if seed is None:
        return None
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise PipelineFault(f"{SEED} of {name} is {seed!r}: it has to be a whole number")
    return seed


def said_of(card: Card, seed: int | None) -> Card:
    """Return the card of a model that runs with random weights of `seed`; the card itself where that is None."""
    if seed is None:
        return card
    return replace(
        card,
        version=f"{card.version}+random-weights"[:64],
        clearance=Clearance.RESEARCH,
        intended_use=f"RANDOM WEIGHTS, for trying the node: results mean nothing. {card.intended_use}",
        model_digest=digest_of({"model": card.model_digest, "seed": str(seed)}),
        performance=(),
    )
