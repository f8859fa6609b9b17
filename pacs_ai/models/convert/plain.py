"""Readers that keep names and axes as published: for networks that are declared with them, and to look at a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pacs_ai.errors import UserError
from pacs_ai.models.convert.formats import keras_h5, tf_bundle, tfjs, torch_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from pacs_ai.pipeline import Array


def _only(folder: Path, options: Mapping[str, Any], *suffixes: str) -> str:
    """Return option `file`, else the name of the only file with such an ending."""
    if options.get("file"):
        return str(options["file"])
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(suffixes)) if folder.is_dir() else []
    if len(names) != 1:
        found = ", ".join(names[:8]) or "none"
        raise UserError(
            f"name the file to be read, file=NAME: {folder} should have one {' or '.join(suffixes)}: {found}"
        )
    return names[0]


def tfjs_model(folder: Path, options: Mapping[str, Any]) -> dict[str, Array]:
    """Read TensorFlow.js (``file``: model.json), errors as `tfjs.read`."""
    return tfjs.read(folder, str(options.get("file", "model.json")))


def keras(folder: Path, options: Mapping[str, Any]) -> dict[str, Array]:
    """Read a Keras model (``file``: the .h5, .hdf5 or .keras), errors as `keras_h5.read`."""
    return keras_h5.read(folder, _only(folder, options, ".h5", ".hdf5", ".keras"))


def tf_variables(folder: Path, options: Mapping[str, Any]) -> dict[str, Array]:
    """Read TensorFlow variables (``file``: the .index), errors as `tf_bundle.read`."""
    return tf_bundle.read(folder, str(options.get("file", "variables")).removesuffix(".index"))


def torch_checkpoint(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a checkpoint (``file``, ``key`` within it, ``prefix`` to take away), errors as `torch_state.read`."""
    name = _only(folder, options, ".pt", ".pth", ".ckpt", ".pth.tar")
    return torch_state.read(folder, name, options.get("key"), options.get("prefix", ""))
