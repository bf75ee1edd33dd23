"""Meta-GF's rule: fusion weights that are learned in every round (paper, Algorithm 1, lines 9-10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.adam import adam

from raygf.config.run import FusionConfig
from raygf.data.base import Batch
from raygf.errors import CheckpointError
from raygf.fusion.fuse import Fused, carry, fuse, fusion_weights
from raygf.records import ExitScore
from raygf.training.losses import ExitLosses, Tally, exit_hits, exit_losses
from raygf.training.network import Arrays, BoundNetwork, as_tensor
from raygf.training.space import Segments


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
        eta = state.eta.to(self._bound.compute.device, copy=True).requires_grad_()
        optimizer = _Adam(eta, state, lr)
        self._bound.network.train()
        tally = Tally()
        for images, labels in batches:
            loss, hit = self._forward(images, labels, self._fused(base, deltas, eta), buffers)
            optimizer.step(*torch.autograd.grad(loss.sum(), eta))
            tally.add(loss, hit, len(labels))
        score = tally.finite_score(self._bad_weight(eta.detach()), where)
        return Fit(optimizer.state(), buffers, score)

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


class _Adam:
    """Adam on the leaf η from ``state`` on, with PyTorch's own constants.

    By the function behind ``torch.optim.Adam``; see ``raygf.training.sgd.FlatSGD`` for the reason.
    """

    def __init__(self, eta: Tensor, state: FusionState, lr: float) -> None:
        self._eta = eta
        self._lr = lr
        self._first = state.first.to(eta.device, copy=True)
        self._second = state.second.to(eta.device, copy=True)
        self._steps = torch.tensor(float(state.steps))

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One update along ``gradient`` (n, S)."""
        adam(
            [self._eta],
            [gradient],
            [self._first],
            [self._second],
            [],
            [self._steps],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> FusionState:
        """Where it is now."""
        eta = self._eta.detach().cpu()
        return FusionState(eta, self._first.cpu(), self._second.cpu(), int(self._steps))


class LearnedFusion:
    """Holds η and Adam's moments; a merge uses the fitted η, the next round starts from its average."""

    def __init__(self, fitter: FusionFitter, exits: int, segments: int, ema: float) -> None:
        self._fitter = fitter
        self._ema = ema
        self._state = FusionState.initial(exits, segments)
        self._fitted: Tensor | None = None

    def fuse(
        self,
        base: Tensor,
        deltas: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batches: Iterable[Batch],
        lr: float,
        where: str,
    ) -> Fused:
        """See ``FusionRule.fuse``; ``lr`` is Adam's."""
        fit = self._fitter.fit(self._state, base, deltas, buffers, batches, lr, where)
        eta = fit.state.eta.to(base.device)
        fused = Fused(
            self._fitter.weights(eta).cpu(), self._fitter.merge(base, deltas, eta), fit.buffers, fit.score
        )
        carried = carry(self._state.eta, fit.state.eta, self._ema)
        self._state = FusionState(carried, fit.state.first, fit.state.second, fit.state.steps)
        self._fitted = fit.state.eta
        return fused

    def arrays(self) -> Arrays:
        """η, Adam's moments and step count.

        ``eta`` is what the next round starts from, ``eta_fitted`` what the last merge used.
        """
        state = self._state
        arrays: Arrays = {
            "eta": state.eta.numpy(),
            "adam_first": state.first.numpy(),
            "adam_second": state.second.numpy(),
            "adam_steps": np.array(state.steps),
        }
        return arrays if self._fitted is None else {**arrays, "eta_fitted": self._fitted.numpy()}

    def restore(self, arrays: Arrays) -> None:
        """See ``FusionRule.restore``."""
        shape = tuple(self._state.eta.shape)
        for name in ("eta", "adam_first", "adam_second", "eta_fitted"):
            known = arrays.get(name)
            if known is not None and (known.shape != shape or known.dtype != np.float32):
                raise CheckpointError(
                    f"the checkpoint's array {name} is {known.dtype} {known.shape}, not float32 {shape}: it "
                    "belongs to another network"
                )
        self._state = FusionState(
            as_tensor(arrays["eta"]).clone(),
            as_tensor(arrays["adam_first"]).clone(),
            as_tensor(arrays["adam_second"]).clone(),
            int(arrays["adam_steps"]),
        )
        self._fitted = as_tensor(arrays["eta_fitted"]).clone() if "eta_fitted" in arrays else None
