"""Lack of memory: recognised in all its forms, told with sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygf.compute import is_out_of_memory, memory_cause, naming_out_of_memory, sizes
from raygf.errors import MemoryExhausted

GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which "
    "11.00 MiB is free. See documentation for Memory Management"
)


def test_all_forms_are_recognised():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError(GPU))
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as of_numpy:
        np.ones(1 << 50)
    assert is_out_of_memory(of_torch.value) and is_out_of_memory(of_numpy.value)
    for other in (ValueError("memory"), RuntimeError("shapes do not fit"), OSError(12, "no memory")):
        assert not is_out_of_memory(other)


def test_a_cause_says_how_much():
    assert memory_cause(MemoryError(), "batches of 64 images") == "MemoryError (batches of 64 images)"
    text = memory_cause(torch.cuda.OutOfMemoryError(GPU), "unused")
    assert "Tried to allocate 20.00 MiB" in text and "79.15 GiB" in text
    assert "unused" not in text and "documentation" not in text
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert f"{1 << 62} bytes" in memory_cause(caught.value, "unused")


def test_sizes():
    assert sizes(64, 7_364_272) == "batches of 64 images, 28.1 MiB of weights"


def test_who_lacked_it_is_named_with_the_knobs():
    says = r"^the driver, in round 4, ran out of memory on node \S+: MemoryError \(batches of 8\); "
    lacking = naming_out_of_memory("the driver, in round 4,", "batches of 8")
    with pytest.raises(MemoryExhausted, match=says) as caught, lacking:
        raise MemoryError
    for knob in ("batch_size", "eval_batch_size", "resources.actors", "resources.driver_gpus"):
        assert knob in str(caught.value)
    assert caught.value.exit_code == 1


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), naming_out_of_memory("x", "y"):
        raise RuntimeError("something else")
