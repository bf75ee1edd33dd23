"""A round in which something is not finite: never stored, named, and skipped on request."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_network import run_config
from torch.utils.flop_counter import FlopCounterMode

from raygf.config.run import OptimConfig
from raygf.errors import NonFiniteError
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import load_checkpoint
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.network import NetworkState

ROUNDS = 5


def config(path, method="metagf", carry=False, **changes):
    base = run_config(path=str(path), method=method, rounds=ROUNDS, on_divergence="skip-round")
    optim = OptimConfig(carry_momentum=carry, ema=1.5)
    return replace(base, data=replace(base.data, val=8), optim=optim, **changes)


def resumed(run):
    return replace(run, storage=replace(run.storage, resume=True))


def make(run):
    return Driver(run, lambda *args: LocalExecutor(*args[:2]))


def spoil(driver, bad, what="vector"):
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


def counted(path, method):
    """Operations of a round as PyTorch counts them, of convolutions and matrix products; training passes."""
    driver = make(config(path, method))
    driver.prepare()
    with FlopCounterMode(display=False) as counter:
        driver._method.run(driver._state, 1)
    driver.close()
    return counter.get_total_flops(), driver._spent(1)[0]


@pytest.mark.parametrize("method", ["ge", "dfs", "pcgrad", "delta-mean", "metagf"])
def test_a_round_takes_the_operations_that_are_counted_for_it(tmp_path, method):
    operations, passes = counted(tmp_path / "a", method)
    assert operations / counted(tmp_path / "b", "sgd")[0] == pytest.approx(passes, rel=0.1)


def drive(run, bad=(), jump=()):
    """The records and the hash in the end. ``jump``: rounds that are left out by hand."""
    driver = make(run)
    try:
        driver.prepare()
        spoil(driver, bad)
        records = []
        if 1 in jump:
            driver._round = 1
        for record in driver.rounds("id"):
            records.append(record)
            if record.round + 1 in jump:
                driver._round += 1
        return records, driver.end().weights_sha256
    finally:
        driver.close()


@pytest.mark.parametrize(
    ("method", "carry"), [("metagf", False), ("metagf", True), ("sgd", False), ("delta-mean", False)]
)
def test_a_skipped_round_leaves_no_trace_but_its_number(tmp_path, method, carry):
    """The bits are those of a run in which nothing was trained in that round, also after a resume."""
    records, skipped = drive(config(tmp_path / "a", method, carry), bad=(1, 3))
    assert [record.round for record in records] == [1, 2, 3, 4, 5]
    assert [record.skipped for record in records] == [True, False, True, False, False]
    _, left_out = drive(config(tmp_path / "b", method, carry), jump=(1, 3))
    _, undisturbed = drive(config(tmp_path / "c", method, carry))
    run = config(tmp_path / "d", method, carry)
    drive(replace(run, stop_after=3), bad=(1, 3))
    resumed_records, after_resume = drive(resumed(run), bad=(1, 3))
    assert resumed_records[0].round == 4
    assert skipped == left_out == after_resume != undisturbed


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


def test_a_stopped_run_may_go_on_with_the_option(tmp_path):
    run = config(tmp_path / "a", on_divergence="stop")
    with pytest.raises(NonFiniteError):
        drive(run, bad=(3,))
    _, found = drive(resumed(replace(run, on_divergence="skip-round")), bad=(3,))
    assert found == drive(config(tmp_path / "b"), bad=(3,))[1]


@pytest.mark.parametrize("what", ["vector", "stages.1.1.running_var"])
def test_without_the_option_the_run_stops_and_says_that_there_is_one(tmp_path, what):
    driver = make(config(tmp_path, on_divergence="stop"))
    driver.prepare()
    spoil(driver, (3,), what)
    layer = "stages.1.0.weight" if what == "vector" else what
    with pytest.raises(NonFiniteError, match=f"^round 3: .* NaN: {layer} .*--on-divergence skip-round"):
        list(driver.rounds("id"))
    driver.close()
    kept = sorted(path.name for path in (tmp_path / "run").glob("*.npz"))
    assert kept == ["round-000001.npz", "round-000002.npz"]


def test_only_so_many_rounds_in_a_row_are_skipped(tmp_path):
    run = config(tmp_path / "a", max_skipped_rounds=2)
    with pytest.raises(NonFiniteError, match=r"^round 4: .*as many rounds in a row .* skipped before: 2$"):
        drive(run, bad=(2, 3, 4, 5))
    with pytest.raises(NonFiniteError, match="skipped before: 2"):  # nor again and again by resuming
        drive(resumed(run), bad=(4, 5))
    assert sorted(path.name for path in (tmp_path / "a/run").glob("*.npz"))[-1] == "round-000003.npz"
    records, _ = drive(config(tmp_path / "b", max_skipped_rounds=1), bad=(1, 3, 5))
    assert [record.skipped for record in records] == [True, False, True, False, True]
