"""The round loop: train, evaluate, checkpoint, and yield one record a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from raygf.bound import BoundNetwork
from raygf.checkpoint import Checkpoint, CheckpointStore
from raygf.compute import make_repeatable, resolve_compute, torch_threads
from raygf.config import RunConfig
from raygf.config_dict import flatten, to_dict
from raygf.data import load_data
from raygf.data.base import Dataset
from raygf.delta_round import DeltaRound
from raygf.errors import CheckpointError, ConfigError, NonFiniteError, StorageError
from raygf.evaluation.accuracy import evaluate
from raygf.executor import Executor
from raygf.fusion.ownership import find_ownership
from raygf.history import History, read_history, to_history
from raygf.methods.registry import check_method, is_step_method
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.peers import ALONE, Peers
from raygf.records import RoundRecord, RunEnd, RunStart
from raygf.rounds import RoundMethod
from raygf.schedule import decay_factor, loss_coefficients
from raygf.state import NetworkState
from raygf.step_round import StepRound

MakeExecutor = Callable[[RunConfig, Dataset, int], Executor]
"""Builds the executor from the run, its data and the number of exits."""

FREE_ON_RESUME = (
    *("resources", "storage", "tracking", "stop_after", "eval_batch_size"),
    *("data.workers", "data.max_undecodable"),
)
"""Fields of a run that do not change its result."""


class Driver:
    """One run. Call ``prepare``, exhaust ``rounds``, then ``end`` and ``close``.

    With ``peers``, each of them has a driver of its own; only the first one touches the storage, evaluates
    and has whole records, and ``end`` is for it alone.
    """

    def __init__(self, config: RunConfig, make_executor: MakeExecutor, peers: Peers = ALONE) -> None:
        self._config = config
        self._make_executor = make_executor
        self._peers = peers
        self._store = CheckpointStore(config.storage.path, config.storage.name, config.storage.keep)
        self._state: NetworkState
        self._round = 0
        self._path = ""
        self._history: History = []

    def prepare(self) -> RunStart:
        """Load data, build the network, restore the newest checkpoint: all that can fail before training.

        Raises:
            UserError: in one of its forms, naming what is wrong.
        """
        config = self._config
        check_method(config.method)
        with torch_threads(config.resources.driver_cpus):
            checkpoint, notes = self._peers.from_first(self._open_storage)
            compute = resolve_compute(config.compute)
            make_repeatable(compute)
            self._dataset = load_data(config.data, config.seed)
            network = build_model(config.model, self._dataset.spec, config.seed)
            self._bound = BoundNetwork(network, compute, self._peers)
            self._batches = self._dataset.open(compute, config.batch_size, config.eval_batch_size)
            self._method = self._make_method()
            self._restore(checkpoint)
        return self._start(checkpoint, notes)

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """Train the rounds that are left, yielding a record after each one's checkpoint.

        Args:
            run_id: the tracking run, stored in the checkpoints.
        """
        last = min(self._config.rounds, self._config.stop_after or self._config.rounds)
        while self._round < last:
            with torch_threads(self._config.resources.driver_cpus):
                record = self._one_round(self._round + 1, run_id)
            yield record

    def end(self) -> RunEnd:
        """Evaluate the test images with the network as it is now."""
        with torch_threads(self._config.resources.driver_cpus):
            self._bound.load(self._state)
            test = evaluate(self._bound, self._batches.evaluate("test"))
        passes = self._round * self._method.passes
        finished = self._round >= self._config.rounds
        return RunEnd(self._round, passes, test, self._state.sha256(), self._path, finished)

    def close(self) -> None:
        """End the executor."""
        if hasattr(self, "_method"):
            self._method.close()

    def _one_round(self, round: int, run_id: str) -> RoundRecord:
        config = self._config
        outcome = self._method.run(self._state, round)
        _require_finite(outcome.state, round)
        started = time.perf_counter()
        val = None
        if self._peers.first and self._dataset.count("val"):
            self._bound.load(outcome.state)
            val = evaluate(self._bound, self._batches.evaluate("val"))
        evaluated = time.perf_counter()
        factor = decay_factor(round, config.rounds, config.optim)
        record = RoundRecord(
            round=round,
            rounds=config.rounds,
            training_passes=round * self._method.passes,
            lr=config.optim.lr * factor,
            fusion_lr=config.fusion.lr * factor,
            train=outcome.train,
            val=val,
            seconds={**outcome.seconds, "evaluate": evaluated - started},
            checkpoint="",
            fusion=outcome.fusion,
            notes=outcome.notes,
        )
        if self._peers.first:
            self._path = self._save(record, outcome.state, run_id)
        self._state, self._round = outcome.state, round
        seconds = {**record.seconds, "checkpoint": time.perf_counter() - evaluated}
        record = replace(record, seconds=seconds, checkpoint=self._path)
        self._history.append(to_history(record))
        return record

    def _make_method(self) -> RoundMethod:
        config, bound = self._config, self._bound
        example = self._dataset.spec.blank(2, bound.compute.device)
        owned = find_ownership(bound.network, example, bound.space)
        exits = owned.shape[0]
        try:
            loss_coefficients(1, config.rounds, exits, config.loss)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if is_step_method(config.method):
            return StepRound(config, bound, self._batches, owned)
        executor = self._make_executor(config, self._dataset, exits)
        return DeltaRound(config, bound, self._batches, executor, owned)

    def _open_storage(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        self._store.check_writable()
        return self._find_checkpoint()

    def _find_checkpoint(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        if self._config.storage.resume:
            checkpoint, notes = self._store.newest()
            if checkpoint is None and notes:
                raise CheckpointError(f"no checkpoint in {self._store.folder} can be read: {notes[0]}")
            if checkpoint is None:
                return None, (
                    *notes,
                    f"no checkpoint in {self._store.folder} yet: starting from the first round",
                )
            _require_same_run(checkpoint, self._config)
            return checkpoint, notes
        if self._store.rounds():
            raise StorageError(
                f"{self._store.folder} holds checkpoints already: "
                "go on from them with --storage.resume True or choose another --storage.name"
            )
        return None, ()

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._state = self._bound.state()
            return
        self._bound.check(checkpoint.network)
        try:
            self._method.restore(checkpoint.method)
        except KeyError as error:
            raise CheckpointError(f"the checkpoint lacks the method's array {error}") from None
        self._history = read_history(checkpoint.meta)
        self._state, self._round = checkpoint.network, checkpoint.round
        self._path = f"{self._store.folder}/round-{checkpoint.round:06d}.npz"

    def _save(self, record: RoundRecord, state: NetworkState, run_id: str) -> str:
        """The checkpoint of ``record``'s round; it can't yet know how long its own writing takes."""
        meta = {
            "config": to_dict(self._config),
            "run_id": run_id,
            "tensors": list(self._bound.space.names),
            "input": asdict(self._dataset.spec),
            "history": [*self._history, to_history(record)],
        }
        return self._store.save(Checkpoint(record.round, state, self._method.arrays(), meta))

    def _start(self, checkpoint: Checkpoint | None, notes: tuple[str, ...]) -> RunStart:
        dataset, compute = self._dataset, self._bound.compute
        costs = measure_costs(self._bound.network, dataset.spec)
        return RunStart(
            round=self._round,
            classes=dataset.spec.classes,
            train_images=dataset.count("train"),
            val_images=dataset.count("val"),
            test_images=dataset.count("test"),
            parameters=tuple(cost.parameters for cost in costs),
            operations=tuple(cost.operations for cost in costs),
            tensors=self._bound.space.names,
            setting=f"{compute.device} {compute.precision} {compute.memory_format.replace('_', '-')}",
            run_id="" if checkpoint is None else str(checkpoint.meta.get("run_id", "")),
            notes=notes,
        )


def _require_same_run(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raise CheckpointError if a field that changes the result differs from the checkpoint's."""
    if not isinstance(checkpoint.meta.get("config"), dict):
        raise CheckpointError("the checkpoint does not say which configuration it belongs to")
    stored, now = (binding(values) for values in (checkpoint.meta["config"], to_dict(config)))
    odd = sorted(name for name in stored.keys() | now.keys() if stored.get(name) != now.get(name))
    if odd:
        shown = "; ".join(f"{name} was {stored.get(name)!r}, is now {now.get(name)!r}" for name in odd[:3])
        raise CheckpointError(f"can't resume with another configuration: {shown}")


def binding(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration (as ``to_dict`` gives it) that change the result, by dotted name."""
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    return {name: value for name, value in flatten(values).items() if not f"{name}.".startswith(free)}


def _require_finite(state: NetworkState, round: int) -> None:
    if not np.isfinite(state.vector.sum(dtype=np.float64)):
        raise NonFiniteError(
            f"round {round}: the weights became infinite or NaN; lower optim.lr; the last checkpoint stands"
        )
