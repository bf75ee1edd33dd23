"""What a process computes with: device, number format, threads, memory and random streams.

"auto" is resolved once for each process. Random streams have keys, so that nothing depends on what was drawn
before: ``derive_seed(seed, "exit", round, exit)``.
"""

import hashlib
import platform
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from raygf.config.run import ComputeConfig
from raygf.errors import MemoryExhausted, RaygfError, ResourceError, import_function, one_line, user_error


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

    Raises ResourceError: a CUDA device is asked for and there is none.
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


def software(device: str) -> dict[str, str]:
    """Versions of what this process computes with, and the name of its ``device``."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.+)", info)
    cpu = found[1] if found else platform.machine()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    with suppress(PackageNotFoundError):
        versions["ray"] = version("ray")
    name = torch.cuda.get_device_name() if device == "cuda" else cpu
    return {**versions, "cuda": torch.version.cuda or "none", "device": name}


def make_repeatable(compute: Compute) -> None:
    """Let this process's CUDA convolutions give the same bits every time; the CPU's do already."""
    if compute.device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def _has_fast_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return has_mkldnn and any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def torch_threads(count: float) -> Iterator[None]:
    """Torch's CPU threads set to ``count`` (at least one) inside: their number is part of the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(count)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


EXIT_KNOBS = (
    "this would happen again, so it was not retried: use smaller batches (batch_size), fewer actors on a "
    "node (resources.actors, resources.cpus_per_exit), or on a GPU a whole one for each "
    "(resources.gpus_per_exit 1)"
)
DRIVER_KNOBS = (
    "use smaller batches (batch_size, eval_batch_size), fewer actors beside the driver (resources.actors), "
    "or on a GPU a whole one for it (resources.driver_gpus 1)"
)
_CPU = "can't allocate memory"
_AMOUNT = re.compile(r"\d\s?([KMGT]i?B|bytes)\b")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that the host or the GPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU in str(error)


def call_own(
    field: str,
    name: str,
    *arguments: Any,
    function: Callable[..., Any] | None = None,
    failed: str = "the function failed",
) -> Any:
    """What the user's function ``name``, the value of ``field``, returns for ``arguments``.

    ``function``: in place of the one that is imported by the name; ``failed`` says so in errors.

    Raises ConfigError: it can't be imported, or fails for another reason than lack of memory.
    """
    function = function or import_function(field, name)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # it may raise anything
        if isinstance(error, RaygfError) or is_out_of_memory(error):
            raise
        raise user_error(field, name, failed, error) from error


def memory_cause(error: BaseException, known: str) -> str:
    """``error`` in one line that has sizes in it: its own, or else those ``known``."""
    text = one_line(error).partition(" See documentation")[0]
    return text if _AMOUNT.search(text) else f"{text} ({known})"


def sizes(batch_size: int, parameters: int) -> str:
    """What memory goes into, for people: ``batches of 64 images, 28.1 MiB of weights``."""
    return f"batches of {batch_size} images, {parameters * 4 / 2**20:.1f} MiB of weights"


@contextmanager
def naming_out_of_memory(who: str, known: str) -> Iterator[None]:
    """Lack of memory inside becomes MemoryExhausted of ``who``, with the sizes ``known``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cause = memory_cause(error, known)
        raise MemoryExhausted(
            f"{who} ran out of memory on node {socket.gethostname()}: {cause}; {DRIVER_KNOBS}"
        ) from error


def derive_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed for the stream ``key`` of run ``seed``; different keys give independent streams.

    Example: ``derive_seed(0, "exit", round, exit)``.
    """
    name = repr((seed, *key)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream ``key``. On the CPU, so that all devices draw alike."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


@contextmanager
def seeded_globals(seed: int, *key: str | int) -> Iterator[None]:
    """Torch's global generators seeded for the stream ``key`` inside, and as they were before outside.

    For code that can't be handed a generator: layer constructors and dropout.
    """
    forked = torch.utils.data.get_worker_info() is not None  # such a process can't touch a GPU
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and not forked else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *key))
        yield
