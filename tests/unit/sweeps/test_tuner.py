"""Schedulers count in passes; which trials there are; and Ray Tune set up for them."""

import os
import pickle
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from sweep_parts import plan

from raygf.errors import ConfigError
from raygf.sweeps import Space
from raygf.sweeps.plan import SweepOptions
from raygf.sweeps.space import draw_trials, grid, read_axes
from raygf.sweeps.tuner import (
    _file_system,
    draw,
    grace_passes,
    make_scheduler,
    tune_as_wanted,
)

RANGES = {"fusion.lr": tune.loguniform(0.01, 1.0), "fusion.ema": tune.uniform(0.5, 0.99)}
FIXED = {"batch_size": tune.randint(4, 9), "fusion.segments": tune.choice(["tensor", "channel"])}
AXES = read_axes(Space({**RANGES, **FIXED}))
METHODS = read_axes(Space(variants=[{"method": "sgd"}, {"method": "metagf"}]))


def with_options(**options):
    return plan(options=SweepOptions(**options))


@pytest.mark.parametrize(
    ("axes", "grace", "passes"), [(AXES, None, 80), (AXES, 8, 8), (AXES, 160, 160), (METHODS, None, 80)]
)
def test_grace_is_half_of_a_trial_unless_named_at_least_a_round_and_at_most_a_trial(axes, grace, passes):
    assert grace_passes(with_options(scheduler="asha", grace=grace), axes) == passes
    short = plan(replace(plan().run, rounds=1))
    assert short.budget == 4
    assert grace_passes(short, AXES) == grace_passes(short, METHODS) == 4
    cheap = plan(replace(plan().run, method="pcgrad", rounds=3))
    assert cheap.budget == pytest.approx(260 / 60) and grace_passes(cheap, AXES) == 3
    with pytest.raises(ConfigError, match="grace = 161: a trial gets 160 training passes in all"):
        grace_passes(with_options(grace=161), AXES)


def told(scheduler, trial, passes, score):
    """The decision on a trial that reports so many passes."""
    result = {"training_passes": passes, "val_accuracy/average": score}
    return scheduler.on_trial_result(None, trial, result)


def asha(*trials):
    """asha as Tune starts it, with these trials."""
    scheduler = make_scheduler(with_options(scheduler="asha", grace=20), METHODS)
    assert scheduler.set_search_properties("val_accuracy/average", "max")
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return scheduler


def test_asha_compares_at_equal_passes_whatever_a_round_costs():
    """The costly trial reports every 4 passes, the cheap one every pass: both are judged after 20."""
    costly, cheap = Mock(trial_id="costly"), Mock(trial_id="cheap")
    scheduler = asha(costly, cheap)
    for passes in range(4, 24, 4):
        assert told(scheduler, costly, passes, 0.9) == TrialScheduler.CONTINUE
    for passes in range(1, 20):
        assert told(scheduler, cheap, passes, 0.1) == TrialScheduler.CONTINUE
    assert told(scheduler, cheap, 20, 0.1) == TrialScheduler.STOP


def test_no_trial_is_stopped_unless_that_is_asked_for():
    assert type(make_scheduler(plan(), AXES)) is FIFOScheduler


SPACE = Space(
    {"fusion.lr": tune.loguniform(0.01, 1.0), "batch_size": tune.randint(4, 9)},
    variants=[
        {"method": "metagf", "fusion.segments": tune.choice(["tensor", "channel"])},
        {"method": "sgd", "optim.milestones": tune.choice([(0.5, 0.75), (0.3, 0.6)])},
    ],
)
ALTERNATIVES = read_axes(SPACE)


def test_random_and_grid_are_drawn_before_the_start():
    def drawn(**options):
        return draw(plan(options=SweepOptions(**options)), ALTERNATIVES)

    assert drawn(trials=5) == draw_trials(ALTERNATIVES, 5, 0)
    assert drawn(search="grid") == grid(ALTERNATIVES, 3)
    assert len(drawn()) == 8


def test_the_environment_of_tune_ends_with_the_sweep(monkeypatch):
    before = dict(os.environ)
    with tune_as_wanted(plan()):
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0" and sys.stdout is sys.stderr
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "0.2"
    assert dict(os.environ) == before
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "9")
    with tune_as_wanted(plan(path="s3://bucket/sweeps")):
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "9"


def test_a_file_of_tunes_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    file, files = tmp_path / "tuner.pkl", pickle.loads(pickle.dumps(_file_system(plan())))
    with files.open_output_stream(str(file)) as stream:
        stream.write(b"one")
    with files.open_output_stream(str(file)) as stream:
        stream.write(b"two")
        stream.flush()
        assert file.read_bytes() == b"one"  # which is what a kill leaves
    assert file.read_bytes() == b"two" and list(tmp_path.iterdir()) == [file]


def test_elsewhere_files_are_whole_anyway():
    assert _file_system(plan(path="s3://bucket/sweeps")) is None
