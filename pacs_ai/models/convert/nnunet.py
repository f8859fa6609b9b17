"""Checkpoints of nnU-Net v2 (``fold_*/checkpoint_final.pth``): the networks' tensors, and how they were trained.

Beside tensors nnU-Net stores its settings and numpy numbers of its training log. So ``torch.load(weights_only=True)``
is told that numpy's scalars are plain values; nothing else is allowed. Names repeat tensors (a convolution is also
``all_modules.0``, an encoder also ``decoder.encoder``): each tensor is kept under its shortest name.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.models.convert.formats import torch_state
from pacs_ai.models.convert.formats.bounds import MANY, inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

CHECKPOINT = "checkpoint_final.pth"
#: Names in the safetensors file that are no network's: axes of mirroring, and the configuration's name in UTF-8.
MIRROR_AXES = "mirror_axes"
CONFIGURATION = "configuration"


@dataclass(frozen=True)
class Trained:
    """What one checkpoint, or several folds of one training, hold.

    Parameters
    ----------
    folds
        Fold ("0", "all") -> name -> tensor.
    configuration
        "3d_fullres", "2d" ...
    mirror_axes
        Axes of space along which the network may be asked mirrored images too.
    """

    folds: Mapping[str, Mapping[str, torch.Tensor]]
    configuration: str
    mirror_axes: tuple[int, ...]


def nnunet(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read the folds of a results folder into one table of tensors, for ``weights.safetensors``.

    Parameters
    ----------
    folder
        Holds ``fold_*/checkpoint_final.pth``, or ``fold_*.pth`` where an archive's members were renamed so.
    options
        ``checkpoint``: another file's name than ``checkpoint_final.pth``.

    Raises
    ------
    UserError, PipelineFault
        No checkpoint, or one that needs code to be opened.
    """
    import torch

    name = str(options.get("checkpoint", CHECKPOINT))
    paths = sorted(path.relative_to(folder) for path in (*folder.glob(f"fold_*/{name}"), *folder.glob("fold_*.pth")))
    if not paths:
        raise UserError(f"{folder} has no fold_*/{name}: name the results folder of one configuration")
    read = trained((fold_of(str(path)), inside(folder, str(path)).read_bytes()) for path in paths)
    found = {f"fold_{fold}.{key}": tensor for fold, one in read.folds.items() for key, tensor in one.items()}
    found[MIRROR_AXES] = torch.tensor(read.mirror_axes, dtype=torch.int64)
    found[CONFIGURATION] = torch.tensor(list(read.configuration.encode()), dtype=torch.uint8)
    return found


def fold_of(name: str) -> str:
    """Return the fold that a file belongs to: "0" of ``fold_0/checkpoint_final.pth``."""
    return name.partition("fold_")[2].partition("/")[0].removesuffix(".pth")


def unpacked(tensors: Mapping[str, torch.Tensor]) -> Trained:
    """Return what `nnunet` put into one table."""
    folds: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("fold_"):
            fold, _, key = name.removeprefix("fold_").partition(".")
            folds.setdefault(fold, {})[key] = tensor
    axes, configuration = tensors.get(MIRROR_AXES), tensors.get(CONFIGURATION)
    try:
        said = bytes(configuration.tolist()).decode() if configuration is not None else ""
    except (TypeError, ValueError) as error:
        raise PipelineFault(f"{CONFIGURATION} among the tensors is no text: convert the checkpoint anew") from error
    return Trained(folds, said, _axes(None if axes is None else axes.tolist(), MIRROR_AXES))


def trained(files: Iterable[tuple[str, bytes]]) -> Trained:
    """Read checkpoints (fold, content) of one training.

    Raises
    ------
    PipelineFault
        One is none of nnU-Net's, needs code to be opened, or was trained in another configuration than the first.
    """
    folds: dict[str, Mapping[str, torch.Tensor]] = {}
    configurations: dict[str, tuple[int, ...]] = {}
    for fold, content in files:
        found = _loaded(content, fold)
        arguments = found.get("init_args")
        named = arguments.get("configuration") if isinstance(arguments, dict) else None
        weights = found.get("network_weights")
        if not isinstance(weights, dict) or not isinstance(named, str):
            raise PipelineFault(f"the checkpoint of fold {fold} has no network_weights and init_args, as nnU-Net's has")
        folds[fold] = _once(weights, fold)
        configurations[named] = _axes(found.get("inference_allowed_mirroring_axes"), f"the checkpoint of fold {fold}")
    if len(configurations) != 1:
        raise PipelineFault(f"the folds were trained in several configurations: {', '.join(configurations) or 'none'}")
    ((configuration, axes),) = configurations.items()
    return Trained(folds, configuration, axes)


def _axes(stated: object, whose: str) -> tuple[int, ...]:
    """Return the axes of space that may be mirrored; () where none is stated."""
    if stated is None:
        return ()
    if not isinstance(stated, list | tuple) or any(axis not in range(3) for axis in stated):
        raise PipelineFault(f"{whose} names axes to mirror that are none of space: get the file that nnU-Net wrote")
    return tuple(int(axis) for axis in stated)


def _loaded(content: bytes, fold: str) -> dict[str, Any]:
    """Return what a checkpoint holds; numpy's scalars are all that is allowed beside tensors and plain containers."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    allowed: list[Any] = [
        np.dtype, *kinds, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
    ]  # fmt: skip
    found = torch_state.opened(
        io.BytesIO(content), f"the checkpoint of fold {fold}", allowed, "get the file that nnU-Net wrote"
    )
    if not isinstance(found, dict):
        raise PipelineFault(f"the checkpoint of fold {fold} is none of nnU-Net's")
    return found


def _once(weights: Mapping[str, Any], fold: str) -> dict[str, torch.Tensor]:
    """Keep each tensor under its shortest name; refuse what is no plain tensor, or claims more than it stores."""
    import torch

    if len(weights) > MANY or not all(isinstance(name, str) for name in weights):
        raise PipelineFault(
            f"network_weights of fold {fold} are no table of at most {MANY} named tensors: no network's"
        )
    kept: dict[tuple[int, int, torch.Size, tuple[int, ...]], str] = {}
    for name in sorted(weights, key=lambda one: (len(one), one)):
        tensor = weights[name]
        if not isinstance(tensor, torch.Tensor) or tensor.is_sparse or tensor.is_quantized:
            raise PipelineFault(f"{name} of fold {fold} is no plain tensor: get the file that nnU-Net wrote")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise PipelineFault(f"{name} of fold {fold} claims more elements than are stored: get the original")
        key = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.shape, tensor.stride())
        kept.setdefault(key if tensor.numel() else (id(tensor), 0, tensor.shape, ()), name)
    return {name: weights[name].contiguous() for name in sorted(kept.values())}
