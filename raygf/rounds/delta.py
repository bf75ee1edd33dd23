"""A round on expected gradients: train the exits, fuse their deltas by a rule."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from raygf.compute import seeded_globals
from raygf.config.run import RunConfig
from raygf.data.base import BatchSource
from raygf.errors import NonFiniteError
from raygf.fusion.batchnorm import scaled_layers, weighted_statistics
from raygf.fusion.conflict import FusionReporter
from raygf.fusion.fuse import Fused, FusionRule
from raygf.fusion.learned import FusionFitter, LearnedFusion
from raygf.fusion.weighed import WeighedFusion
from raygf.methods.base import Setting
from raygf.methods.registry import DELTA, make_weighting
from raygf.records import ExitScore
from raygf.rounds.base import RoundOutcome
from raygf.training.exit_trainer import Executor, Trained
from raygf.training.losses import decay_factor, make_losses
from raygf.training.network import Arrays, BoundNetwork, NetworkState, Vector, as_tensor, not_finite, to_numpy
from raygf.training.space import Segments


def make_rule(config: RunConfig, setting: Setting, bound: BoundNetwork, segments: Segments) -> FusionRule:
    """The rule that ``config.method`` fuses deltas by.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    losses_of, exits = make_losses(config.loss), len(setting.owned)
    if config.method == "metagf":
        mask = segments.spread(setting.owned)
        fitter = FusionFitter(bound, segments, mask, config.fusion, losses_of)
        return LearnedFusion(fitter, exits, segments.count, config.fusion.ema)
    weighting = make_weighting(config.method.removeprefix(DELTA), setting)
    return WeighedFusion(weighting, bound, segments, setting.owned, config.fusion.epsilon, losses_of)


class DeltaRound:
    """Paper, Algorithm 1, with any fusion rule. Holds the rule and the momenta that are carried."""

    def __init__(
        self,
        config: RunConfig,
        bound: BoundNetwork,
        batches: BatchSource,
        executor: Executor,
        owned: Tensor,
    ) -> None:
        """``owned`` (n, T): which exit depends on which tensor.

        Raises:
            ConfigError: the method or the handling of BatchNorm can't be used with this network.
        """
        self._config = config
        self._bound = bound
        self._batches = batches
        self._executor = executor
        self._segments = Segments(config.fusion.segments, bound.space)
        setting = Setting(config.methods, bound.network, owned, bound.space)
        self._rule: FusionRule = make_rule(config, setting, bound, self._segments)
        self._reporter = FusionReporter(self._segments, owned)
        if config.fusion.batchnorm == "weighted":
            scaled_layers(bound.network, bound.space.names)  # refuses early what can't be merged
        self.passes = len(owned) + 1
        self._momenta: list[Vector | None] = [None] * len(owned)

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """See ``RoundMethod.run``.

        Raises:
            ExitFailed: an exit could not be trained; nothing was merged.
            NonFiniteError: a loss, a delta or a fusion weight is not finite; nothing was merged.
        """
        trained = self._executor.train(state, round, self._momenta)
        started = time.perf_counter()
        deltas = [self._bound.tensor(update.delta) for update in trained.updates]
        self._require_finite(deltas, round)
        fused = self._fuse(state, deltas, round)
        merged = NetworkState(fused.vector.cpu().numpy(), self._merged_buffers(trained, fused))
        report = self._reporter.report(deltas, fused)
        self._momenta = [update.momentum for update in trained.updates]
        seconds = {
            "broadcast": trained.broadcast_s,
            "train": trained.train_s,
            "wait": trained.wait_s,
            "fuse": time.perf_counter() - started,
        }
        return RoundOutcome(merged, _own_scores(trained), seconds, report, trained.notes)

    def arrays(self) -> Arrays:
        """The rule's arrays and carried momenta."""
        carried = {f"momentum_{i}": m for i, m in enumerate(self._momenta) if m is not None}
        return {**self._rule.arrays(), **carried}

    def restore(self, arrays: Arrays) -> None:
        """See ``RoundMethod.restore``."""
        self._rule.restore(arrays)
        self._momenta = [arrays.get(f"momentum_{i}") for i in range(len(self._momenta))]
        for momentum in self._momenta:
            if momentum is not None:
                self._bound.check_vector("momenta", momentum)

    def close(self) -> None:
        """End the executor."""
        self._executor.close()

    def _require_finite(self, deltas: Sequence[Tensor], round: int) -> None:
        for exit, delta in enumerate(deltas):
            if layer := not_finite(delta, self._bound.space):
                raise NonFiniteError(
                    f"{self._config.method}, exit {exit + 1}, round {round}: its delta is not finite: "
                    f"{layer}; nothing was merged; lower optim.lr"
                )

    def _fuse(self, state: NetworkState, deltas: Sequence[Tensor], round: int) -> Fused:
        config = self._config
        with seeded_globals(config.seed, "fuse", round):
            return self._rule.fuse(
                self._bound.tensor(state.vector),
                deltas,
                self._bound.buffer_tensors(state.buffers),
                self._batches.train(config.seed, "fuse", round),
                config.fusion.lr * decay_factor(round, config.rounds, config.optim),
                where=f"{config.method}, fusion pass, round {round}",
            )

    def _merged_buffers(self, trained: Trained, fused: Fused) -> Arrays:
        if self._config.fusion.batchnorm == "recalibrated":
            return {name: to_numpy(value) for name, value in fused.buffers.items()}
        exits = [{name: as_tensor(a) for name, a in u.buffers.items()} for u in trained.updates]
        merged = weighted_statistics(self._bound.network, exits, fused.alpha, self._segments)
        return {name: value.numpy() for name, value in merged.items()}


def _own_scores(trained: Trained) -> ExitScore:
    """Each exit's loss and accuracy from its own training."""
    updates = trained.updates
    return ExitScore(tuple(u.loss for u in updates), tuple(u.accuracy for u in updates))
