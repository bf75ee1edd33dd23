"""Fitting the fusion weights: one pass of Adam on η through the fused network (paper, Eq. 11)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from raygf.bound import BoundNetwork
from raygf.config import FusionConfig
from raygf.data.base import Batch
from raygf.fusion.fuse import fuse
from raygf.fusion.segments import Segments
from raygf.fusion.weights import fusion_weights
from raygf.losses import ExitLosses, exit_hits, exit_losses
from raygf.records import ExitScore
from raygf.tally import Tally


@dataclass(frozen=True)
class FusionState:
    """The logits η (n, S) and Adam's two moments of the same shape, after ``steps`` updates."""

    eta: Tensor
    first: Tensor
    second: Tensor
    steps: int

    @classmethod
    def initial(cls, exits: int, segments: int) -> FusionState:
        """η = 1 everywhere, as in the paper."""
        zeros = torch.zeros(exits, segments)
        return cls(torch.ones(exits, segments), zeros, zeros.clone(), 0)


@dataclass(frozen=True)
class Fit:
    """The fitted state, and what was seen on the way: train-mode scores, BatchNorm buffers."""

    state: FusionState
    buffers: dict[str, Tensor]
    score: ExitScore


class FusionFitter:
    """Fits η for one network; ``owned`` (n, S) is the ownership mask."""

    def __init__(
        self,
        bound: BoundNetwork,
        segments: Segments,
        owned: Tensor,
        config: FusionConfig,
        losses_of: ExitLosses = exit_losses,
    ) -> None:
        self._bound = bound
        self._segments = segments
        self._owned = owned.to(bound.compute.device)
        self._config = config
        self._losses = losses_of

    def weights(self, eta: Tensor) -> Tensor:
        """α (n, S) of ``eta``."""
        return fusion_weights(eta, self._owned, self._config.normalise)

    def merge(self, base: Tensor, deltas: Sequence[Tensor], eta: Tensor) -> Tensor:
        """``W + ε Σ_i α_i Δ_i`` (P,), without a graph."""
        with torch.no_grad():
            return self._fused(base, deltas, eta)

    def fit(
        self,
        state: FusionState,
        base: Tensor,
        deltas: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batches: Iterable[Batch],
        lr: float,
        where: str,
    ) -> Fit:
        """One pass over ``batches``, minimising the sum of all exits' losses at the fused weights.

        Args:
            state: η and Adam's moments to start from; not written to.
            base: W (P,).
            deltas: n vectors (P,).
            buffers: the network's buffers; BatchNorm statistics gather in them, in train mode.
            lr: Adam's learning rate.
            where: names the pass in errors.

        Raises:
            NonFiniteError: a loss or the fitted η is not finite.
        """
        eta = torch.nn.Parameter(state.eta.to(self._bound.compute.device, copy=True))
        adam = self._adam(eta, state, lr)
        self._bound.network.train()
        tally = Tally()
        for images, labels in batches:
            adam.zero_grad()
            loss, hit = self._forward(images, labels, self._fused(base, deltas, eta), buffers)
            torch.autograd.backward(loss.sum())
            adam.step()
            tally.add(loss, hit, len(labels))
        score = tally.finite_score(self._bad_weight(eta.detach()), where)
        return Fit(_state_of(adam, eta), buffers, score)

    def _fused(self, base: Tensor, deltas: Sequence[Tensor], eta: Tensor) -> Tensor:
        return fuse(base, deltas, self._config.epsilon * self.weights(eta), self._segments)

    def _forward(
        self, images: Tensor, labels: Tensor, fused: Tensor, buffers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses (n,) and hits (n,) of the network run on views of ``fused``."""
        named = {**self._bound.space.views(fused), **buffers}
        with self._bound.compute.autocast():
            logits = functional_call(self._bound.network, named, (images,))
        return self._losses(logits, labels), exit_hits(logits, labels)

    def _bad_weight(self, eta: Tensor) -> str:
        """The first of ``eta`` (n, S) that is not finite, for people; "" if there is none."""
        bad = (~torch.isfinite(eta)).nonzero()
        if not len(bad):
            return ""
        exit, segment = bad[0].tolist()
        return f"the fusion weight of exit {exit + 1} in {self._segments.name(segment)}"

    def _adam(self, eta: torch.nn.Parameter, state: FusionState, lr: float) -> torch.optim.Adam:
        adam = torch.optim.Adam([eta], lr)
        if state.steps:
            adam.state[eta] = {
                "step": torch.tensor(float(state.steps)),
                "exp_avg": state.first.to(eta.device, copy=True),
                "exp_avg_sq": state.second.to(eta.device, copy=True),
            }
        return adam


def _state_of(adam: torch.optim.Adam, eta: torch.nn.Parameter) -> FusionState:
    moments = adam.state[eta]
    return replace(
        FusionState.initial(*eta.shape),
        eta=eta.detach().cpu(),
        first=moments["exp_avg"].cpu(),
        second=moments["exp_avg_sq"].cpu(),
        steps=int(moments["step"]),
    )
