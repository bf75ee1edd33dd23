"""Tune's table: short, on standard error, only when there is something new."""

from __future__ import annotations

from types import SimpleNamespace

from ray.tune.experiment import Trial

from raygf.sweep.trial import FAILURE, VALUES
from raygf.sweep.tuner import SweepReporter


def trial(number, status, score=None, passes=None, **result):
    values = {"fusion.lr": 0.1 * number, "optim.lr": 0.5}
    if score is not None:
        result |= {"val_accuracy/average": score, "training_passes": passes}
    return SimpleNamespace(
        trial_id=f"ab_{number:05d}", status=status, config={VALUES: values}, last_result=result
    )


def shown(capsys, trials):
    SweepReporter(("fusion.lr", "optim.lr"), "val_accuracy/average", "max", every_s=0.0).report(trials, False)
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_running_trials_come_first_and_then_the_best(capsys):
    lines = shown(
        capsys,
        [
            trial(1, Trial.PENDING),
            trial(2, Trial.TERMINATED, 0.5, 160),
            trial(3, Trial.TERMINATED, 0.75, 160),
            trial(4, Trial.RUNNING, 0.25, 8.0),
            trial(5, Trial.TERMINATED, **{FAILURE: "diverged"}),
        ],
    )
    assert lines[0].split(": ")[1].strip() == "1 running, 3 terminated, 1 pending"
    rows = [line.split() for line in lines if " ab_" in line]
    assert [row[0][-1] for row in rows] == ["4", "3", "2", "5", "1"]
    assert rows[0] == ["ab_00004", "running", "0.4", "0.5", "25.00", "%", "8"]
    assert rows[3][1] == "failed" and rows[4][-2:] == ["-", "-"]
    assert "fusion.lr" in lines[2] and "optim.lr" in lines[2]  # both end alike, so neither is cut


def test_many_trials_are_cut(capsys):
    lines = shown(capsys, [trial(number, Trial.PENDING) for number in range(40)])
    assert len([line for line in lines if " ab_" in line]) == 12
    assert any("28 more" in line for line in lines)


def test_it_speaks_only_of_news_and_not_at_the_end():
    reporter = SweepReporter(("fusion.lr",), "val_accuracy/average", "max", every_s=0.0)
    trials = [trial(1, Trial.RUNNING, 0.5, 4)]
    assert reporter.should_report(trials)
    assert not reporter.should_report(trials)
    trials[0].last_result["training_passes"] = 8
    assert reporter.should_report(trials)
    assert not reporter.should_report([trial(1, Trial.TERMINATED, 0.5, 8)], done=True)
    reporter = SweepReporter(("fusion.lr",), "val_accuracy/average", "max", every_s=1000.0)
    reporter.setup()
    assert not reporter.should_report(trials)
