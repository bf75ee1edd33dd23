"""Schedulers count in passes; which trials there are; and Ray Tune set up for them."""

import os
import pickle
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from sweep_parts import plan

from raygf.errors import ConfigError
from raygf.sweeps import Space
from raygf.sweeps.plan import SweepOptions
from raygf.sweeps.space import draw_trials, grid, read_axes
from raygf.sweeps.trial import VALUES
from raygf.sweeps.tuner import (
    Population,
    grace_passes,
    make_scheduler,
    make_search,
    tune_as_wanted,
)

RANGES = {"fusion.lr": tune.loguniform(0.01, 1.0), "fusion.ema": tune.uniform(0.5, 0.99)}
FIXED = {"batch_size": tune.randint(4, 9), "fusion.segments": tune.choice(["tensor", "channel"])}
AXES = read_axes(Space({**RANGES, **FIXED}))
METHODS = read_axes(Space(variants=[{"method": "sgd"}, {"method": "metagf"}]))


def member(name, **last_result):
    """As much of Tune's trial as a scheduler reads; with a last result as after a resume."""
    made = Mock(trial_id=name, status=Trial.RUNNING, last_result=last_result, config={}, experiment_tag="")
    made.is_finished = lambda: made.status in (Trial.TERMINATED, Trial.ERROR)
    made.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = 5
    return made


def with_options(**options):
    return plan(options=SweepOptions(**options))


@pytest.mark.parametrize(
    ("axes", "grace", "passes"), [(AXES, None, 20), (AXES, 8, 8), (AXES, 160, 160), (METHODS, None, 20)]
)
def test_grace_is_an_eighth_of_a_trial_unless_named_at_least_a_round_and_at_most_a_trial(axes, grace, passes):
    assert grace_passes(with_options(scheduler="pbt", grace=grace), axes) == passes
    assert grace_passes(with_options(scheduler="asha", grace=grace), axes) == (passes if grace else 80)
    short = plan(replace(plan().run, rounds=3))
    assert short.budget == 12
    assert grace_passes(short, AXES) == grace_passes(short, METHODS) == 4
    cheap = plan(replace(plan().run, method="pcgrad", rounds=3))
    assert grace_passes(cheap, AXES) == cheap.budget / 3 == pytest.approx(260 / 180)
    with pytest.raises(ConfigError, match="grace = 161: a trial gets 160 training passes in all"):
        grace_passes(with_options(grace=161), AXES)


def told(scheduler, trial, passes, score=0.5, controller=None):
    """The decision on a trial that reports so many passes."""
    result = {"training_passes": passes, "val_accuracy/average": score}
    return scheduler.on_trial_result(controller, trial, result)


def asha(*trials):
    """asha as Tune starts it, with these trials."""
    scheduler = make_scheduler(with_options(scheduler="asha", grace=20), METHODS)
    assert scheduler.set_search_properties("val_accuracy/average", "max")
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return scheduler


def test_asha_compares_at_equal_passes_whatever_a_round_costs():
    """The costly trial reports every 4 passes, the cheap one every pass: both are judged after 20."""
    costly, cheap = member("costly"), member("cheap")
    scheduler = asha(costly, cheap)
    for passes in range(4, 24, 4):
        assert told(scheduler, costly, passes, 0.9) == TrialScheduler.CONTINUE
    for passes in range(1, 20):
        assert told(scheduler, cheap, passes, 0.1) == TrialScheduler.CONTINUE
    assert told(scheduler, cheap, 20, 0.1) == TrialScheduler.STOP


def test_no_trial_is_stopped_unless_that_is_asked_for():
    assert type(make_scheduler(plan(), AXES)) is FIFOScheduler


def test_a_population_changes_ranges_of_what_may_change_and_nothing_else():
    population = make_scheduler(with_options(scheduler="pbt", grace=40), AXES)
    assert isinstance(population, Population) and population.interval == 40
    config = {VALUES: {"fusion.lr": 0.1, "fusion.ema": 0.9, "batch_size": 8, "fusion.segments": "tensor"}}
    seen = [population._custom_explore_fn(config)[VALUES] for _ in range(60)]
    assert config[VALUES]["fusion.lr"] == 0.1
    assert all(values["batch_size"] == 8 and values["fusion.segments"] == "tensor" for values in seen)
    assert {0.08, 0.125} < {values["fusion.lr"] for values in seen}
    assert all(0.01 <= values["fusion.lr"] <= 1.0 and 0.5 <= values["fusion.ema"] <= 0.99 for values in seen)
    assert max(values["fusion.ema"] for values in seen) == 0.99  # 0.9 * 1.25 would be no moving average


@pytest.mark.parametrize("variables", [FIXED, {"fusion.lr": tune.choice([0.1, 1.0])}])
def test_a_population_needs_a_range_that_may_change(variables):
    with pytest.raises(ConfigError, match="scheduler = 'pbt': the space has no range of a field that may"):
        make_scheduler(with_options(scheduler="pbt"), read_axes(Space(variables)))


def population_of(*members):
    """A population as Tune starts it, and its controller."""
    made, live = make_scheduler(with_options(scheduler="pbt", grace=20), AXES), set(members)
    made.set_search_properties("val_accuracy/average", "max")
    controller = Mock(search_alg=None, get_trials=lambda: members, get_live_trials=lambda: live)
    for each in members:
        made.on_trial_add(controller, each)
    return made, controller


def test_a_member_that_failed_is_not_waited_for():
    first, second, third = (member(name) for name in ("first", "second", "third"))
    population, controller = population_of(first, second, third)
    for each in (first, second):
        assert told(population, each, 20, controller=controller) == TrialScheduler.PAUSE
        each.status = Trial.PAUSED
    third.status = Trial.ERROR
    population.on_trial_error(controller, third)
    assert controller.get_live_trials() == {first, second}
    chosen = population.choose_trial_to_run(controller)
    assert chosen in (first, second)
    chosen.status = Trial.RUNNING
    assert told(population, chosen, 24, controller=controller) == TrialScheduler.CONTINUE


def test_a_resumed_member_is_due_at_the_next_exchange_and_not_at_once():
    first, second = (member(name, training_passes=44) for name in ("first", "second"))
    population, controller = population_of(first, second)
    assert told(population, first, 48, controller=controller) == TrialScheduler.CONTINUE
    assert told(population, first, 60, controller=controller) == TrialScheduler.PAUSE


def test_a_ray_without_the_private_state_that_a_population_needs_is_refused(monkeypatch):
    monkeypatch.setattr(PopulationBasedTraining, "__init__", lambda self, **settings: None)
    with pytest.raises(ConfigError, match=r"this version of Ray Tune's has no _trial_state"):
        make_scheduler(with_options(scheduler="pbt"), AXES)


SPACE = Space(
    {"fusion.lr": tune.loguniform(0.01, 1.0), "batch_size": tune.randint(4, 9)},
    variants=[
        {"method": "metagf", "fusion.segments": tune.choice(["tensor", "channel"])},
        {"method": "sgd", "optim.milestones": tune.choice([(0.5, 0.75), (0.3, 0.6)])},
    ],
)
ALTERNATIVES = read_axes(SPACE)


def searched(**options):
    """What ``make_search`` gives for such options."""
    return make_search(plan(options=SweepOptions(**options)), ALTERNATIVES)


def test_random_and_grid_are_drawn_before_the_start():
    assert searched(trials=5) == ({VALUES: tune.grid_search(draw_trials(ALTERNATIVES, 5, 0))}, None, 5)
    every = grid(ALTERNATIVES, 3)
    assert searched(search="grid") == ({VALUES: tune.grid_search(every)}, None, len(every))
    assert searched()[2] == 8


def test_optuna_suggests_what_the_space_has():
    space, searcher, trials = searched(search="optuna", trials=20)
    assert (space, trials) == ({}, 20)
    searcher.set_search_properties("val_accuracy/average", "max", {})
    values = [searcher.suggest(f"trial-{number}")[VALUES] for number in range(20)]
    assert {value["method"] for value in values} == {"metagf", "sgd"}
    for value in values:
        axes = ALTERNATIVES[0] if value["method"] == "metagf" else ALTERNATIVES[1]
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


def test_the_environment_of_tune_ends_with_the_sweep(monkeypatch):
    before = dict(os.environ)
    with tune_as_wanted(plan()):
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0" and sys.stdout is sys.stderr
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "0.2"
    assert dict(os.environ) == before
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "9")
    with tune_as_wanted(plan(path="s3://bucket/sweeps")):
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "9"
