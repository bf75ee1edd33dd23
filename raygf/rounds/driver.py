"""The round loop: train, evaluate, checkpoint, and yield one record a round."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Protocol

from raygf.compute import make_repeatable, naming_out_of_memory, resolve_compute, software, torch_threads
from raygf.config.fields import to_dict
from raygf.config.run import RunConfig
from raygf.data.base import SPLITS, Dataset
from raygf.data.load import load_data
from raygf.errors import CheckpointError, ConfigError, NonFiniteError
from raygf.evaluation.loading import LoadedRun, model_files
from raygf.evaluation.outputs import evaluate
from raygf.methods.base import JointSGD
from raygf.methods.registry import check_method, is_step_method
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.records import (
    ExitScore,
    HistoryLog,
    Notify,
    RoundRecord,
    RunEnd,
    RunStart,
    ignore,
    plain,
    read_history,
)
from raygf.rounds.base import RoundMethod, RoundOutcome
from raygf.rounds.delta import DeltaRound
from raygf.rounds.step import StepRound
from raygf.storage.checkpoint import Checkpoint
from raygf.storage.folder import OpenFolder, RunFolder
from raygf.storage.lock import Owner
from raygf.storage.run_storage import SUMMARY, RunStorage
from raygf.training.exit_trainer import Executor
from raygf.training.losses import decay_factor, loss_coefficients
from raygf.training.network import BoundNetwork, NetworkState, as_tensor, not_finite
from raygf.training.peers import ALONE, Peers
from raygf.training.sgd import check_optimizer
from raygf.training.space import find_ownership

MakeExecutor = Callable[[RunConfig, Dataset, int], Executor]
"""Builds the executor from the run, its data and the number of exits."""


class DriverHandle(Protocol):
    """A run, wherever its driver lives."""

    def prepare(self) -> RunStart:
        """Do all that can fail before training; returns what is known then."""

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """Train the rounds that are left, yielding a record after each one's checkpoint."""

    def end(self) -> RunEnd:
        """Evaluate the test images, after the last round."""

    def close(self) -> None:
        """End processes and give the run's folder back."""


class Driver(DriverHandle):
    """One run. Call ``prepare``, exhaust ``rounds``, then ``end`` and ``close``.

    With ``peers``, each of them has a driver of its own; only the first one touches the storage, evaluates
    and has whole records, and ``end`` is for it alone.
    """

    def __init__(
        self,
        config: RunConfig,
        make_executor: MakeExecutor,
        peers: Peers = ALONE,
        *,
        owner: Owner | None = None,
        notify: Notify = ignore,
        open_folder: OpenFolder = RunFolder,
    ) -> None:
        """
        Args:
            owner: the job that this driver is one of; by default one of its own.
            notify: gets one line at once on trouble that is being dealt with.
            open_folder: makes the folder that the checkpoints are in.

        Raises StorageError: there is no such kind of storage.
        """
        self._config = config
        self._make_executor = make_executor
        self._peers = peers
        self._notify = notify
        self._storage = RunStorage(config, owner or Owner.new(), notify, open_folder)
        self._state: NetworkState
        self._round = 0
        self._path = self._run_id = ""
        self._history = HistoryLog()
        self._writing_s = 0.0

    def prepare(self) -> RunStart:
        """Load data, build the network, restore the newest checkpoint: all that can fail before training.

        Raises UserError: in one of its forms, naming what is wrong.
        """
        config = self._config
        check_method(config.method)
        with self._working("while it loaded data and network"):
            checkpoint, notes = self._peers.from_first(self._storage.open)
            compute = resolve_compute(config.compute)
            make_repeatable(compute)
            self._dataset = load_data(config.data, config.seed)
            network = build_model(config.model, self._dataset.spec, config.seed)
            self._bound = BoundNetwork(network, compute, self._peers)
            self._batches = self._dataset.open(compute, config.batch_size, config.eval_batch_size)
            self._method = self._make_method()
            self._costs = measure_costs(self._bound.network, self._dataset.spec)
            self._restore(checkpoint)
        if self._peers.first:
            self._storage.begin(checkpoint)
        return self._start(checkpoint, notes)

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """Train the rounds that are left, yielding a record after each one's checkpoint.

        Args:
            run_id: the tracking run, stored in the checkpoints.

        Raises:
            NonFiniteError: a round diverged and is not to be skipped, or too many in a row were.
            ExitFailed, StorageLost, MemoryExhausted, RunFailed: a round could not be done; the last
                checkpoint stands.
        """
        self._run_id = run_id
        while self._round < self._last:
            round = self._round + 1
            with self._working(f"in round {round}"):
                record = self._one_round(round, run_id)
            yield record

    def end(self) -> RunEnd:
        """Evaluate the test images with the network as it is now, and write it and the results."""
        with self._working("while it tested"):
            state = self._method.evaluated(self._state)
            self._bound.load(state)
            test = evaluate(self._bound, self._batches.evaluate("test"))
            self._write_model(state)
        passes, operations = self._spent(self._round)
        finished = self._round >= self._config.rounds
        seconds = self._history.seconds - self._writing_s
        end = RunEnd(self._round, passes, test, state.sha256(), self._path, finished, seconds, operations)
        self._storage.write(SUMMARY, f"{json.dumps(plain(self._summary(end)), indent=1)}\n".encode())
        return end

    def close(self) -> None:
        """End the executor and give the run's folder back."""
        try:
            if hasattr(self, "_method"):
                self._method.close()
        finally:
            self._storage.close()

    def abandon(self) -> None:
        """Give the run's folder back from another thread, because this process is about to be ended."""
        self._storage.close()

    def _make_method(self) -> RoundMethod:
        config, bound = self._config, self._bound
        check_optimizer(config.optim)
        example = self._dataset.spec.blank(2, bound.compute.device)
        owned = find_ownership(bound.network, example, bound.space)
        self._exits = len(owned)
        loss_coefficients(1, config.rounds, self._exits, config.loss)  # refuses early what has none
        if config.loss.coefficients == "last" and not is_step_method(config.method):
            raise ConfigError(
                "loss.coefficients = 'last': needs a method within a step, such as --method sgd"
            )
        if is_step_method(config.method):
            return StepRound(config, bound, self._batches, owned)
        if config.fusion.split == "val" and self._dataset.count("val") < 2:
            raise ConfigError("fusion.objective = 'val': needs validation images; set data.val")
        executor = self._make_executor(config, self._dataset, self._exits)
        return DeltaRound(config, bound, self._batches, executor, owned)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._state = self._bound.state()
            return
        self._bound.check_restored(checkpoint.network)
        try:
            self._method.restore(checkpoint.method)
        except KeyError as error:
            raise CheckpointError(f"the checkpoint lacks the method's array {error}") from None
        self._history = HistoryLog(checkpoint.meta)
        self._state, self._round = checkpoint.network, checkpoint.round
        self._path = self._storage.path(checkpoint.round)

    def _start(self, checkpoint: Checkpoint | None, notes: tuple[str, ...]) -> RunStart:
        dataset, compute = self._dataset, self._bound.compute
        entries = [] if checkpoint is None else read_history(checkpoint.meta)
        return RunStart(
            round=self._round,
            classes=dataset.spec.classes,
            train_images=dataset.count("train"),
            val_images=dataset.count("val"),
            test_images=dataset.count("test"),
            parameters=tuple(cost.parameters for cost in self._costs),
            operations=tuple(cost.operations for cost in self._costs),
            tensors=self._bound.space.names,
            setting=f"{compute.device} {compute.precision} {compute.memory_format.replace('_', '-')}",
            run_id="" if checkpoint is None else str(checkpoint.meta.get("run_id", "")),
            notes=notes,
            recent=tuple(replace(r, checkpoint=self._storage.path(r.round)) for r in self._history.recent),
            data=dataset.name,
            digests={split: dataset.digest(split) for split in SPLITS if dataset.count(split)},
            software=software(compute.device),
            history=tuple(entries),
        )

    @property
    def _last(self) -> int:
        return min(self._config.rounds, self._config.stop_after or self._config.rounds)

    def _one_round(self, round: int, run_id: str) -> RoundRecord:
        outcome = self._attempt(round)
        if round < self._last:  # the exits train while this round is evaluated and stored
            self._method.begin(outcome.state, round + 1)
        started = time.perf_counter()
        val = None
        if self._peers.first and self._dataset.count("val"):
            self._bound.load(self._method.evaluated(outcome.state))
            val = evaluate(self._bound, self._batches.evaluate("val"))
        evaluated = time.perf_counter()
        record = self._record(round, outcome, val, evaluated - started)
        if self._peers.first:
            notes = self._save(record, outcome.state, run_id)
            self._storage.log(record)
            record = replace(record, notes=(*record.notes, *notes))
        self._state, self._round, self._path = outcome.state, round, record.checkpoint
        self._writing_s = time.perf_counter() - evaluated
        record = replace(record, seconds={**record.seconds, "checkpoint": self._writing_s})
        self._history.append(record)
        return record

    def _attempt(self, round: int) -> RoundOutcome:
        """Train the round; if it diverges and may be skipped, the outcome is where it started from."""
        before = {} if self._config.on_divergence == "stop" else self._method.arrays()
        started = time.perf_counter()
        try:
            outcome = self._method.run(self._state, round)
            state = outcome.state
            if bad := not_finite(self._bound.space, as_tensor(state.vector), state.buffers):
                raise NonFiniteError(
                    f"round {round}: the weights became infinite or NaN: {bad}; nothing was stored; "
                    "lower optim.lr"
                )
            return outcome
        except NonFiniteError as error:
            skipped = self._history.skipped
            if self._config.on_divergence == "stop":
                raise NonFiniteError(
                    f"{error}; --on-divergence skip-round continues without such rounds"
                ) from error
            if skipped >= self._config.max_skipped_rounds:
                raise NonFiniteError(
                    f"{error}; as many rounds in a row as allowed were skipped before: {skipped}"
                ) from error
            note = f"round {round} skipped, the network is as it was before: {error}"
        self._method.restore(before)
        unknown = ExitScore((math.nan,) * self._exits, (math.nan,) * self._exits)
        seconds = {"train": time.perf_counter() - started}
        return RoundOutcome(self._state, unknown, seconds, notes=(note,), skipped=True)

    def _record(
        self, round: int, outcome: RoundOutcome, val: ExitScore | None, evaluate_s: float
    ) -> RoundRecord:
        config = self._config
        factor = decay_factor(round, config.rounds, config.optim)
        passes, operations = self._spent(round)
        return RoundRecord(
            round=round,
            rounds=config.rounds,
            training_passes=passes,
            lr=config.optim.lr * factor,
            fusion_lr=config.fusion.lr * factor,
            train=outcome.train,
            val=val,
            seconds={**outcome.seconds, "evaluate": evaluate_s},
            checkpoint=self._storage.path(round),
            fusion=outcome.fusion,
            notes=outcome.notes,
            skipped=outcome.skipped,
            training_operations=operations,
        )

    def _spent(self, rounds: int) -> tuple[float, int]:
        """Training passes and operations of so many rounds; one that was skipped has cost as much."""
        costs = [cost.operations for cost in self._costs]
        images = self._dataset.counts()
        operations = self._method.operations(costs, images, rounds)
        return operations / (images["train"] * JointSGD.operations(costs)), operations

    def _save(self, record: RoundRecord, state: NetworkState, run_id: str) -> tuple[str, ...]:
        """Write the checkpoint of ``record``'s round; it can't yet know how long its own writing takes."""
        meta = {
            "config": to_dict(self._config),
            "run_id": run_id,
            "tensors": list(self._bound.space.names),
            "shapes": [list(slot.shape) for slot in self._bound.space.slots],
            "input": asdict(self._dataset.spec),
            "history": self._history.followed_by(record),
        }
        return self._storage.save(Checkpoint(record.round, state, self._method.arrays(), meta))

    def _write_model(self, state: NetworkState) -> None:
        """The network's two files, with thresholds read off the validation images if there are any."""
        checkpoint = Checkpoint(self._round, state, {}, {})
        run = LoadedRun(self._config, self._dataset, self._bound, self._batches, checkpoint)
        table = None
        try:
            if self._dataset.count("val"):
                table = run.thresholds()
        except NonFiniteError as error:
            self._notify(f"no thresholds: {error}")
        for name, content in model_files(run, table).items():
            self._storage.write(name, content)

    def _summary(self, end: RunEnd) -> dict[str, Any]:
        """``end`` with what it is the end of."""
        config = self._config
        return {
            "name": config.storage.name,
            "run_id": self._run_id,
            "method": config.method,
            "network": config.model.name,
            "data": self._dataset.name,
            "test_accuracy": end.test.accuracy,
            "test_loss": end.test.loss,
            "operations": [cost.operations for cost in self._costs],
            "parameters": [cost.parameters for cost in self._costs],
            **{name: value for name, value in asdict(end).items() if name != "test"},
            "software": software(self._bound.compute.device),
        }

    @contextmanager
    def _working(self, doing: str) -> Iterator[None]:
        """The driver's number of threads inside; lack of memory names the driver and what it was doing."""
        config = self._config
        known = f"batches of {config.batch_size} images, {config.eval_batch_size} in evaluation"
        who = f"the driver, {doing},"
        with torch_threads(config.resources.driver_cpus), naming_out_of_memory(who, known):
            yield
