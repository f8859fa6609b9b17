"""How much memory there is and was used, what to do when it runs out, and how it is given back."""

from __future__ import annotations

import ctypes
import gc
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pacs_ai.errors import OutOfResources

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB = 1024.0**3
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")
_CGROUP = Path("/sys/fs/cgroup")
#: Rows of a control group's memory.stat that count as used and are given back on demand: caches of files and of names.
_GIVEN_BACK = ("inactive_file", "active_file", "slab_reclaimable")
#: Share of the free memory that one job may plan with.
SHARE = 0.8


def free_bytes(device: torch.device) -> float | None:
    """Return the bytes that a job on the device could take now, None where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = [bytes_ for bytes_ in (_available(), _left_to_container()) if bytes_ is not None]
    return min(found, default=None)


def _available() -> float | None:
    """MemAvailable of proc(5)."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _left_to_container() -> float | None:
    """Return what the control group's limit leaves, as MemAvailable counts it (cgroup v2).

    Without that, who has written many files would seem to have no memory left.
    """
    limit, used, table = (_CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.is_file() and used.is_file()):
        return None
    most = limit.read_text(encoding="ascii").strip()
    if most == "max":
        return None
    left = float(most) - float(used.read_text(encoding="ascii")) + _given_back(table)
    return min(max(left, 0.0), float(most))


def _given_back(table: Path) -> float:
    if not table.is_file():
        return 0.0
    rows = (line.split() for line in table.read_text(encoding="ascii").splitlines())
    return sum(float(number) for name, number in rows if name in _GIVEN_BACK)


def _kilobytes(table: Path, row: str) -> float | None:
    if not table.exists():
        return None
    for line in table.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{row}:"):
            return float(line.split()[1]) * 1024.0
    return None


def peak_bytes() -> float | None:
    """Return the largest resident set of this process since `reset_peak`, None where the system does not tell."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM")


def resident_bytes() -> float | None:
    """Return the resident set of this process, None where the system does not tell."""
    return _kilobytes(Path("/proc/self/status"), "VmRSS")


def reset_peak() -> None:
    """Let `peak_bytes` begin anew (proc(5), clear_refs); without effect where that is not allowed."""
    table = Path("/proc/self/clear_refs")
    try:
        table.write_text("5", encoding="ascii")
    except OSError:
        return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    )


def release(device: torch.device) -> None:
    """Give back what is no longer used: Python's cycles, the CUDA cache, and glibc's free heap."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def check_room(need: float, device: torch.device, what: str) -> None:
    """Refuse what cannot fit before an hour of computing ends in a killed process.

    Raises
    ------
    OutOfResources
        `need` bytes are more than a job may plan with on the device; `what` names what they are for.
    """
    free = free_bytes(device)
    if free is not None and need > SHARE * free:
        raise OutOfResources(
            f"{what} needs {need / GIB:.1f} GB, {free / GIB:.1f} GB are free: give the node more memory, or run fewer "
            "workers beside each other"
        )


def fit_window(
    window: Sequence[int], shape: Sequence[int], channels: int, free: float | None, multiple: Sequence[int]
) -> tuple[int, ...]:
    """Return the window, made shorter along the first axis until the sums of one row of windows fit.

    Parameters
    ----------
    window, shape
        Of the windows and the image.
    channels
        Of the network's output, float32.
    free
        Bytes, None for any.
    multiple
        What the network needs a window's size to be a multiple of.

    Raises
    ------
    OutOfResources
        Even the shortest window does not fit.
    """
    first, *rest = window
    while free is not None:
        need = 4.0 * channels * first * math.prod(shape[1:])
        if need <= SHARE * free:
            break
        shorter = first // 2 // multiple[0] * multiple[0]
        if shorter < multiple[0]:
            raise OutOfResources(
                f"{channels} channels of {shape[1]} x {shape[-1]} voxels need {need / GIB:.1f} GB at a time, "
                f"{free / GIB:.1f} GB are free: give the node more memory, or run fewer workers beside each other"
            )
        first = shorter
    return (first, *rest)
