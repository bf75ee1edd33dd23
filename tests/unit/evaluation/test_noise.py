"""What the order of the images alone does to the deltas."""

from dataclasses import replace

import pytest
from past_runs import train
from tiny_network import run_config

from raygf.config.run import DataConfig
from raygf.evaluation.loading import load_run
from raygf.evaluation.noise import measure_noise

DIGITS = DataConfig("digits", val=0, train_limit=40, pad=0, flip=False)


def test_exits_as_trained_are_those_of_the_runs_own_next_round(fused_checkpoint):
    """So is their conflict; and measuring changes nothing and gives the same every time."""
    first = load_run(fused_checkpoint.replace("round-000002", "round-000001"))
    noise = measure_noise(first)
    (*_, second) = load_run(fused_checkpoint).checkpoint.meta["history"]
    assert noise.round == second["round"] == 2
    assert noise.different_exits == pytest.approx(second["fusion"]["conflict_before"])
    assert 0 < noise.same_exit < 1 and noise.same_order != noise.different_exits
    assert measure_noise(first) == noise


def test_there_is_no_noise_where_the_order_makes_no_difference(tmp_path):
    """All images are in one batch; after the last round, its settings are taken once more."""
    run = load_run(train(run_config(path=str(tmp_path), rounds=1, batch_size=40, data=DIGITS)).checkpoint)
    noise = measure_noise(run)
    assert (noise.round, noise.same_exit) == (1, 0.0) and noise.different_exits == noise.same_order
    assert measure_noise(replace(run, config=replace(run.config, method="sgd"))) is None
