"""Interleaved timing of several programs in one process: warm-up, repeats, median and spread."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted run."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest run."""
        return min(self.seconds), max(self.seconds)

    def json(self) -> dict[str, float]:
        """As JSON values."""
        low, high = self.spread
        return {"median_s": round(self.median, 5), "min_s": round(low, 5), "max_s": round(high, 5)}


def interleave(
    programs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, steps: int = 1
) -> dict[str, Timing]:
    """Run all ``programs`` in turn, ``warmup`` times uncounted and ``repeats`` times counted.

    Taking turns makes a drift of the machine's speed affect all alike. Times are divided by ``steps``.
    """
    runs: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(warmup + repeats):
        for name, program in programs.items():
            started = time.perf_counter()
            program()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                runs[name].append((time.perf_counter() - started) / steps)
    return {name: Timing(tuple(seconds)) for name, seconds in runs.items()}


def show(title: str, timings: Mapping[str, Timing], base: str, extra: Mapping[str, Any]) -> None:
    """A table with ratios to ``base``, and last, one line of JSON with ``extra`` in it."""
    table = Table("", "median [ms]", "min [ms]", "max [ms]", f"median ÷ {base}", title=title)
    for name, timing in timings.items():
        low, high = timing.spread
        ratio = timing.median / timings[base].median
        table.add_row(
            name, f"{timing.median * 1e3:.1f}", f"{low * 1e3:.1f}", f"{high * 1e3:.1f}", f"{ratio:.3f}"
        )
    Console(width=110).print(table)
    values = {name: timing.json() for name, timing in timings.items()}
    print(json.dumps({"timings": values, "machine": machine(), **extra}), flush=True)


def machine() -> dict[str, Any]:
    """A description of the machine, and the versions of what runs on it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    packages = {name: version(name) for name in ("torchvision", "ray", "mlflow")}
    versions = {"python": platform.python_version(), "torch": torch.__version__, **packages}
    return {"device": device, "threads": torch.get_num_threads(), **versions}
