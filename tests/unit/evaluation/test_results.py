"""What is measured on a run, and which runs become one column."""

import math
from dataclasses import replace

import pytest
from past_runs import entry, results, train
from tiny_network import run_config

from raygf.config.run import DataConfig, OptimConfig
from raygf.errors import ConfigError
from raygf.evaluation.budgeted import RESAMPLES
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
    assert found.noise.round == 2 and found.curve.resampled.shape == (RESAMPLES, 39)
    bare = evaluate_run(run, with_importance=False, with_noise=False)
    assert bare.importance is None and bare.noise is None


def test_joint_training_has_no_importance_and_no_validation_no_curve(tmp_path):
    end = train(run_config(path=str(tmp_path), method="sgd", data=DIGITS, rounds=1))
    found = evaluate_run(load_run(end.checkpoint))
    assert found.importance is found.learned is found.curve is found.noise is None
    assert (found.training_passes, found.training_operations) == (1, 40 * 3 * found.operations[-1])


def test_wall_time_is_unknown_where_rounds_are():
    assert math.isnan(results(history=[entry(2, 0.5)]).seconds)
    assert results().seconds == 5.0


ONE, TWO = results(seed=0, name="a"), results(seed=1, name="b")


def changed(run, **changes):
    return replace(run, config=replace(run.config, **changes))


@pytest.mark.parametrize(
    ("runs", "labels", "groups"),
    [
        # Seeds of one configuration are one group, by ascending seed, labelled by the first run given.
        ([results("metagf", 3), ONE, results("metagf", 1)], [], [("Meta-GF", (1, 3)), ("joint SGD", (0,))]),
        ([TWO, ONE], ["its first label", "another"], [("its first label", (0, 1))]),
        # Machines and names do not matter, the configuration and the number of rounds do.
        ([ONE, changed(TWO, eval_batch_size=99)], [], [("joint SGD", (0, 1))]),
        ([ONE, changed(TWO, optim=OptimConfig(lr=0.5))], ["a", "b"], [("a", (0,)), ("b", (1,))]),
        (
            [ONE, results(seed=1, rounds=3)],
            [],
            [("joint SGD (a, round 2)", (0,)), ("joint SGD (run, round 3)", (1,))],
        ),
        # A seed given twice is no second seed.
        ([ONE, ONE, TWO], ["a", "b", "a"], [("a", (0, 1)), ("b", (0,))]),
        (
            [ONE, ONE],
            [],
            [("joint SGD (a, round 2) #1", (0,)), ("joint SGD (a, round 2) #2", (0,))],
        ),
    ],
)
def test_what_belongs_together_is_one_group(runs, labels, groups):
    assert [(group.label, group.seeds) for group in group_runs(runs, labels)] == groups


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
