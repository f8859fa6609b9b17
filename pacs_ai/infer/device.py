"""The device that models run on: an NVIDIA GPU where there is one, else the CPU.

Loading torch takes two seconds of one core; for a model that does without it, nothing here loads it on the CPU.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

from pacs_ai.errors import Permanent


def resolve_device(wanted: str) -> str:
    """Return "cuda:0" for "auto" where there is an NVIDIA GPU, else "cpu"; Permanent where a named one is missing."""
    if wanted == "cpu":
        return wanted
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise Permanent(f"{wanted} is no device: devices are cpu, cuda:0, cuda:1, ... or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Permanent(
            f"the device {wanted} is not here: torch {torch.__version__} finds {torch.cuda.device_count()} NVIDIA GPUs"
        )
    return wanted


#: What CUDA and its libraries say of a device that does not work any more, or only for new processes.
BROKEN = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL error")


def is_broken(error: BaseException) -> bool:
    """Tell whether an error comes from a GPU that failed: every further call of this process would fail as well."""
    torch = _loaded()
    cause: BaseException | None = error
    while cause is not None:
        if torch is not None and isinstance(cause, torch.AcceleratorError):
            return True
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in BROKEN):
            return True
        cause = cause.__cause__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch found no memory on the GPU; what it keeps for later is given back then."""
    torch = _loaded()
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return False
    torch.cuda.empty_cache()
    return True


def _loaded() -> Any:
    """Return torch where this process has loaded it: else no error can be one of its own."""
    return sys.modules.get("torch")


def describe(device: str) -> str:
    """Return a resolved device in words, with torch's version."""
    import torch

    if not device.startswith("cuda"):
        return f"CPU with {torch.get_num_threads()} threads, torch {torch.__version__}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} with {properties.total_memory / 1e9:.0f} GB, torch {torch.__version__}"


def parameters(device: str) -> str:
    """Return what a result states of how it was computed."""
    return f"device={device.partition(':')[0]}; torch={version('torch')}"
