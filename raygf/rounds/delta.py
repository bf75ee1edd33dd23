"""A round on expected gradients (paper, Algorithm 1): train the exits, fuse their deltas by a rule."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from raygf.compute import seeded_globals
from raygf.config.run import RunConfig
from raygf.data.base import BatchSource
from raygf.errors import ConfigError
from raygf.fusion.batchnorm import scaled_layers, weighted_statistics
from raygf.fusion.conflict import fusion_report
from raygf.fusion.fuse import Fused, FusionRule, FusionTask, Learner, Passed
from raygf.fusion.fusion_pass import SharesHere, pass_batches, run_pass
from raygf.fusion.learned import LearnedFusion
from raygf.fusion.merged import MergedFusion, WeighedFusion
from raygf.methods.base import Setting
from raygf.methods.registry import DELTA, MERGED, OWN, make_weighting, training_operations
from raygf.records import ExitScore
from raygf.rounds.base import RoundMethod, RoundOutcome
from raygf.rounds.outer import OuterStep
from raygf.training.exit_trainer import Executor, PassTask, Trained
from raygf.training.losses import decay_factor, loss_coefficients
from raygf.training.network import Arrays, Average, BoundNetwork, NetworkState, Vector, as_tensor, to_numpy
from raygf.training.prefix import handed_back
from raygf.training.shares import check_shares
from raygf.training.space import Segments


class DeltaRound(RoundMethod):
    """Meta-GF, or the same round with another fusion rule. Holds the rule and carried momenta."""

    def __init__(
        self, config: RunConfig, bound: BoundNetwork, batches: BatchSource, executor: Executor, owned: Tensor
    ) -> None:
        """``owned`` (n, T): which exit depends on which tensor.

        Raises ConfigError: the method or the handling of BatchNorm can't be used with this network.
        """
        self._config = config
        self._bound = bound
        self._batches = batches
        self._executor = executor
        self._owned = owned
        self._segments = Segments(config.fusion.segments, bound.space)
        check_shares("fusion.shards", config.fusion.shards, config.batch_size)
        replicas = config.resources.replicas
        if len(replicas) not in (1, len(owned)):
            raise ConfigError(
                f"resources.replicas has {len(replicas)} numbers: give one, or one for each of the "
                f"{len(owned)} exits"
            )
        check_shares("resources.replicas", max(replicas), config.batch_size)
        self._parts = handed_back(bound.space, owned, config.loss.aux_exits)
        self._rule = self._make_rule()
        steps = config.fusion.outer != "none"
        self._outer = OuterStep(config.fusion, bound.vector) if steps else None
        if config.fusion.batchnorm == "weighted":
            scaled_layers(bound.network, bound.space.names)  # refuses early what can't be merged
        self.operations = partial(training_operations, config)
        self._momenta: list[Vector | None] = [None] * len(owned)
        self.average = Average(config.optim.ema)

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """Train all exits from ``state``, fuse their deltas, merge.

        Raises:
            ExitFailed: an exit could not be trained; nothing was merged.
            NonFiniteError: a loss, a delta or a fusion weight is not finite; nothing was merged.
        """
        config, trained = self._config, self._executor.train(state, round, self._momenta)
        started = time.perf_counter()
        deltas = self._whole([update.delta for update in trained.updates])
        fisher = self._whole([update.fisher for update in trained.updates if update.fisher is not None])
        coefficients = loss_coefficients(round, config.rounds, len(deltas), config.loss)
        lr = config.fusion.lr * decay_factor(round, config.rounds, config.optim)
        where = f"{config.method}, fusion pass, round {round}"
        task = FusionTask(self._bound.tensor(state.vector), deltas, lr, where, round, fisher)
        fused, notes = self._fuse(task, state, coefficients)
        merged = NetworkState(fused.vector.cpu().numpy(), self._merged_buffers(state, trained, fused))
        buffers = {name: as_tensor(array) for name, array in merged.buffers.items()}
        self.average.update(as_tensor(merged.vector), buffers)
        report = fusion_report(task, fused, self._segments, self._owned, coefficients)
        self._momenta = [update.momentum for update in trained.updates]
        seconds = {
            "broadcast": trained.broadcast_s,
            "train": trained.train_s,
            "wait": trained.wait_s,
            "fuse": time.perf_counter() - started,
        }
        losses, accuracies = zip(*((u.loss, u.accuracy) for u in trained.updates), strict=True)
        return RoundOutcome(merged, ExitScore(losses, accuracies), seconds, report, (*trained.notes, *notes))

    def begin(self, state: NetworkState, round: int) -> None:
        self._executor.begin(state, round, self._momenta)

    def arrays(self) -> Arrays:
        """The arrays of the rule and of the outer step, carried momenta, and the average."""
        carried = {f"momentum_{i}": m for i, m in enumerate(self._momenta) if m is not None}
        outer = {} if self._outer is None else self._outer.arrays()
        return {**self._rule.arrays(), **outer, **carried, **self.average.arrays()}

    def restore(self, arrays: Arrays) -> None:
        self._rule.restore(arrays)
        if self._outer is not None:
            self._outer.restore(arrays)
        self._momenta = [arrays.get(f"momentum_{i}") for i in range(len(self._momenta))]
        self.average.restore(arrays)

    def close(self) -> None:
        self._executor.close()

    def _whole(self, packed: Sequence[Vector]) -> list[Tensor]:
        """What the exits hand back of the flat vector, as vectors (P,)."""
        return [p.unpack(self._bound.tensor(v)) for p, v in zip(self._parts, packed, strict=False)]

    def _make_rule(self) -> FusionRule:
        """The rule that the configured method fuses deltas by: Meta-GF's, or a weighting."""
        config, bound, segments, owned = self._config, self._bound, self._segments, self._owned
        device = bound.compute.device
        if config.method == "metagf":
            return LearnedFusion(config, segments, owned, device)
        if config.method in MERGED or config.method.startswith(OWN):
            return MergedFusion(config, segments, owned, device)
        setting = Setting(config.methods, bound.network, owned, bound.space)
        weighting = make_weighting(config.method.removeprefix(DELTA), setting)
        return WeighedFusion(config, segments, owned, device, weighting)

    def _fuse(
        self, task: FusionTask, state: NetworkState, coefficients: Sequence[float]
    ) -> tuple[Fused, tuple[str, ...]]:
        """What the rule makes of the deltas, with the outer step; and what went wrong on the way."""
        config, round, notes = self._config, task.round, list[str]()

        def run(make: Callable[[], Learner], base: Tensor | None = None) -> Passed:
            what = PassTask(round, coefficients, None if base is None else to_numpy(base))
            if config.fusion.shards > 1:
                others = self._executor.fuse(what, lambda shares: run_pass(shares, make, task.where))
                if others is not None:
                    notes.extend(others[1])
                    return others[0]
            ranks = range(config.fusion.shards)
            batches = pass_batches(config, self._batches, round)
            shares = SharesHere(config, self._bound, batches, state, task.deltas, what, ranks)
            return run_pass(shares, make, task.where)

        with seeded_globals(config.seed, "fuse", round):
            fused = self._rule.fuse(task, run)
            if self._outer is not None:  # it goes elsewhere, where the pass's statistics don't belong
                there = self._outer.step(task.base, fused.vector)
                still = Learner(there.new_zeros(fused.alpha.shape))
                fused = replace(fused, vector=there, buffers=run(lambda: still, there).buffers)
        return fused, tuple(notes)

    def _merged_buffers(self, state: NetworkState, trained: Trained, fused: Fused) -> Arrays:
        if self._config.fusion.batchnorm == "recalibrated":
            return {name: to_numpy(value) for name, value in fused.buffers.items()}
        exits = [
            {name: as_tensor(array) for name, array in {**state.buffers, **update.buffers}.items()}
            for update in trained.updates
        ]
        merged = weighted_statistics(self._bound.network, exits, fused.alpha, self._segments)
        return {name: value.numpy() for name, value in merged.items()}
