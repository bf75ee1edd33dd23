"""Devices, number formats, threads; lack of memory in all its forms; random streams."""

import hashlib

import numpy as np
import pytest
import torch
import train_step
from hypothesis import given, settings
from hypothesis import strategies as st
from timing import Timing

from raygf import compute as module
from raygf.compute import (
    Compute,
    derive_seed,
    generator,
    is_out_of_memory,
    memory_cause,
    naming_out_of_memory,
    resolve_compute,
    seeded_globals,
    sizes,
    software,
    torch_threads,
)
from raygf.config.run import ComputeConfig
from raygf.errors import MemoryExhausted, ResourceError

GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which "
    "11.00 MiB is free. See documentation for Memory Management"
)


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_cuda")
def test_explicit_settings_stay():
    plain = resolve_compute(ComputeConfig("cpu", "fp32", "contiguous"))
    assert plain == Compute("cpu", "fp32", "contiguous") and plain.layout is torch.contiguous_format
    last = resolve_compute(ComputeConfig("cpu", "bf16", "channels_last"))
    assert last == Compute("cpu", "bf16", "channels_last") and last.layout is torch.channels_last


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_what_the_machine_has(monkeypatch, has, precision):
    monkeypatch.setattr(module, "_has_fast_bf16", lambda device: has)
    assert resolve_compute(ComputeConfig()) == Compute("cpu", precision, "channels_last")
    assert resolve_compute(ComputeConfig(precision="fp32")).precision == "fp32"


def test_versions_and_the_device_by_name(monkeypatch):
    known = software("cpu")
    assert known.keys() == {"python", "torch", "ray", "cuda", "device"} and all(known.values())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert software("cuda")["device"] == "NVIDIA H200"


@pytest.mark.usefixtures("no_cuda")
def test_a_missing_gpu_is_refused():
    with pytest.raises(ResourceError, match=r"^compute\.device = 'cuda': .* no CUDA device.*$"):
        resolve_compute(ComputeConfig(device="cuda"))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_arithmetic(precision, dtype):
    layer = torch.nn.Linear(2, 2)
    with Compute("cpu", precision, "contiguous").autocast():
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (2.0, 2), (0.25, 1), (0, 1), (1.9, 1)])
def test_threads_are_set_inside_and_put_back(asked, got):
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(asked):
        assert torch.get_num_threads() == got
        raise KeyError
    assert torch.get_num_threads() == before


def test_lack_of_memory_is_recognised_in_all_its_forms():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError(GPU))
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as of_numpy:
        np.ones(1 << 50)
    assert is_out_of_memory(of_torch.value) and is_out_of_memory(of_numpy.value)
    assert f"{1 << 62} bytes" in memory_cause(of_torch.value, "unused")
    for other in (ValueError("memory"), RuntimeError("shapes do not fit"), OSError(12, "no memory")):
        assert not is_out_of_memory(other)


def test_a_cause_has_sizes_its_own_or_those_known():
    known = sizes(64, 7_364_272)
    assert memory_cause(MemoryError(), known) == "MemoryError (batches of 64 images, 28.1 MiB of weights)"
    cause = memory_cause(torch.cuda.OutOfMemoryError(GPU), known)
    assert cause == "OutOfMemoryError: " + GPU.partition(" See")[0]


def test_who_lacked_memory_is_named_with_the_settings_to_change():
    says = r"^the driver, in round 4, ran out of memory on node \S+: MemoryError \(batches of 8\); "
    lacking = naming_out_of_memory("the driver, in round 4,", "batches of 8")
    with pytest.raises(MemoryExhausted, match=says) as caught, lacking:
        raise MemoryError
    for knob in ("batch_size", "eval_batch_size", "resources.actors", "resources.driver_gpus"):
        assert knob in str(caught.value)
    with pytest.raises(RuntimeError, match="something else"), naming_out_of_memory("x", "y"):
        raise RuntimeError("something else")


PARTS = st.one_of(st.integers(0, 1000), st.sampled_from(["exit", "fuse", "step", "data"]))
KEYS = st.tuples(st.integers(0, 10_000), st.lists(PARTS, max_size=3).map(tuple))


@settings(deadline=None, max_examples=200)
@given(KEYS, KEYS)
def test_seeds_are_equal_just_where_keys_are(one, two):
    seeds = [derive_seed(seed, *key) for seed, key in (one, two)]
    assert (seeds[0] == seeds[1]) == (one == two)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_pinned():
    """Stored results could otherwise not be reproduced by a later version."""
    digest = hashlib.blake2b(b"(0, 'exit', 1, 2)", digest_size=8).digest()
    assert derive_seed(0, "exit", 1, 2) == int.from_bytes(digest, "little") // 2


def test_generators_of_one_key_draw_alike():
    def draw(*key):
        return torch.randn(5, generator=generator(*key)).tolist()

    assert generator(0, "a").device.type == "cpu"
    assert draw(3, "a", 1) == draw(3, "a", 1)
    assert draw(3, "a", 1) not in (draw(3, "a", 2), draw(4, "a", 1))


def test_seeded_globals_seed_inside_and_leave_no_trace():
    before, draws = torch.random.get_rng_state(), []
    for _ in range(2):
        with pytest.raises(KeyError), seeded_globals(1, "x"):
            draws.append(torch.randn(4))
            raise KeyError
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*draws)


def test_seeded_globals_nest():
    with seeded_globals(1, "outer"):
        plain = torch.randn(4)[2:]
    with seeded_globals(1, "outer"):
        torch.randn(2)
        with seeded_globals(1, "inner"):
            torch.randn(7)
        assert torch.equal(torch.randn(2), plain)


def test_the_training_step_is_timed_on_the_device_that_is_asked_for(monkeypatch):
    devices, shown = set(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train_step, "_epoch", lambda compute, _: devices.add(compute.device))
    monkeypatch.setattr(
        train_step, "interleave", lambda programs, *_: dict.fromkeys(programs, Timing((1.0,)))
    )
    monkeypatch.setattr(train_step, "show", lambda title, *_: shown.append(title))
    train_step.main(train_step.Options(device="cpu"))
    assert devices == {"cpu"} and shown[0].startswith("One exit-training step on cpu, ")
