from dataclasses import replace
from pathlib import Path

import pytest
import tiny_network
import torch
from tiny_network import CPU, bind, dataset, run_config

from raygf.cli import parse
from raygf.compute import resolve_compute
from raygf.config.run import FusionConfig, LossConfig, OptimConfig
from raygf.errors import CheckpointError, ConfigError, NonFiniteError, StorageError
from raygf.evaluation.outputs import evaluate
from raygf.methods.registry import method_names
from raygf.models.build import build_model
from raygf.records import read_history, wall_time
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import load_checkpoint
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.network import BoundNetwork

ROUNDS = 3


def config(path, method="metagf", **changes):
    base = run_config(path=str(path), method=method, rounds=ROUNDS)
    return replace(base, data=replace(base.data, val=8), **changes)


def storage(run, **changes):
    return replace(run, storage=replace(run.storage, **changes))


def resumed(run):
    return storage(run, resume=True)


def drive(run):
    driver = Driver(run, lambda *args: LocalExecutor(*args[:2]))
    try:
        start = driver.prepare()
        return start, list(driver.rounds("id-1")), driver.end()
    finally:
        driver.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """SHA-256 of the weights after all rounds, by method and carried momentum."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raygf.rounds.driver.load_data", lambda config, seed: dataset(val=config.val))
        for method, carry in (("metagf", False), ("metagf", True), ("sgd", False)):
            run = config(tmp_path_factory.mktemp("x"), method, optim=OptimConfig(carry_momentum=carry))
            found[method, carry] = drive(run)[2].weights_sha256
    return found


def test_short_rounds_count_their_images_and_resume_in_the_midst_of_an_epoch(tmp_path):
    """Five batches of 4 images an epoch; 3 exits and the pass, and forward once more after the outer step."""
    fusion = FusionConfig(outer="momentum", objective="val")
    run = config(tmp_path / "a", round_steps=2, rounds=4, fusion=fusion)
    _, records, end = drive(run)
    spent = [record.training_passes for record in records]
    assert spent == pytest.approx([number * 8 / 20 * (3 + 1 + 1 / 3) for number in (1, 2, 3, 4)])
    other = storage(run, path=str(tmp_path / "b"))
    drive(replace(other, stop_after=3))
    assert drive(resumed(other))[2].weights_sha256 == end.weights_sha256
    with pytest.raises(ConfigError, match="needs validation images"):
        drive(replace(storage(run, name="c"), data=replace(run.data, val=0)))


def test_a_whole_run(tmp_path):
    start, records, end = drive(config(tmp_path))
    assert (start.round, start.run_id, start.classes) == (0, "", 3)
    assert (start.train_images, start.val_images, start.test_images) == (20, 8, 9)
    assert start.parameters == (59, 59 + 167, 59 + 2 * 167)
    assert start.tensors == bind().space.names
    assert [record.round for record in records] == [1, 2, 3]
    assert [record.training_passes for record in records] == [4, 8, 12]
    assert all(record.fusion is not None and len(record.val.accuracy) == 3 for record in records)
    phases = {"broadcast", "train", "wait", "fuse", "evaluate", "checkpoint"}
    assert all(set(record.seconds) == phases for record in records)
    assert (end.rounds, end.training_passes, end.finished) == (3, 12, True)
    a_round = 20 * 4 * 3 * start.operations[-1]  # images; exits and fusion; forward and backward
    spent = [each.training_operations for each in (*records, end)]
    assert spent == [a_round, 2 * a_round, 3 * a_round, 3 * a_round]
    assert end.checkpoint == records[-1].checkpoint == f"{tmp_path}/run/round-000003.npz"


@pytest.mark.parametrize(
    ("method", "batchnorm"),
    [
        *((name, "recalibrated") for name in method_names()),
        ("metagf", "weighted"),
        ("delta-mean", "weighted"),
        ("delta-ties", "weighted"),
    ],
)
def test_every_method_learns_and_equal_runs_give_equal_bits(tmp_path, method, batchnorm):
    fusion = FusionConfig(batchnorm=batchnorm)
    runs = [drive(config(tmp_path / name, method, fusion=fusion)) for name in ("a", "b")]
    (_, records, one), (_, _, two) = runs
    losses = [record.fusion.loss if record.fusion else sum(record.train.loss) for record in records]
    assert losses[-1] < losses[0]
    assert one.weights_sha256 == two.weights_sha256


@pytest.mark.parametrize(("method", "carry"), [("metagf", False), ("metagf", True), ("sgd", False)])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path, undisturbed, method, carry, stop):
    run = config(tmp_path, method, optim=OptimConfig(carry_momentum=carry))
    _, before, half = drive(replace(run, stop_after=stop))
    assert (half.rounds, half.finished) == (stop, stop == ROUNDS)
    start, after, end = drive(resumed(run))
    assert start.round == stop and start.run_id == "id-1" and start.notes == ()
    assert [record.round for record in before + after] == [1, 2, 3]
    assert end.weights_sha256 == undisturbed[method, carry]
    assert end == half or stop < ROUNDS  # a finished run does nothing and says the same


@pytest.mark.parametrize(("method", "optimizer"), [("sgd", "adamw"), ("metagf", "sgd")])
def test_the_average_is_evaluated_and_handed_on_and_training_goes_on_without_it(tmp_path, method, optimizer):
    optim = OptimConfig(0.01, optimizer=optimizer, ema=1.5)
    run = config(tmp_path / "a", method, optim=optim)
    drive(replace(run, stop_after=1))
    _, records, end = drive(resumed(run))
    stored, (bound, batches) = load_checkpoint(end.checkpoint), (bind(), dataset().open(CPU, 4, 5))
    assert end.weights_sha256 == stored.evaluated.sha256() != stored.network.sha256()
    assert end.weights_sha256 == drive(storage(run, path=str(tmp_path / "b")))[2].weights_sha256
    without = config(tmp_path / "c", method, optim=replace(optim, ema=0.0))
    assert drive(without)[2].weights_sha256 == stored.network.sha256()
    bound.load(stored.evaluated)
    assert end.test == evaluate(bound, batches.evaluate("test"))
    assert records[-1].val == evaluate(bound, batches.evaluate("val"))
    for path in (end.checkpoint, f"{tmp_path}/a/run/model.safetensors"):
        network = build_model(replace(run.model, weights=path), dataset().spec, seed=7)
        assert BoundNetwork(network, CPU).state().sha256() == end.weights_sha256


@pytest.mark.parametrize("method", ["sgd", "pcgrad", "metagf"])
def test_mixed_images_go_with_every_kind_of_method_with_shares_and_with_distillation(tmp_path, method):
    run = config(tmp_path / "a", method, stop_after=1, loss=LossConfig(distill=True, smoothing=0.1))
    run = replace(run, resources=replace(run.resources, replicas=(2,)), fusion=FusionConfig(shards=2))
    run = replace(run, data=replace(run.data, mixup=0.3, cutmix=1.0))
    again = storage(run, path=str(tmp_path / "b"))
    assert drive(run)[2].weights_sha256 == drive(again)[2].weights_sha256


@pytest.mark.parametrize("path", ["run", "run/round-000003.npz", "run/model.safetensors"])
def test_another_run_starts_from_the_weights_of_a_run(tmp_path, path):
    run = config(tmp_path, "sgd")
    weights = drive(run)[2].weights_sha256
    network = build_model(replace(run.model, weights=str(tmp_path / path)), dataset().spec, seed=7)
    assert BoundNetwork(network, resolve_compute(run.compute)).state().sha256() == weights


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_newest_checkpoint_costs_one_round(tmp_path, undisturbed, damage):
    run = replace(config(tmp_path), optim=OptimConfig())
    path = Path(drive(replace(run, stop_after=2))[2].checkpoint)
    path.with_name("round-000003.npz.part").write_bytes(b"half")  # ignored
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 999}[damage])
    start, records, end = drive(resumed(run))
    assert start.round == 1
    assert len(start.notes) == 1 and "round-000002.npz" in start.notes[0]
    assert [record.round for record in records] == [2, 3]
    assert end.weights_sha256 == undisturbed["metagf", False]


def test_a_folder_with_checkpoints_is_refused_without_resume_and_one_without_them_is_no_error(tmp_path):
    run = config(tmp_path, stop_after=1)
    start, records, _ = drive(resumed(run))
    assert start.round == 0 and len(records) == 1
    assert len(start.notes) == 1 and "starting from the first round" in start.notes[0]
    with pytest.raises(StorageError, match=r"run holds checkpoints already: .*--storage\.resume") as error:
        drive(run)
    words = next(word for word in str(error.value).split() if word.startswith("--storage.resume"))
    assert parse("", "digits", [words, "True"])[1].storage.resume is True  # what people are told to type


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": OptimConfig(lr=0.2)}, r"optim\.lr was 0\.1, is now 0\.2"),
        ({"method": "sgd"}, r"method was 'metagf', is now 'sgd'"),
        ({"optim": OptimConfig(milestones=(0.5,))}, r"optim\.milestones was \[0\.5, 0\.75\]"),
    ],
)
def test_another_configuration_is_refused_by_field(tmp_path, changes, message):
    run = replace(config(tmp_path), optim=OptimConfig())
    drive(replace(run, stop_after=1))
    with pytest.raises(CheckpointError, match=f"can't resume with another configuration: .*{message}"):
        drive(resumed(replace(run, **changes)))


def test_what_does_not_change_the_result_may_change_on_resume(tmp_path, undisturbed):
    run = replace(config(tmp_path), optim=OptimConfig())
    drive(replace(run, stop_after=1))
    other = replace(
        storage(run, keep=1, resume=True),
        eval_batch_size=3,
        resources=replace(run.resources, max_failures=0),
        tracking=replace(run.tracking, experiment="another"),
    )
    assert drive(other)[2].weights_sha256 == undisturbed["metagf", False]


def test_both_rates_decay(tmp_path):
    run = replace(config(tmp_path), rounds=4, fusion=replace(run_config().fusion, lr=0.5))
    records = drive(run)[1]
    assert [(record.rounds, record.lr) for record in records] == [
        (4, pytest.approx(rate)) for rate in (0.1, 0.1, 0.01, 0.001)
    ]
    assert [record.fusion_lr for record in records] == pytest.approx([0.5, 0.5, 0.05, 0.005])


def test_a_checkpoint_is_complete(tmp_path):
    run = replace(config(tmp_path, stop_after=2), optim=OptimConfig(carry_momentum=True))
    _, records, end = drive(run)
    checkpoint = load_checkpoint(end.checkpoint)
    assert checkpoint.round == 2
    assert checkpoint.network.sha256() == end.weights_sha256
    assert set(checkpoint.method) == {
        "eta",
        "eta_fitted",
        "adam_first",
        "adam_second",
        "adam_steps",
        *(f"momentum_{exit}" for exit in range(3)),
    }
    assert checkpoint.meta["run_id"] == "id-1"
    assert checkpoint.meta["config"]["optim"]["carry_momentum"] is True
    assert checkpoint.meta["tensors"] == list(bind().space.names)
    assert [Path(record.checkpoint).name for record in records] == ["round-000001.npz", "round-000002.npz"]


@pytest.mark.parametrize("method", ["metagf", "sgd"])
def test_every_checkpoint_holds_the_history_up_to_its_round(tmp_path, method):
    """The rounds before a resume included."""
    run = storage(config(tmp_path, method), keep=3)
    (_, first, _), (_, second, end) = drive(replace(run, stop_after=2)), drive(resumed(run))
    records = first + second
    for record in records:
        history = read_history(load_checkpoint(record.checkpoint).meta)
        assert [entry["round"] for entry in history] == list(range(1, record.round + 1))
        assert history[-1]["training_passes"] == record.training_passes
        assert history[-1]["val"]["accuracy"] == pytest.approx(record.val.accuracy, rel=1e-5)
        if record.fusion:
            before = record.fusion.conflict_before
            assert history[-1]["fusion"]["conflict_before"] == pytest.approx(before, rel=1e-5)
        untimed = [entry["round"] for entry in history if "checkpoint" not in entry["seconds"]]
        assert untimed == {1: [1], 2: [2], 3: [2, 3]}[record.round]  # a file can't time its own writing
    assert end.seconds == pytest.approx(wall_time(history), rel=1e-5)  # so an evaluation finds the same


def test_scores_are_those_of_the_stored_network(tmp_path):
    run = config(tmp_path / "a", "sgd", stop_after=1)
    _, records, end = drive(run)
    bound, data = bind(), dataset()
    bound.load(load_checkpoint(end.checkpoint).network)
    batches = data.open(bound.compute, 4, 5)
    assert end.test == evaluate(bound, batches.evaluate("test"))
    assert records[-1].val == evaluate(bound, batches.evaluate("val"))
    run = storage(replace(run, data=replace(run.data, val=0)), path=str(tmp_path / "b"))
    assert drive(run)[1][0].val is None


def test_a_lost_exit_merges_nothing(tmp_path):
    """The run ends with the executor's error; the round before stands."""
    run = config(tmp_path)

    class Failing(LocalExecutor):
        def train(self, state, round, momenta):
            if round == 2:
                raise NonFiniteError("exit 3, round 2")
            return super().train(state, round, momenta)

    driver = Driver(run, lambda config, data, exits: Failing(config, data))
    driver.prepare()
    with pytest.raises(NonFiniteError):
        list(driver.rounds("id"))
    driver.close()
    assert [path.name for path in (tmp_path / "run").glob("*.npz")] == ["round-000001.npz"]


def test_sdn_coefficients_need_exits_that_they_know(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_network, "eight", lambda spec: tiny_network._network(8, spec), raising=False)
    run = config(tmp_path, loss=LossConfig(coefficients="sdn"))
    run = replace(run, model=replace(run.model, name="tiny_network:eight"))
    with pytest.raises(ConfigError, match="supports at most 6 inner exits; this network has 7"):
        Driver(run, lambda *args: pytest.fail("too late")).prepare()


def test_threads_of_this_process_are_left_alone(tmp_path, monkeypatch):
    """The driver works with its own number of threads, and puts the old one back whenever it answers."""
    threads, seen = [1], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    run = config(tmp_path, "sgd", stop_after=1)
    driver = Driver(replace(run, resources=replace(run.resources, driver_cpus=5)), lambda *args: None)
    for step in (driver.prepare, lambda: list(driver.rounds("id")), driver.end):
        step()
        seen.append(threads[1:])
        threads[:] = threads[-1:]
    assert seen == [[5, 1]] * 3


def test_a_checkpoint_of_another_network_is_refused(tmp_path, monkeypatch):
    """The user's function may have changed under the same name."""
    run = config(tmp_path, "sgd", stop_after=1)
    drive(run)
    monkeypatch.setattr(tiny_network, "three_exits", tiny_network.one_exit)
    driver = Driver(resumed(run), lambda *args: pytest.fail("not needed"))
    with pytest.raises(CheckpointError, match="another network"):
        driver.prepare()
