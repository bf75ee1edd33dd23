"""Who stops trials early, by passes over the training images."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from ray import tune
from ray.tune import CheckpointConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from sweep_parts import plan

from raygf.errors import ConfigError
from raygf.sweep import Space
from raygf.sweep.plan import SweepOptions
from raygf.sweep.schedulers import Explorer, Population, SchedulerMemory, grace_passes, make_scheduler
from raygf.sweep.space import read_axes
from raygf.sweep.trial import VALUES

AXES = read_axes(
    Space(
        {
            "fusion.lr": tune.loguniform(0.01, 1.0),
            "fusion.ema": tune.uniform(0.5, 0.99),
            "batch_size": tune.randint(4, 9),
            "fusion.segments": tune.choice(["tensor", "channel"]),
        }
    )
)
METHODS = read_axes(Space(variants=[{"method": "sgd"}, {"method": "metagf"}]))


class FakeTrial:
    """As much of Tune's trial as a scheduler reads."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def with_options(**options):
    return plan(options=SweepOptions(**options))


@pytest.mark.parametrize(
    ("axes", "grace", "passes"),
    [(AXES, None, 20), (AXES, 8, 8), (AXES, 160, 160), (METHODS, None, 20)],
)
def test_grace_is_an_eighth_of_the_budget_unless_named(axes, grace, passes):
    assert grace_passes(with_options(grace=grace), axes) == passes


def test_grace_is_at_least_a_round_of_the_costliest_method():
    short = plan(options=SweepOptions())
    short = replace(short, run=replace(short.run, rounds=3))
    assert short.budget == 12
    assert grace_passes(short, AXES) == 4
    assert grace_passes(short, METHODS) == 4


def test_grace_can_not_be_longer_than_a_trial():
    with pytest.raises(ConfigError, match="grace = 161: a trial gets 160 training passes in all"):
        grace_passes(with_options(grace=161), AXES)


def test_asha_compares_at_equal_passes_whatever_a_round_costs():
    """The costly trial reports every 4 passes, the cheap one every pass: both are judged after 20."""
    scheduler = make_scheduler(plan(), METHODS)
    scheduler.set_search_properties("val_accuracy/average", "max")
    costly, cheap = FakeTrial("costly"), FakeTrial("cheap")
    for trial in (costly, cheap):
        scheduler.on_trial_add(None, trial)

    def tell(trial, passes, score):
        return scheduler.on_trial_result(
            None, trial, {"training_passes": passes, "val_accuracy/average": score}
        )

    for passes in range(4, 24, 4):
        assert tell(costly, passes, 0.9) == TrialScheduler.CONTINUE
    for passes in range(1, 20):
        assert tell(cheap, passes, 0.1) == TrialScheduler.CONTINUE
    assert tell(cheap, 20, 0.1) == TrialScheduler.STOP


def test_asha_remembers_its_rungs_when_the_sweep_is_resumed():
    first = make_scheduler(plan(), AXES)
    first.set_search_properties("val_accuracy/average", "max")
    good, bad = FakeTrial("good"), FakeTrial("bad")
    first.on_trial_add(None, good)
    first.on_trial_result(None, good, {"training_passes": 20, "val_accuracy/average": 0.9})
    state = pickle.loads(pickle.dumps(SchedulerMemory(first).get_state()))

    resumed = make_scheduler(plan(), AXES)
    resumed.set_search_properties("val_accuracy/average", "max")
    SchedulerMemory(resumed).set_state(state)
    resumed.on_trial_add(None, bad)
    result = {"training_passes": 20, "val_accuracy/average": 0.1}
    assert resumed.on_trial_result(None, bad, result) == TrialScheduler.STOP


def test_others_have_nothing_to_remember():
    assert SchedulerMemory(make_scheduler(with_options(scheduler="none"), AXES)).get_state() is None
    assert SchedulerMemory(make_scheduler(with_options(scheduler="pbt"), AXES)).get_state() is None


def test_a_population_changes_ranges_of_what_may_change_and_nothing_else():
    population = make_scheduler(with_options(scheduler="pbt", grace=40), AXES)
    assert isinstance(population, Population)
    assert population.interval == 40
    config = {VALUES: {"fusion.lr": 0.1, "fusion.ema": 0.9, "batch_size": 8, "fusion.segments": "tensor"}}
    seen = [population._custom_explore_fn(config)[VALUES] for _ in range(60)]
    assert config[VALUES]["fusion.lr"] == 0.1
    assert all(values["batch_size"] == 8 and values["fusion.segments"] == "tensor" for values in seen)
    assert {0.08, 0.125} < {values["fusion.lr"] for values in seen}
    assert all(0.01 <= values["fusion.lr"] <= 1.0 and 0.5 <= values["fusion.ema"] <= 0.99 for values in seen)
    assert max(values["fusion.ema"] for values in seen) == 0.99  # 0.9 * 1.25 would be no moving average


def test_a_population_explores_alike_for_equal_seeds():
    ranges = {"fusion.lr": AXES[0]["fusion.lr"]}
    first, second, other = Explorer(ranges, 0), Explorer(ranges, 0), Explorer(ranges, 1)
    config = {VALUES: {"fusion.lr": 0.1}}
    drawn = [[explore(config) for _ in range(10)] for explore in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "variables", [{"batch_size": tune.randint(4, 9)}, {"fusion.lr": tune.choice([0.1, 1.0])}]
)
def test_a_population_needs_a_range_that_may_change(variables):
    with pytest.raises(
        ConfigError, match="scheduler = 'pbt': the space has no range of a field that may change"
    ):
        make_scheduler(with_options(scheduler="pbt"), read_axes(Space(variables)))


class FakeController:
    """As much of Tune's controller as a population reads."""

    search_alg = None

    def __init__(self, trials) -> None:
        self.trials, self.live = list(trials), set(trials)

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return self.live


@dataclass(eq=False)
class Member(FakeTrial):
    """A trial of a population; ``last_result`` as after a resume."""

    trial_id: str
    status: str = Trial.RUNNING
    last_result: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    experiment_tag: str = ""

    def is_finished(self):
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    @property
    def run_metadata(self):
        return SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=CheckpointConfig()))


def population_of(*members):
    made = make_scheduler(with_options(scheduler="pbt", grace=20), AXES)
    made.set_search_properties("val_accuracy/average", "max")
    controller = FakeController(members)
    for member in members:
        made.on_trial_add(controller, member)
    return made, controller


def report(population, controller, member, passes, score=0.5):
    return population.on_trial_result(
        controller, member, {"training_passes": passes, "val_accuracy/average": score}
    )


def test_members_wait_for_each_other_at_every_exchange():
    first, second = Member("first"), Member("second")
    population, controller = population_of(first, second)
    assert report(population, controller, first, 16) == TrialScheduler.CONTINUE
    assert report(population, controller, first, 20) == TrialScheduler.PAUSE
    first.status = Trial.PAUSED
    assert population.choose_trial_to_run(controller) is None  # second is still on its way


def test_nobody_waits_for_a_member_that_failed():
    first, second, third = (Member(name) for name in ("first", "second", "third"))
    population, controller = population_of(first, second, third)
    for member in (first, second):
        assert report(population, controller, member, 20) == TrialScheduler.PAUSE
        member.status = Trial.PAUSED
    third.status = Trial.ERROR
    population.on_trial_error(controller, third)
    assert controller.live == {first, second}
    chosen = population.choose_trial_to_run(controller)
    assert chosen in (first, second)
    chosen.status = Trial.RUNNING
    assert report(population, controller, chosen, 24) == TrialScheduler.CONTINUE


def test_a_resumed_member_is_due_at_the_next_exchange_and_not_at_once():
    first, second = (Member(name, last_result={"training_passes": 44}) for name in ("first", "second"))
    population, controller = population_of(first, second)
    assert report(population, controller, first, 48) == TrialScheduler.CONTINUE
    assert report(population, controller, first, 60) == TrialScheduler.PAUSE
