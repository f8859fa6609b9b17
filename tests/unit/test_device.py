"""The device of a model: what is known of it without loading torch, and what torch's errors mean."""

from __future__ import annotations

import pytest
import torch

from pacs_ai.infer.analysis import foreign_code
from pacs_ai.infer.device import is_broken, parameters, resolve_device


def test_the_cpu_is_the_cpu_and_results_name_torch_as_it_names_itself():
    assert resolve_device("cpu") == "cpu"
    assert parameters("cpu") == f"device=cpu; torch={torch.__version__}"


def test_memory_that_torch_did_not_get_counts_as_memory():
    with pytest.raises(MemoryError, match="tried to allocate"), foreign_code("any", "running"):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")


def test_a_gpu_that_fails_is_told_from_a_model_that_fails():
    assert is_broken(torch.AcceleratorError("an illegal memory access"))
    assert is_broken(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_broken(RuntimeError("shapes differ"))
