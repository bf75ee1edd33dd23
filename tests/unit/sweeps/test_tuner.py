"""Which trials there are, and Ray Tune set up for them."""

import os
import pickle
import sys

from ray import tune
from sweep_parts import plan

from raygf.sweeps import Space
from raygf.sweeps.plan import SweepOptions
from raygf.sweeps.space import grid, random, read_axes
from raygf.sweeps.trial import VALUES
from raygf.sweeps.tuner import Reporter, make_search, tune_as_wanted

SPACE = Space(
    {"fusion.lr": tune.loguniform(0.01, 1.0), "batch_size": tune.randint(4, 9)},
    variants=[
        {"method": "metagf", "fusion.segments": tune.choice(["tensor", "channel"])},
        {"method": "sgd", "optim.milestones": tune.choice([(0.5, 0.75), (0.3, 0.6)])},
    ],
)
AXES = read_axes(SPACE)


def searched(**options):
    """What ``make_search`` gives for such options."""
    return make_search(plan(options=SweepOptions(**options)), AXES)


def test_random_and_grid_are_drawn_before_the_start():
    assert searched(trials=5) == ({VALUES: tune.grid_search(random(AXES, 5, 0))}, None, 5)
    every = grid(AXES, 3)
    assert searched(search="grid") == ({VALUES: tune.grid_search(every)}, None, len(every))
    assert searched()[2] == 8


def test_optuna_suggests_what_the_space_has():
    space, searcher, trials = searched(search="optuna", trials=20)
    assert (space, trials) == ({}, 20)
    searcher.set_search_properties("val_accuracy/average", "max", {})
    values = [searcher.suggest(f"trial-{number}")[VALUES] for number in range(20)]
    assert {value["method"] for value in values} == {"metagf", "sgd"}
    for value in values:
        axes = AXES[0] if value["method"] == "metagf" else AXES[1]
        assert value.keys() == axes.keys()
        assert 0.01 <= value["fusion.lr"] <= 1.0 and value["batch_size"] in range(4, 9)
    assert {value.get("optim.milestones") for value in values} == {None, (0.5, 0.75), (0.3, 0.6)}


def test_optuna_learns_repeats_and_can_be_stored():
    def drawn():
        axes = read_axes(Space({"fusion.lr": tune.loguniform(0.01, 1.0)}))
        _, searcher, _ = make_search(plan(options=SweepOptions(search="optuna")), axes)
        searcher.set_search_properties("val_accuracy/average", "max", {})
        searcher, values = pickle.loads(pickle.dumps(searcher)), []
        for number in range(30):
            values.append(searcher.suggest(f"trial-{number}")[VALUES]["fusion.lr"])
            score = {"val_accuracy/average": -abs(values[-1] - 0.3)}
            searcher.on_trial_complete(f"trial-{number}", score)
        return values

    one = drawn()
    assert one == drawn()
    assert sum(abs(value - 0.3) for value in one[-10:]) < sum(abs(value - 0.3) for value in one[:10])


def test_a_table_is_due_on_the_way_and_not_at_the_end():
    reporter = Reporter(plan())
    assert reporter.should_report([])
    assert not reporter.should_report([]) and not reporter.should_report([], done=True)


def test_the_environment_of_tune_ends_with_the_sweep(monkeypatch):
    before = dict(os.environ)
    with tune_as_wanted(plan()):
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0" and sys.stdout is sys.stderr
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "0.2"
    assert dict(os.environ) == before
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "9")
    with tune_as_wanted(plan(path="s3://bucket/sweeps")):
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "9"
