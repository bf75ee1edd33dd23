"""Device, number format and memory layout: resolved from "auto" once, then the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raygf.config import ComputeConfig
from raygf.errors import ResourceError


@dataclass(frozen=True)
class Compute:
    """Where and how networks run. Plain values, so that it can be sent and stored."""

    device: str
    precision: str
    memory_format: str

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of image batches."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """The context that a forward pass and its losses run in."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def resolve_compute(config: ComputeConfig) -> Compute:
    """The ``Compute`` that ``config`` means on this machine.

    "auto" is channels-last, and bfloat16 where the device has instructions for it: the fastest setting of
    those that keep the accuracy (``benchmarks/train_step.py`` measures both).

    Raises:
        ResourceError: a CUDA device is asked for and there is none.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("compute.device = 'cuda': this process sees no CUDA device; use cpu or auto")
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    memory_format = "channels_last" if config.memory_format == "auto" else config.memory_format
    return Compute(device, precision, memory_format)


def make_repeatable(compute: Compute) -> None:
    """Let this process's CUDA convolutions give the same bits every time; the CPU's do already."""
    if compute.device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def _has_fast_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


@contextmanager
def torch_threads(count: float) -> Iterator[None]:
    """Torch's CPU threads set to ``count`` (at least one) inside: their number is part of the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(count)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
