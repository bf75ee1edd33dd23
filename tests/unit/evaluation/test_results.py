"""What is measured on a run, and which runs become one column."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from past_runs import entry, results, train
from tiny_network import run_config

from raygf.config.run import DataConfig, OptimConfig
from raygf.errors import ConfigError
from raygf.evaluation.loading import load_run
from raygf.evaluation.results import evaluate_run, group_runs

DIGITS = DataConfig("digits", val=0, train_limit=40, pad=0, flip=False)


def test_everything_measured_on_a_run(fused_checkpoint):
    run = load_run(fused_checkpoint)
    found = evaluate_run(load_run(fused_checkpoint))
    assert (found.round, found.run_id, found.training_passes) == (2, "", 8)
    assert found.top1 == run.outputs("test").top1 and found.top5 == run.outputs("test").top5
    assert [entry["round"] for entry in found.history] == [1, 2]
    assert found.tensors == run.bound.space.names
    assert found.operations == tuple(cost.operations for cost in run.costs())
    assert found.curve.accuracy.shape == (39,)
    assert found.importance.baseline == pytest.approx(found.top1)
    assert evaluate_run(run, with_importance=False).importance is None


def test_joint_training_has_no_importance_and_no_validation_no_curve(tmp_path):
    end = train(run_config(path=str(tmp_path), method="sgd", data=DIGITS, rounds=1))
    found = evaluate_run(load_run(end.checkpoint))
    assert found.importance is None and found.learned is None and found.curve is None
    assert found.training_passes == 1


@pytest.mark.parametrize(
    ("method", "passes"), [("mine:rule", 2), ("delta-mine:rule", 6), ("delta-mean", 6), ("dfs", 2)]
)
def test_passes_are_those_of_the_kind_of_method(method, passes):
    """A rule of the user's own counts as others do; the run has two exits and two rounds."""
    found = results()
    assert replace(found, config=replace(found.config, method=method)).training_passes == passes


def test_wall_time_is_unknown_where_rounds_are():
    assert math.isnan(results(history=[entry(2, 0.5)]).seconds)
    assert results().seconds == 5.0


def shown(groups):
    return [(group.label, group.seeds) for group in groups]


def test_seeds_of_one_configuration_are_one_group_by_ascending_seed():
    runs = [results("metagf", 3, name="a"), results("sgd", 0), results("metagf", 1, name="b")]
    assert shown(group_runs(runs)) == [("metagf", (1, 3)), ("sgd", (0,))]


def test_machines_and_names_do_not_matter_but_the_configuration_does():
    one, two = results(seed=0, name="a"), results(seed=1, name="b")
    moved = replace(two, config=replace(two.config, eval_batch_size=99))
    assert shown(group_runs([one, moved])) == [("sgd", (0, 1))]
    other = replace(two, config=replace(two.config, optim=OptimConfig(lr=0.5)))
    assert len(group_runs([one, other])) == 2
    assert shown(group_runs([two, one], ["its first label", "another"])) == [("its first label", (0, 1))]


def test_other_numbers_of_rounds_are_other_groups():
    labels = [group.label for group in group_runs([results(seed=0), results(seed=1, rounds=3)])]
    assert labels == ["sgd (run, round 2)", "sgd (run, round 3)"]


def test_a_seed_given_twice_is_no_second_seed():
    groups = group_runs([results(seed=0), results(seed=0), results(seed=1)], ["a", "b", "a"])
    assert shown(groups) == [("a", (0, 1)), ("b", (0,))]
    assert [group.label for group in group_runs([results(), results()])] == [
        "sgd (run, round 2) #1",
        "sgd (run, round 2) #2",
    ]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a"], "labels: 1 given for 2 checkpoints"),
        (["a", "b", "c"], "labels: 3 given for 2 checkpoints"),
        (["a", "a"], "labels: 'a' names 2 configurations"),
        (["a", " "], "a label is empty"),
    ],
)
def test_labels_that_do_not_fit(labels, says):
    with pytest.raises(ConfigError, match=says):
        group_runs([results("sgd"), results("metagf")], labels)
