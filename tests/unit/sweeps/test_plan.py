"""A sweep's plan, its folder, and what trials are compared and made by."""

from dataclasses import replace

import pytest
from sweep_parts import plan, record

from raygf.cli import parse
from raygf.config.fields import override
from raygf.config.recipes import at_equal_compute, get_recipe
from raygf.config.run import StorageConfig
from raygf.errors import ConfigError, StorageError
from raygf.sweeps.plan import (
    OURS,
    PASSES,
    SweepFolder,
    SweepOptions,
    check_metric,
    flags_for,
    name_of,
    shown_score,
)
from raygf.tracking.mlflow_run import round_metrics

RUN = get_recipe("digits")


@pytest.mark.parametrize("rounds", [4, 7, 160])
@pytest.mark.parametrize("method", ["sgd", "metagf", "delta-mean", "pcgrad", "my:own"])
def test_no_trial_gets_more_than_the_budget_or_a_round_less(method, rounds):
    own = {"my:own": 450}
    cost = {"sgd": 1, "metagf": 4, "delta-mean": 3 + 1 / 3, "pcgrad": 260 / 180, "my:own": 2.5}[method]
    made = plan(replace(RUN, method="sgd", rounds=rounds), own=own)
    spent = made.trial_run("a", {"method": method}).rounds * cost
    assert made.budget == rounds and rounds - cost < spent <= rounds
    same = plan(replace(RUN, method=method, rounds=rounds), own=own)
    assert same.budget == pytest.approx(rounds * cost) and same.trial_run("a", {}).rounds == rounds
    short, shown = plan(replace(RUN, method="sgd", rounds=1), own=own), f"{cost:.1f}".removesuffix(".0")
    if method != "sgd":
        with pytest.raises(ConfigError, match=rf"gets 1 training .* one round of {method} \({shown}\)"):
            short.trial_run("a", {"method": method})


def test_a_trials_run_has_equal_compute_its_values_a_place_and_actors_where_exits_are_trained():
    made = plan()
    assert (made.budget, made.trial_run("a", {}).rounds) == (160, 40)
    assert made.trial_run("a", {"method": "sgd"}).rounds == at_equal_compute(RUN, 160).rounds == 160
    run = made.trial_run("ab_00001", {"fusion.lr": 0.3}, "/scratch")
    assert (run.fusion.lr, run.resources.actors) == (0.3, 2)
    assert run.storage == StorageConfig("/scratch", "ab_00001")
    assert made.trial_run("ab_00001", {}).storage.path == "/runs"
    assert made.exit_bundles({}) == made.exit_bundles({"method": "delta-pcgrad"}) == 2
    assert made.exit_bundles({"method": "pcgrad"}) == 0


@pytest.mark.parametrize("steps", [1, 5, 7, 12, 64])
def test_trials_with_rounds_of_any_length_get_as_much_and_no_more(steps):
    made = plan()
    for values in ({}, {"method": "sgd"}, {"fusion.outer": "nesterov"}, {"fusion.objective": "val"}):
        run = made.trial_run("a", {"round_steps": steps, **values})
        assert made.passes(run, run.rounds) <= made.budget < made.passes(run, run.rounds + 1)
    assert made.trial_run("a", {"round_steps": steps, "method": "sgd"}).rounds == 160 * 12 // steps
    assert at_equal_compute(replace(RUN, round_steps=steps), 160) == at_equal_compute(RUN, 160)


def test_what_can_be_optimised_is_among_the_metrics_of_a_round_and_scores_are_readable():
    metrics = round_metrics(record(3, accuracy=(0.5, 0.75)))
    for kind in ("val_accuracy", "val_loss"):
        for whose in ("average", "exit_1", "exit_2"):
            check_metric(f"{kind}/{whose}", "max", exits=2)
            assert f"{kind}/{whose}" in metrics
    assert metrics[PASSES] == 12.0
    assert shown_score("val_accuracy/average", 0.91237) == "91.24 %"
    assert shown_score("val_loss/exit_1", 0.51237) == "0.5124"


@pytest.mark.parametrize(
    ("metric", "mode", "says"),
    [
        *((name, "max", "metric = ") for name in ("test_accuracy/average", "val_accuracy/exit_0", "")),
        ("val_accuracy/exit_7", "max", "the network has 3 exits"),
        ("val_accuracy/average", "best", "mode = 'best': must be max or min"),
    ],
)
def test_nothing_but_validation_can_be_optimised(metric, mode, says):
    with pytest.raises(ConfigError, match=says):
        check_metric(metric, mode, exits=3)


def test_fields_are_set_by_their_dotted_names_and_nothing_else_changes():
    made = override(RUN, {"fusion.lr": 1, "batch_size": 8, "model.msdnet.growth": 4})
    model = replace(RUN.model, msdnet=replace(RUN.model.msdnet, growth=4))
    assert made == replace(RUN, batch_size=8, fusion=replace(RUN.fusion, lr=1.0), model=model)
    assert isinstance(made.fusion.lr, float)
    assert override(RUN, {"optim.milestones": [0.3]}).optim.milestones == (0.3,)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("fusion.lrr", 0.1, "fusion.lrr: a run has no such field"),
        ("lr", 0.1, "lr: a run has no such field; there is optim.lr and fusion.lr"),
        ("fusion", 0.1, "fusion: a run has no such field"),
        ("fusion.lr.high", 0.1, "fusion.lr.high: a run has no such field"),
        ("fusion.lr", -1.0, "fusion.lr = -1.0: must be a finite number at least 0"),
        ("fusion.segments", "galaxy", "fusion.segments = 'galaxy': must be one of tensor, channel, block"),
    ],
)
def test_unknown_fields_and_refused_values(name, value, says):
    with pytest.raises(ConfigError) as caught:
        override(RUN, {name: value})
    assert says in str(caught.value)


def test_flags_set_the_same_run_on_the_command_line():
    optim = {"optim.milestones": (0.3, 0.6), "optim.carry_momentum": True}
    values = {"fusion.lr": 0.0316, **optim, "method": "sgd"}
    flags = flags_for(values)
    assert flags.startswith("--fusion.lr 0.0316 --optim.milestones 0.3 0.6 --optim.carry-momentum True")
    assert parse("", "digits", flags.split())[1] == override(RUN, values)


def test_a_trial_is_called_what_it_sets():
    values = {"fusion.lr": 0.083, "fusion.ema": 0.95, "optim.milestones": (0.5, 0.75), "method": "sgd"}
    assert name_of(values) == "fusion.lr=0.083 fusion.ema=0.95 optim.milestones=0.5,0.75 method=sgd"
    assert name_of({"optim.lr": 0.1}) == "optim.lr=0.1"
    assert len(name_of({"model.name": 300 * "x"})) == 200


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(StorageConfig(str(tmp_path), "sweep"))


def test_a_plan_is_kept_whole_and_found_where_it_lies_now(tmp_path):
    run = replace(RUN, optim=replace(RUN.optim, milestones=(0.2, 0.4)))
    options = SweepOptions(trials=3, grace=5)
    made = plan(run, path=str(tmp_path / "a"), options=options, parent="run", mode="min")
    folder = SweepFolder(made.run.storage)
    assert not folder.has_plan()
    with folder.held():
        folder.write_plan(made)
    assert folder.has_plan() and folder.read_plan() == made
    (tmp_path / "a").rename(tmp_path / "b")
    moved = StorageConfig(str(tmp_path / "b"), "sweep")
    assert SweepFolder(moved).read_plan().run.storage == moved


def test_tune_has_begun_once_it_has_written_its_state(tmp_path, folder):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "tuner.pkl").touch()
    assert not folder.has_trials()
    (tmp_path / "sweep" / "experiment_state-2026-01-02_03-04-05.json").touch()
    assert folder.has_trials()


def test_one_sweep_holds_a_folder_and_nothing_of_raygf_lies_where_tune_copies_files(tmp_path):
    folder = SweepFolder(StorageConfig(f"file://{tmp_path}", "sweep"))
    with folder.held():
        folder.write_plan(plan())
        assert folder.read_trials() == {}
        folder.write_trials({"b": "run1", "a": ""})
        assert folder.write("results.csv", b"1") == f"file://{tmp_path}/sweep/{OURS}/results.csv"
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [OURS]
    assert folder.of_trial("x") == f"file://{tmp_path}/sweep/x"
    assert SweepFolder(StorageConfig(str(tmp_path), "sweep")).has_plan()
    assert list(folder.read_trials().items()) == [("b", "run1"), ("a", "")]
    with folder.held(), pytest.raises(StorageError, match="in use by another run"), folder.held():
        pytest.fail("let in")


def test_what_is_no_sweep_is_an_error_of_one_line(tmp_path, folder):
    with pytest.raises(StorageError, match=r"there is no sweep in .*/sweep: check --storage\.path and"):
        folder.read_plan()
    (tmp_path / "sweep" / OURS).mkdir(parents=True)
    (tmp_path / "sweep" / OURS / "sweep.yaml").write_text("a: [")
    with pytest.raises(StorageError, match=r"sweep\.yaml can't be read"):
        folder.read_plan()
    (tmp_path / "file").touch()
    blocked = SweepFolder(StorageConfig(str(tmp_path / "file"), "sweep"))
    with pytest.raises(StorageError, match=r"storage\.path: can't write to .*file/sweep"), blocked.held():
        pytest.fail("let in")
