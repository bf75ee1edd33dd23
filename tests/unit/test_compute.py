from __future__ import annotations

import pytest
import torch

from raygf import compute as module
from raygf.compute import Compute, resolve_compute, torch_threads
from raygf.config.run import ComputeConfig
from raygf.errors import ResourceError


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_explicit_settings_stay(no_cuda):
    config = ComputeConfig("cpu", "fp32", "contiguous")
    assert resolve_compute(config) == Compute("cpu", "fp32", "contiguous")
    config = ComputeConfig("cpu", "bf16", "channels_last")
    assert resolve_compute(config) == Compute("cpu", "bf16", "channels_last")


def test_auto_takes_the_cpu_where_there_is_no_gpu(no_cuda):
    assert resolve_compute(ComputeConfig()).device == "cpu"
    assert resolve_compute(ComputeConfig()).memory_format == "channels_last"


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bfloat16_where_the_device_has_it(no_cuda, monkeypatch, has, precision):
    monkeypatch.setattr(module, "_has_fast_bf16", lambda device: has)
    assert resolve_compute(ComputeConfig()).precision == precision
    assert resolve_compute(ComputeConfig(precision="fp32")).precision == "fp32"


def test_a_missing_gpu_is_one_clear_line(no_cuda):
    with pytest.raises(ResourceError, match=r"compute\.device = 'cuda': .* no CUDA device") as error:
        resolve_compute(ComputeConfig(device="cuda"))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_layout():
    assert Compute("cpu", "fp32", "channels_last").layout is torch.channels_last
    assert Compute("cpu", "fp32", "contiguous").layout is torch.contiguous_format


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_arithmetic(precision, dtype):
    layer = torch.nn.Linear(2, 2)
    with Compute("cpu", precision, "contiguous").autocast():
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (2.0, 2), (0.25, 1), (0, 1), (1.9, 1)])
def test_threads_are_set_inside_and_put_back(asked, got):
    before = torch.get_num_threads()
    with torch_threads(asked):
        assert torch.get_num_threads() == got
    assert torch.get_num_threads() == before


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
