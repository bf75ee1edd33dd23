"""A round on expected gradients (paper, Algorithm 1): train the exits, fuse their deltas by a rule."""

import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from raygf.compute import seeded_globals
from raygf.config.run import RunConfig
from raygf.data.base import BatchSource
from raygf.fusion.batchnorm import scaled_layers, weighted_statistics
from raygf.fusion.conflict import fusion_report
from raygf.fusion.fuse import Fused, FusionRule, FusionTask
from raygf.fusion.learned import LearnedFusion
from raygf.fusion.weighed import WeighedFusion
from raygf.methods.base import Setting
from raygf.methods.registry import DELTA, make_weighting, operations_per_round
from raygf.records import ExitScore
from raygf.rounds.base import RoundMethod, RoundOutcome
from raygf.training.exit_trainer import Executor, Trained
from raygf.training.losses import decay_factor, loss_coefficients
from raygf.training.network import Arrays, BoundNetwork, NetworkState, Vector, as_tensor, to_numpy
from raygf.training.prefix import handed_back
from raygf.training.space import Segments


class DeltaRound(RoundMethod):
    """Meta-GF, or the same round with another fusion rule. Holds the rule and carried momenta."""

    def __init__(
        self, config: RunConfig, bound: BoundNetwork, batches: BatchSource, executor: Executor, owned: Tensor
    ) -> None:
        """``owned`` (n, T): which exit depends on which tensor.

        Raises:
            ConfigError: the method or the handling of BatchNorm can't be used with this network.
        """
        self._config = config
        self._bound = bound
        self._batches = batches
        self._executor = executor
        self._owned = owned
        self._segments = Segments(config.fusion.segments, bound.space)
        self._parts = handed_back(bound.space, owned, config.loss.aux_exits)
        self._rule = self._make_rule()
        if config.fusion.batchnorm == "weighted":
            scaled_layers(bound.network, bound.space.names)  # refuses early what can't be merged
        self.operations = partial(operations_per_round, config)
        self._momenta: list[Vector | None] = [None] * len(owned)

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """Train all exits from ``state``, fuse their deltas, merge.

        Raises:
            ExitFailed: an exit could not be trained; nothing was merged.
            NonFiniteError: a loss, a delta or a fusion weight is not finite; nothing was merged.
        """
        trained = self._executor.train(state, round, self._momenta)
        started = time.perf_counter()
        deltas = [
            part.unpack(self._bound.tensor(update.delta))
            for part, update in zip(self._parts, trained.updates, strict=True)
        ]
        coefficients = loss_coefficients(round, self._config.rounds, len(deltas), self._config.loss)
        fused = self._fuse(state, deltas, coefficients, round)
        merged = NetworkState(fused.vector.cpu().numpy(), self._merged_buffers(state, trained, fused))
        report = fusion_report(deltas, fused, self._segments, self._owned, coefficients)
        self._momenta = [update.momentum for update in trained.updates]
        seconds = {
            "broadcast": trained.broadcast_s,
            "train": trained.train_s,
            "wait": trained.wait_s,
            "fuse": time.perf_counter() - started,
        }
        losses, accuracies = zip(*((u.loss, u.accuracy) for u in trained.updates), strict=True)
        return RoundOutcome(merged, ExitScore(losses, accuracies), seconds, report, trained.notes)

    def begin(self, state: NetworkState, round: int) -> None:
        self._executor.begin(state, round, self._momenta)

    def arrays(self) -> Arrays:
        """The rule's arrays and carried momenta."""
        carried = {f"momentum_{i}": m for i, m in enumerate(self._momenta) if m is not None}
        return {**self._rule.arrays(), **carried}

    def restore(self, arrays: Arrays) -> None:
        self._rule.restore(arrays)
        self._momenta = [arrays.get(f"momentum_{i}") for i in range(len(self._momenta))]
        for momentum in self._momenta:
            if momentum is not None:
                self._bound.check_vector("momenta", momentum)

    def close(self) -> None:
        self._executor.close()

    def _make_rule(self) -> FusionRule:
        """The rule that the configured method fuses deltas by: Meta-GF's, or a weighting."""
        config, bound, segments, owned = self._config, self._bound, self._segments, self._owned
        if config.method == "metagf":
            return LearnedFusion(config, bound, segments, owned)
        setting = Setting(config.methods, bound.network, owned, bound.space)
        weighting = make_weighting(config.method.removeprefix(DELTA), setting)
        return WeighedFusion(config, bound, segments, owned, weighting)

    def _fuse(
        self, state: NetworkState, deltas: Sequence[Tensor], coefficients: Sequence[float], round: int
    ) -> Fused:
        config = self._config
        with seeded_globals(config.seed, "fuse", round):
            task = FusionTask(
                self._bound.tensor(state.vector),
                deltas,
                self._bound.buffer_tensors(state.buffers),
                self._batches.train(config.seed, "fuse", round, images=config.fusion.images),
                config.fusion.lr * decay_factor(round, config.rounds, config.optim),
                torch.tensor(coefficients, device=self._bound.compute.device),
                where=f"{config.method}, fusion pass, round {round}",
            )
            return self._rule.fuse(task)

    def _merged_buffers(self, state: NetworkState, trained: Trained, fused: Fused) -> Arrays:
        if self._config.fusion.batchnorm == "recalibrated":
            return {name: to_numpy(value) for name, value in fused.buffers.items()}
        exits = [
            {name: as_tensor(array) for name, array in {**state.buffers, **update.buffers}.items()}
            for update in trained.updates
        ]
        merged = weighted_statistics(self._bound.network, exits, fused.alpha, self._segments)
        return {name: value.numpy() for name, value in merged.items()}
