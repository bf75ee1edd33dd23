"""Which trials there are."""

from __future__ import annotations

import pickle

import pytest
from ray import tune
from sweep_parts import plan

from raygf.sweep import Space
from raygf.sweep.plan import SweepOptions
from raygf.sweep.search import make_search, search_name
from raygf.sweep.space import grid, random, read_axes
from raygf.sweep.trial import VALUES

SPACE = Space(
    {"fusion.lr": tune.loguniform(0.01, 1.0), "batch_size": tune.randint(4, 9)},
    variants=[
        {"method": "metagf", "fusion.segments": tune.choice(["tensor", "channel"])},
        {"method": "sgd", "optim.milestones": tune.choice([(0.5, 0.75), (0.3, 0.6)])},
    ],
)
AXES = read_axes(SPACE)


@pytest.mark.parametrize(
    ("options", "space", "name"),
    [
        ({}, Space(), "random"),
        ({}, Space(search="grid"), "grid"),
        ({"trials": 3}, Space(search="grid"), "random"),
        ({"search": "optuna"}, Space(search="grid"), "optuna"),
        ({"search": "grid"}, Space(), "grid"),
    ],
)
def test_the_flag_counts_before_the_space(options, space, name):
    assert search_name(SweepOptions(**options), space) == name


def test_random_and_grid_are_lists_drawn_before_the_start():
    made = plan(options=SweepOptions(trials=5))
    search = make_search("random", made, AXES)
    assert search.param_space == {VALUES: tune.grid_search(random(AXES, 5, 0))}
    assert (search.searcher, search.samples, search.trials) == (None, 1, 5)
    search = make_search("grid", made, AXES)
    assert search.param_space[VALUES]["grid_search"] == grid(AXES, 3)
    assert make_search("random", plan(), AXES).trials == 8


def suggested(count: int, searcher) -> list[dict]:
    return [searcher.suggest(f"trial-{number}")[VALUES] for number in range(count)]


def test_optuna_suggests_what_the_space_has():
    made = plan(options=SweepOptions(trials=20))
    search = make_search("optuna", made, AXES)
    assert (search.param_space, search.samples) == ({}, 20)
    search.searcher.set_search_properties("val_accuracy/average", "max", {})
    values = suggested(20, search.searcher)
    assert {value["method"] for value in values} == {"metagf", "sgd"}
    for value in values:
        axes = AXES[0] if value["method"] == "metagf" else AXES[1]
        assert value.keys() == axes.keys()
        assert 0.01 <= value["fusion.lr"] <= 1.0 and value["batch_size"] in range(4, 9)
    assert {value.get("optim.milestones") for value in values} == {None, (0.5, 0.75), (0.3, 0.6)}


def test_optuna_learns_repeats_and_can_be_stored():
    def best_of(searcher, count: int) -> list[float]:
        drawn = []
        for number in range(count):
            value = searcher.suggest(f"trial-{number}")[VALUES]["fusion.lr"]
            drawn.append(value)
            score = -abs(value - 0.3)
            searcher.on_trial_complete(f"trial-{number}", {"val_accuracy/average": score})
        return drawn

    axes = read_axes(Space({"fusion.lr": tune.loguniform(0.01, 1.0)}))
    searchers = [make_search("optuna", plan(), axes).searcher for _ in range(2)]
    for searcher in searchers:
        searcher._metric, searcher._mode = "val_accuracy/average", "max"
        searcher._setup_study("max")
    searchers = [pickle.loads(pickle.dumps(searcher)) for searcher in searchers]
    one, two = (best_of(searcher, 30) for searcher in searchers)
    assert one == two
    assert sum(abs(value - 0.3) for value in one[-10:]) < sum(abs(value - 0.3) for value in one[:10])
