"""A round in which something is not finite: never stored, named, and left out on request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_network
from tiny_network import dataset, run_config

from raygf.config.run import OptimConfig, RunConfig
from raygf.errors import NonFiniteError
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import load_checkpoint
from raygf.training.exit_trainer import LocalExecutor, Trained
from raygf.training.network import NetworkState

ROUNDS = 5


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr("raygf.rounds.driver.load_data", lambda config, seed: dataset(val=config.val))


def config(path, method: str = "metagf", carry: bool = False, **changes) -> RunConfig:
    base = run_config(path=str(path), method=method, rounds=ROUNDS, on_divergence="skip-round")
    optim = OptimConfig(carry_momentum=carry)
    return replace(base, data=replace(base.data, val=8), optim=optim, **changes)


def resumed(run: RunConfig) -> RunConfig:
    return replace(run, storage=replace(run.storage, resume=True))


def make(run: RunConfig, executor=LocalExecutor) -> Driver:
    return Driver(run, lambda *args: executor(*args[:2]))


def spoil(driver: Driver, bad: tuple[int, ...], what: str = "vector") -> None:
    """Rounds ``bad`` end with a NaN, after the method has changed all that it keeps."""
    train = driver._method.run

    def run(state, round):
        outcome = train(state, round)
        if round not in bad:
            return outcome
        vector, buffers = outcome.state.vector.copy(), dict(outcome.state.buffers)
        if what == "vector":
            vector[100:103] = np.nan
        else:
            buffers[what] = buffers[what] * np.inf
        return replace(outcome, state=NetworkState(vector, buffers))

    driver._method.run = run


def drive(run: RunConfig, bad: tuple[int, ...] = (), jump: tuple[int, ...] = ()):
    """The records and the hash in the end. ``jump``: rounds that are left out by hand."""
    driver = make(run)
    try:
        driver.prepare()
        spoil(driver, bad)
        records = []
        for record in driver.rounds("id"):
            records.append(record)
            if record.round + 1 in jump:
                driver._round += 1
        return records, driver.end().weights_sha256
    finally:
        driver.close()


KINDS = [("metagf", False), ("metagf", True), ("sgd", False), ("delta-mean", False)]


@pytest.mark.parametrize(("method", "carry"), KINDS)
def test_a_skipped_round_leaves_no_trace_but_its_number(tmp_path, method, carry):
    """The bits are those of a run in which nothing was trained in that round."""
    records, skipped = drive(config(tmp_path / "a", method, carry), bad=(3,))
    assert [record.round for record in records] == [1, 2, 3, 4, 5]
    assert [record.skipped for record in records] == [False, False, True, False, False]
    _, left_out = drive(config(tmp_path / "b", method, carry), jump=(3,))
    _, undisturbed = drive(config(tmp_path / "c", method, carry))
    assert skipped == left_out != undisturbed


@pytest.mark.parametrize(("method", "carry"), KINDS)
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_with_a_skipped_round_is_resumed_to_the_same_bits(tmp_path, method, carry, stop):
    _, expected = drive(config(tmp_path / "a", method, carry), bad=(1, 3))
    run = config(tmp_path / "b", method, carry)
    drive(replace(run, stop_after=stop), bad=(1, 3))
    records, found = drive(resumed(run), bad=(1, 3))
    assert records[0].round == stop + 1
    assert found == expected


def test_the_record_and_the_checkpoint_say_what_was_skipped(tmp_path):
    run = config(tmp_path)
    run = replace(run, storage=replace(run.storage, keep=9))
    records, _ = drive(run, bad=(2,))
    one, two = (load_checkpoint(record.checkpoint) for record in records[:2])
    assert two.network.sha256() == one.network.sha256()
    assert all((two.method[name] == one.method[name]).all() for name in one.method)
    assert records[1].val == records[0].val
    assert np.isnan(records[1].train.loss).all() and records[1].fusion is None
    (note,) = records[1].notes
    assert note.startswith("round 2 skipped, the network is as it was before: round 2: the weights became ")
    assert "stages.1.0.weight (3 of 144 values)" in note
    entries = load_checkpoint(records[4].checkpoint).meta["history"]
    assert [entry.get("skipped", False) for entry in entries] == [False, True, False, False, False]
    assert entries[1]["train"]["loss"] == [None] * 3
    assert records[4].training_passes == 20  # the skipped one has cost as much as the others


def test_without_the_option_the_run_stops_and_says_that_there_is_one(tmp_path):
    with pytest.raises(NonFiniteError, match=r"^round 3: .*--on-divergence skip-round"):
        drive(config(tmp_path, on_divergence="stop"), bad=(3,))
    kept = sorted(path.name for path in (tmp_path / "run").glob("*.npz"))
    assert kept == ["round-000001.npz", "round-000002.npz"]


def test_a_stopped_run_may_go_on_with_the_option(tmp_path):
    run = config(tmp_path / "a", on_divergence="stop")
    with pytest.raises(NonFiniteError):
        drive(run, bad=(3,))
    _, found = drive(resumed(replace(run, on_divergence="skip-round")), bad=(3,))
    assert found == drive(config(tmp_path / "b"), bad=(3,))[1]


def test_not_for_ever(tmp_path):
    run = config(tmp_path, max_skipped_rounds=2)
    with pytest.raises(NonFiniteError, match=r"^round 4: .*as many rounds in a row .* skipped before: 2$"):
        drive(run, bad=(2, 3, 4, 5))
    with pytest.raises(NonFiniteError, match="skipped before: 2"):  # nor again and again by resuming
        drive(resumed(run), bad=(4, 5))
    assert sorted(path.name for path in (tmp_path / "run").glob("*.npz"))[-1] == "round-000003.npz"


def test_rounds_that_are_not_in_a_row_do_not_add_up(tmp_path):
    records, _ = drive(config(tmp_path, max_skipped_rounds=1), bad=(1, 3, 5))
    assert [record.skipped for record in records] == [True, False, True, False, True]


def test_a_delta_that_is_not_finite_is_named_before_anything_is_merged(tmp_path):
    class Overflowing(LocalExecutor):
        def train(self, state, round, momenta):
            trained = super().train(state, round, momenta)
            delta = trained.updates[1].delta.copy()
            delta[-2:] = np.inf
            update = replace(trained.updates[1], delta=delta)
            return Trained((trained.updates[0], update, trained.updates[2]), 0, 0, 0)

    driver = make(config(tmp_path, on_divergence="stop"), Overflowing)
    driver.prepare()
    fused = []
    driver._method._rule.fuse = lambda *args, **kwargs: fused.append(args)
    last = tiny_network.bind().space.names[-1]
    says = rf"^metagf, exit 2, round 1: its delta is not finite: {last} \(2 of 3 values\); nothing was merged"
    with pytest.raises(NonFiniteError, match=says):
        list(driver.rounds("id"))
    driver.close()
    assert fused == [] and list((tmp_path / "run").iterdir()) == []


def test_statistics_of_batchnorm_are_looked_at_too(tmp_path):
    driver = make(config(tmp_path, on_divergence="stop"))
    driver.prepare()
    name = next(n for n, array in driver._state.buffers.items() if n.endswith("running_var"))
    spoil(driver, (1,), name)
    with pytest.raises(NonFiniteError, match=f"round 1: the weights became infinite or NaN: {name} "):
        list(driver.rounds("id"))
    driver.close()
