"""Which runs become one column."""

from __future__ import annotations

from dataclasses import replace

import pytest
from past_runs import results

from raygf.config.run import OptimConfig
from raygf.errors import ConfigError
from raygf.evaluation.results import group_runs


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


def test_a_group_takes_its_first_label():
    groups = group_runs([results(seed=1), results("metagf"), results(seed=0)], ["SGD", "ours", "SGD too"])
    assert shown(groups) == [("SGD", (0, 1)), ("ours", (0,))]


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
