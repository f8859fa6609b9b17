"""In what number format a network computes on a device, and how its weights lie in memory."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

#: "auto" is mixed precision on an NVIDIA GPU and float32 on a CPU.
Precision = Literal["auto", "fp32", "bf16", "fp16"]
#: Features of x86 processors that multiply bfloat16 in hardware; without them it is a hundred times slower than float32
#: (measured: a small 3-D U-Net, 2 s against 209 s on a processor with AVX2 only).
_BF16 = frozenset(("avx512_bf16", "amx_bf16", "avx_ne_convert"))
_AMPERE = (8, 0)


def cpu_has_bf16(table: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    if not table.exists():
        return False
    flags = next((line for line in table.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return not _BF16.isdisjoint(flags.partition(":")[2].split())


def chosen(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return the type that the device is asked to compute in; what it cannot do quickly becomes float32."""
    if device.type == "cuda":
        if wanted == "fp32":
            return torch.float32
        able = torch.cuda.get_device_capability(device) >= _AMPERE
        return torch.bfloat16 if able and wanted != "fp16" else torch.float16
    return torch.bfloat16 if wanted == "bf16" and cpu_has_bf16() else torch.float32


def computing(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in `dtype`; sums and normalisations stay float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def arranged(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return the network on the device, ready to predict.

    Channels-last is for tensor cores: on a processor it made a 3-D U-Net half as fast again (measured, AVX2).
    """
    network = network.to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        is_volume = any(isinstance(part, torch.nn.Conv3d) for part in network.modules())
        network = network.to(memory_format=torch.channels_last_3d if is_volume else torch.channels_last)  # type: ignore[call-overload]
    return network


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` with CUDA graphs works here: an NVIDIA GPU, and Triton installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def compiled(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return the network compiled and replayed as CUDA graphs where that works, else as it is."""
    if not can_compile(device):
        return network
    return cast("torch.nn.Module", torch.compile(network, mode="reduce-overhead", dynamic=False))
