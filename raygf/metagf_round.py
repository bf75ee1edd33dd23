"""A round of Meta-GF: train the exits, fit the fusion weights, merge."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raygf.bound import BoundNetwork, as_tensor, to_numpy
from raygf.config import RunConfig
from raygf.data.base import BatchSource
from raygf.evaluation.conflict import delta_norms, shared_cosine, tensor_gramians
from raygf.executor import Executor, Trained
from raygf.fusion.batchnorm import scaled_layers, weighted_statistics
from raygf.fusion.fit import Fit, FusionFitter, FusionState
from raygf.fusion.segments import Segments
from raygf.fusion.weights import carry
from raygf.records import ExitScore, FusionReport
from raygf.rounds import RoundOutcome
from raygf.schedule import decay_factor
from raygf.seeding import seeded_globals
from raygf.state import Arrays, NetworkState, Vector


class MetaGFRound:
    """Paper, Algorithm 1. Holds η, Adam's moments and, if they are carried, the exits' momenta."""

    def __init__(
        self,
        config: RunConfig,
        bound: BoundNetwork,
        batches: BatchSource,
        executor: Executor,
        owned: Tensor,
    ) -> None:
        """``owned`` (n, T): which exit depends on which tensor."""
        self._config = config
        self._bound = bound
        self._batches = batches
        self._executor = executor
        self._owned = owned
        self._segments = Segments(config.fusion.segments, bound.space)
        self._fitter = FusionFitter(bound, self._segments, self._segments.spread(owned), config.fusion)
        if config.fusion.batchnorm == "weighted":
            scaled_layers(bound.network, bound.space.names)  # refuses early what can't be merged
        exits = owned.shape[0]
        self.passes = exits + 1
        self._fusion = FusionState.initial(exits, self._segments.count)
        self._momenta: list[Vector | None] = [None] * exits

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """See ``RoundMethod.run``."""
        trained = self._executor.train(state, round, self._momenta)
        started = time.perf_counter()
        base = self._bound.tensor(state.vector)
        deltas = [self._bound.tensor(update.delta) for update in trained.updates]
        fit = self._fit(state, base, deltas, round)
        merged = NetworkState(
            self._fitter.merge(base, deltas, fit.state.eta.to(base.device)).cpu().numpy(),
            self._merged_buffers(trained, fit),
        )
        report = self._report(deltas, fit)
        self._advance(fit, trained)
        seconds = {
            "broadcast": trained.broadcast_s,
            "train": trained.train_s,
            "wait": trained.wait_s,
            "fuse": time.perf_counter() - started,
        }
        return RoundOutcome(merged, _own_scores(trained), seconds, report, trained.notes)

    def arrays(self) -> Arrays:
        """η, Adam's moments and step count, and carried momenta."""
        fusion = self._fusion
        arrays: Arrays = {
            "eta": fusion.eta.numpy(),
            "adam_first": fusion.first.numpy(),
            "adam_second": fusion.second.numpy(),
            "adam_steps": np.array(fusion.steps),
        }
        carried = {f"momentum_{i}": m for i, m in enumerate(self._momenta) if m is not None}
        return {**arrays, **carried}

    def restore(self, arrays: Arrays) -> None:
        """See ``RoundMethod.restore``."""
        self._fusion = FusionState(
            as_tensor(arrays["eta"]).clone(),
            as_tensor(arrays["adam_first"]).clone(),
            as_tensor(arrays["adam_second"]).clone(),
            int(arrays["adam_steps"]),
        )
        self._momenta = [arrays.get(f"momentum_{i}") for i in range(len(self._momenta))]

    def close(self) -> None:
        """End the executor."""
        self._executor.close()

    def _fit(self, state: NetworkState, base: Tensor, deltas: Sequence[Tensor], round: int) -> Fit:
        config = self._config
        with seeded_globals(config.seed, "fuse", round):
            return self._fitter.fit(
                self._fusion,
                base,
                deltas,
                self._bound.buffer_tensors(state.buffers),
                self._batches.train(config.seed, "fuse", round),
                config.fusion.lr * decay_factor(round, config.rounds, config.optim),
                where=f"fusion pass, round {round}",
            )

    def _merged_buffers(self, trained: Trained, fit: Fit) -> Arrays:
        if self._config.fusion.batchnorm == "recalibrated":
            return {name: to_numpy(value) for name, value in fit.buffers.items()}
        exits = [{name: as_tensor(a) for name, a in u.buffers.items()} for u in trained.updates]
        alpha = self._fitter.weights(fit.state.eta.to(self._bound.compute.device)).cpu()
        merged = weighted_statistics(self._bound.network, exits, alpha, self._segments)
        return {name: value.numpy() for name, value in merged.items()}

    def _advance(self, fit: Fit, trained: Trained) -> None:
        """The merge used the fitted η; the next round starts from its moving average."""
        eta = carry(self._fusion.eta, fit.state.eta, self._config.fusion.ema)
        self._fusion = FusionState(eta, fit.state.first, fit.state.second, fit.state.steps)
        self._momenta = [update.momentum for update in trained.updates]

    def _report(self, deltas: Sequence[Tensor], fit: Fit) -> FusionReport:
        alpha = self._fitter.weights(fit.state.eta.to(self._bound.compute.device)).detach().cpu().double()
        per_tensor = self._segments.slot_means(alpha).masked_fill(~self._owned, torch.nan)
        shared = self._owned & (self._owned.sum(dim=0) > 1)
        grams = tensor_gramians(deltas, self._bound.space)
        return FusionReport(
            weights=per_tensor.numpy(),
            mean_weight=tuple(per_tensor.masked_fill(~shared, torch.nan).nanmean(dim=1).tolist()),
            cosine=shared_cosine(grams, self._owned).numpy(),
            delta_norm=tuple(delta_norms(grams, self._owned).tolist()),
            loss=sum(fit.score.loss),
        )


def _own_scores(trained: Trained) -> ExitScore:
    """Each exit's loss and accuracy from its own training."""
    updates = trained.updates
    return ExitScore(tuple(u.loss for u in updates), tuple(u.accuracy for u in updates))
