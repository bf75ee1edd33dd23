"""Weightings: n weights from the n × n Gramian of the exits' gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raygf.errors import ConfigError, NonFiniteError

Weighting = Callable[[Tensor], Tensor]
"""From ``G_ij = g_i·g_j`` (n, n), float32 on the CPU, to the weights (n,) of ``Σ_i w_i g_i``."""


def usable(name: str, make: Callable[[], Weighting], exits: int) -> Weighting:
    """The weighting ``name``, tried once on a harmless Gramian.

    Raises:
        ConfigError: it needs a package that is not installed; names the command that brings it.
    """
    try:
        make()(torch.eye(max(2, exits)) + 0.5)
        return make()
    except ImportError:
        raise ConfigError(
            f"method = {name!r} needs solvers that are not installed: pip install 'raygf[methods]'"
        ) from None


def weigh(weighting: Weighting, gramian: Tensor) -> Tensor:
    """``weighting`` of ``gramian`` (n, n), on the Gramian's device; a lone exit has weight 1.

    Raises:
        NonFiniteError: the Gramian is not finite, which some weightings would silently turn into ordinary
            weights; names the exit.
    """
    finite = torch.isfinite(gramian.diagonal())
    if not finite.all():
        exits = (~finite).nonzero()[:, 0] + 1
        raise NonFiniteError(f"the gradient of exit {exits[0]} is not finite")
    if len(gramian) == 1:
        return torch.ones_like(gramian[0])
    if not gramian.diagonal().any():
        return torch.zeros_like(gramian[0])  # there is nothing to weigh, and solvers would fail
    weights = weighting(gramian.float().cpu()).to(gramian)
    if not torch.isfinite(weights).all():
        raise NonFiniteError("the weights of the exits' gradients are not finite")
    return weights


def scaled(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The Gramian (n, n) of the gradients divided by their root mean square length, and that length ().

    For TorchJD's solvers: their tolerances are fixed numbers, so that with short gradients they would stop
    too early or take them for zero.
    """
    length = gramian.diagonal().mean().sqrt()
    return gramian / length**2, length


def scale_free(solve: Weighting) -> Weighting:
    """``solve``, whose weights do not depend on the gradients' scale, on gradients of ordinary length."""
    return lambda gramian: solve(scaled(gramian)[0])


def merged_ranges(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted stretches [start, stop) with neighbours that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in stretches:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
