"""Trains one network with any method for two rounds, and tabulates the losses of such pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from raygf.compute import resolve_compute
from raygf.config.recipes import NETWORKS as OF_PAPER
from raygf.config.recipes import Network
from raygf.config.run import ComputeConfig, FusionConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from raygf.data.base import Dataset
from raygf.errors import NonFiniteError, RunFailed
from raygf.evaluation.tables import markdown_table
from raygf.methods.registry import is_step_method, method_names
from raygf.models.build import BUILDERS, build_model
from raygf.rounds.base import RoundMethod
from raygf.rounds.delta import DeltaRound
from raygf.rounds.step import StepRound
from raygf.training.exit_trainer import Executor, LocalExecutor, Trained
from raygf.training.network import BoundNetwork, NetworkState, Vector
from raygf.training.space import find_ownership

ROUNDS = 2
KD = "+kd"
"""After a method's name: with distillation."""
NETWORKS = (*BUILDERS, "torchvision:resnet18@0.3,0.6")
OUTER = "+outer"
"""With an outer step, and free weights that are fitted to the outputs' entropy."""
METHODS = (
    *method_names(),
    *(name + KD for name in ("metagf", "delta-mean", "sgd", "cagrad")),
    f"metagf{OUTER}",
)


@dataclass(frozen=True)
class Pair:
    """Result of a network with a method: training loss of each round, mean over exits; processor seconds."""

    network: str
    method: str
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        losses = " → ".join(f"{loss:.2f}" for loss in self.losses)
        return "ERROR" if self.error else losses


class Bench:
    """One network, built once, and a few images; every training starts from the same weights.

    The five networks of the paper have its weight decay, loss coefficients and segments.
    """

    def __init__(self, model: ModelConfig, data: Dataset, batch: int, lr: float) -> None:
        self._model, self._data, self._batch, self._lr = model, data, batch, lr
        compute = resolve_compute(ComputeConfig())
        self._bound = BoundNetwork(build_model(model, data.spec, seed=0), compute)
        self._batches = data.open(compute, batch, batch)
        self._start = self._bound.state()
        example = data.spec.blank(2, compute.device)
        self._owned = find_ownership(self._bound.network, example, self._bound.space)
        self._executors: dict[bool, FirstRoundOnce] = {}

    def train(self, method: str) -> tuple[float, ...]:
        """The losses of ``ROUNDS`` rounds.

        Raises:
            NonFiniteError: a loss or a weight is not finite.
            RunFailed: a round changed nothing.
        """
        rounds, state, losses = self._method(method), self._start, []
        for round in range(1, ROUNDS + 1):
            before, outcome = state, rounds.run(state, round)
            state = outcome.state
            losses.append(fmean(outcome.train.loss))
            if not math.isfinite(losses[-1]) or not np.isfinite(state.vector).all():
                raise NonFiniteError(f"round {round}: a loss or a weight is not finite")
            if np.array_equal(state.vector, before.vector):
                raise RunFailed(f"round {round}: no weight has changed")
        return tuple(losses)

    def _method(self, method: str) -> RoundMethod:
        config = self._config(method.removesuffix(KD).removesuffix(OUTER), method.endswith(KD))
        if method.endswith(OUTER):
            more = replace(config.fusion, outer="nesterov", normalise="free", objective="entropy")
            config = replace(config, fusion=more)
        if is_step_method(config.method):
            return StepRound(config, self._bound, self._batches, self._owned)
        executor = self._executor(config)
        return DeltaRound(config, self._bound, self._batches, executor, self._owned)

    def _executor(self, config: RunConfig) -> Executor:
        """Trains exits, the same way for all methods except for distillation; Fisher's hands on the most."""
        key = config.loss.distill
        if key not in self._executors:
            executor = LocalExecutor(replace(config, method="delta-fisher"), self._data)
            self._executors[key] = FirstRoundOnce(executor)
        return self._executors[key]

    def _config(self, method: str, distill: bool) -> RunConfig:
        plain = Network(self._model.name, "", ROUNDS, coefficients="ones")
        paper = {network.model: network for network in OF_PAPER.values()}.get(self._model.name, plain)
        return RunConfig(
            method=method,
            rounds=ROUNDS,
            batch_size=self._batch,
            eval_batch_size=self._batch,
            model=self._model,
            optim=OptimConfig(self._lr, weight_decay=paper.weight_decay),
            loss=LossConfig(coefficients=paper.coefficients, distill=distill),
            fusion=FusionConfig(segments=paper.segments),
        )


class FirstRoundOnce(Executor):
    """Trains exits; in round 1, when all methods are at the same weights, once for all of them."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._first: Trained | None = None

    def train(self, state: NetworkState, round: int, momenta: Sequence[Vector | None]) -> Trained:
        """See ``Executor.train``."""
        if round > 1:
            return self._executor.train(state, round, momenta)
        if self._first is None:
            self._first = self._executor.train(state, round, momenta)
        return self._first

    def close(self) -> None:
        """See ``Executor.close``."""
        self._executor.close()


def loss_table(pairs: Sequence[Pair]) -> str:
    """Methods by networks, as Markdown; the last row has the processor seconds."""
    networks = list(dict.fromkeys(pair.network for pair in pairs))
    seen = dict.fromkeys(pair.method for pair in pairs)
    methods = sorted(seen, key=lambda name: METHODS.index(name) if name in METHODS else len(METHODS))
    cells = {(pair.network, pair.method): str(pair) for pair in pairs}
    rows = [[method, *(cells.get((network, method), "") for network in networks)] for method in methods]
    spent = [sum(pair.seconds for pair in pairs if pair.network == network) for network in networks]
    return markdown_table(["method", *networks], [*rows, ["processor s", *(f"{s:.0f}" for s in spent)]])
