"""Weights of a classifier that its user brings, or random ones for a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from pacs_ai.models.package import Package

WEIGHTS = "weights.safetensors"


def loaded(package: Package, build: Callable[[], torch.nn.Module], device: str, seed: int | None) -> torch.nn.Module:
    """Build a network on the device, ready to answer.

    Raises
    ------
    PipelineFault
        There are no weights, or they are of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = build()
    if seed is None:
        if WEIGHTS not in package.model.files:
            raise PipelineFault(
                f"{package.model.name} needs the weights of your own checkpoint: turn it into {WEIGHTS} with pacs-ai "
                "models convert, put that beside model.toml, and name its digest in files"
            )
        try:
            network.load_state_dict(package.tensors(WEIGHTS))
        except RuntimeError as error:
            raise PipelineFault(f"{WEIGHTS} of {package.model.name} is of another network: {error}") from error
    return network.to(device).eval()
