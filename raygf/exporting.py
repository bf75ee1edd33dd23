"""A multi-exit network as one ``torch.export`` program per exit.

Runtimes that execute whole graphs can't leave one early. So every stage and its head are a program of their
own, and the caller, who sees the logits, decides whether the next one runs.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raygf.adaptive import stages_and_heads
from raygf.errors import ConfigError, StorageError


class Segment(nn.Module):
    """One stage and its head."""

    def __init__(self, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stage, self.head = stage, head

    def forward(self, state: Any) -> tuple[Tensor, Any]:
        """From the state before (images (B, C, H, W) at first) to logits (B, classes) and the state after."""
        after = self.stage(state)
        return self.head(after), after


def export_segments(network: nn.Module, example: Tensor, folder: str | Path) -> list[Path]:
    """Write ``segment-1.pt2``, ``segment-2.pt2`` … to ``folder``, shallow to deep; returns their paths.

    Each program maps a state to ``(logits, next state)``: ``torch.export.load(path).module()(state)``. The
    first one's state are the images, normalised; there may be any number of them. The network is left as it
    was.

    Args:
        network: With ``stages`` and ``heads``, on any device; programs run on the same.
        example: Normalised images float32 (B, C, H, W) on that device, B ≥ 2.

    Raises:
        ConfigError: the network has no stages and heads, or can't be exported.
        StorageError: the folder can't be written.
    """
    if len(example) < 2:
        raise ConfigError("export_segments: the example must have at least 2 images")
    stages, heads = stages_and_heads(network)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't write segments to {place}: {error}") from None
    paths, state = [], example
    for number, (stage, head) in enumerate(zip(stages, heads, strict=True), start=1):
        # A copy, because the parameters may be views of one vector, all of which would be stored with each.
        segment = copy.deepcopy(Segment(stage, head)).eval().requires_grad_(False)
        paths.append(place / f"segment-{number}.pt2")
        state = _export(segment, state, number, paths[-1])
    return paths


def _export(segment: Segment, state: Any, number: int, path: Path) -> Any:
    """Write the program of ``segment`` to ``path``; returns the state after it."""
    batch = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(lambda part: {0: batch}, state)
    try:
        with torch.no_grad():
            _, after = segment(state)
            program = torch.export.export(segment, (state,), dynamic_shapes=(shapes,))
        torch.export.save(program, path)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error}") from None
    except Exception as error:  # torch.export may raise anything for what it can't follow
        cause = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"segment {number} can't be exported: {type(error).__name__}: {cause}") from error
    return after
