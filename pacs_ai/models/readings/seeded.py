"""Trials with random weights: the card says so, so that nobody takes noise for a result."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.models.digest import digest_of
from pacs_ai.pipeline import Clearance

if TYPE_CHECKING:
    from pacs_ai.pipeline import Card


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
