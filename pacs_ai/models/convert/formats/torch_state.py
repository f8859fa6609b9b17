"""Checkpoints of PyTorch (``.pt``, ``.pth``, ``.ckpt``): their tensors by ``torch.load(weights_only=True)`` alone.

A checkpoint is a pickle, and a pickle is a program; ``weights_only=True`` allows tensors and plain containers and
refuses everything else, TorchScript too. There is no other way in: what it refuses stays refused.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from typing import IO, TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats.bounds import MANY, inside, is_zip, memory, too_much

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

#: Where training frameworks keep the network's tensors, in the order in which they are looked for.
KEYS = ("state_dict", "model_state_dict", "network_weights", "model_state", "model", "net", "weights")

#: What to do where a checkpoint is more than weights.
PLAIN = "have its author save the weights alone, torch.save(model.state_dict(), …), or as safetensors"
#: What torch raises where it refuses to go on, and where bytes are not what they should be.
REFUSES = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, AttributeError)
DAMAGED = (EOFError, LookupError, OSError, AssertionError, OverflowError, struct.error, zipfile.BadZipFile)


def read(folder: Path, name: str, key: str | None = None, prefix: str = "") -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, as tensors: bfloat16 has no numpy type.

    Parameters
    ----------
    folder
        Where the file lies.
    name
        Of the file.
    key
        Where in the checkpoint the tensors are (``state_dict``, ``ema.model``); None: the first of `KEYS` that is
        there, else the top.
    prefix
        Taken away from the front of names that begin with it (``module.``).

    Returns
    -------
    dict
        Name -> tensor on the CPU, contiguous, in the order of the checkpoint; what is no tensor is left out.

    Raises
    ------
    PipelineFault
        It needs code to be opened, holds no tensors there, or claims more elements than its bytes can stand for.
    """
    path = inside(folder, name)
    with path.open("rb") as file:
        loaded = opened(file, path.name)
    found = _chosen(loaded, key, path.name)
    if len(found) > MANY:
        raise PipelineFault(f"{path.name} holds more than {MANY} tensors: it is no network")
    _bounded(found, path)
    return {str(one).removeprefix(prefix): tensor.contiguous() for one, tensor in found.items()}


def opened(file: IO[bytes], name: str, allowed: Sequence[Any] = (), advice: str = PLAIN) -> Any:
    """Return what a checkpoint holds: tensors, plain containers and values, and nothing else.

    Parameters
    ----------
    file
        Its bytes, from the first on; one that can be sought in.
    name
        Of the file, for messages.
    allowed
        Classes and functions of which objects may be made beside those that torch allows itself.
    advice
        How to get one that can be opened.

    Raises
    ------
    PipelineFault
        It is damaged, claims more than its bytes, or needs code to be opened.
    """
    import torch

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if is_zip(file):
        _check_archive(file, name, size)
    file.seek(0)
    try:
        with memory(name, size), warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore", UserWarning)  # of protocols that are refused a moment later
            return torch.load(file, map_location="cpu", weights_only=True)
    except REFUSES as error:
        raise _refusal(name, size, error, advice) from error
    except DAMAGED as error:
        raise PipelineFault(f"{name} is no checkpoint of PyTorch, or is damaged: {advice}") from error


def _refusal(name: str, size: int, error: Exception, advice: str) -> PipelineFault:
    """Say it in words of our own: torch's advice is to open the file all the same."""
    said = " ".join(str(error).split())
    if "alloc" in said.lower():
        return too_much(name, size)
    named = re.search(r"(?:GLOBAL|global:?) ([A-Za-z_][\w.]{0,100})", said)
    if named or "TorchScript" in said:
        what = f" ({named[1]})" if named else ""
        return PipelineFault(
            f"{name} cannot be opened without running code that lies in it{what}, so it was not: {advice}"
        )
    return PipelineFault(
        f"{name} holds what is neither tensor nor plain value, or is damaged, and cannot be opened without running "
        f"code that lies in it, so it was not: {advice}"
    )


def _check_archive(file: IO[bytes], name: str, size: int) -> None:
    """Refuse an archive that is TorchScript, compressed, or longer unpacked than it is."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise PipelineFault(f"{name} is a damaged archive: {error}") from error
    if any(member.filename.endswith("/constants.pkl") or "/code/" in member.filename for member in members):
        raise PipelineFault(f"{name} is TorchScript, which is a program: {PLAIN}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise PipelineFault(f"{name} is a compressed archive, as PyTorch writes none: get the original")
    if len(members) > MANY or sum(member.file_size for member in members) > size:
        raise PipelineFault(f"{name} claims more than its {size} bytes: get the original")


def _chosen(loaded: Any, key: str | None, name: str) -> Mapping[Any, torch.Tensor]:
    """Return the tensors at the key."""
    if key is None:
        has = [one for one in KEYS if isinstance(loaded, dict) and isinstance(loaded.get(one), dict)]
        key = has[0] if has else ""
    for step in key.split(".") if key else ():
        if not isinstance(loaded, dict) or step not in loaded:
            raise PipelineFault(f"{name} has no {key!r}: there are {_names(loaded)}")
        loaded = loaded[step]
    found = _tensors(loaded)
    if not found:
        raise PipelineFault(f"{name} holds no tensors{f' at {key!r}' if key else ''}: there are {_names(loaded)}")
    return found


def _tensors(loaded: Any) -> dict[Any, torch.Tensor]:
    import torch

    return (
        {one: each for one, each in loaded.items() if isinstance(each, torch.Tensor)}
        if isinstance(loaded, dict)
        else {}
    )


def _names(loaded: Any) -> str:
    return ", ".join(str(one)[:60] for one in list(loaded)[:8]) if isinstance(loaded, dict) else type(loaded).__name__


def _bounded(found: Mapping[Any, torch.Tensor], path: Path) -> None:
    """Refuse tensors that claim more elements than their storage has, or are not plain and dense."""
    size = path.stat().st_size
    for name, tensor in found.items():
        if tensor.is_sparse or tensor.is_quantized or tensor.device.type != "cpu":
            raise PipelineFault(f"{name} of {path.name} is sparse, quantised, or without content: save it plainly")
        bytes_claimed = tensor.numel() * tensor.element_size()
        if bytes_claimed > min(size, tensor.untyped_storage().nbytes()):
            raise PipelineFault(
                f"{name} of {path.name} claims {tensor.numel()} elements, more than the {size} bytes of the file "
                "can hold: get the original"
            )
    total = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if total > 4 * size:
        raise PipelineFault(f"the tensors of {path.name} claim {total} bytes; the file has {size}: get the original")
