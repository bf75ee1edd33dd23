"""Past runs: trained here, or never trained, with chosen results and histories to match."""

from dataclasses import replace

import numpy as np
from tiny_network import run_config

from raygf.evaluation.budgeted import BudgetCurve
from raygf.evaluation.importance import Importance
from raygf.evaluation.results import RunResults
from raygf.rounds.driver import Driver
from raygf.training.exit_trainer import LocalExecutor


def train(config, run_id=""):
    """Train in this process, to the end."""
    driver = Driver(config, lambda run, dataset, exits: LocalExecutor(run, dataset))
    driver.prepare()
    for _ in driver.rounds(run_id):
        pass
    end = driver.end()
    driver.close()
    return end


def entry(round, train, fused=None, passes=1, **fusion):
    """One round of two exits: training accuracy of the last exit, and of the fused network if any."""
    known = {
        "accuracy": [0.0, fused],
        "tensor_cosine": [0.5, None, -0.25],
        "conflict_before": 0.5,
        "conflict_after": 0.25,
    }
    return {
        "round": round,
        "training_passes": passes * round,
        "train": {"loss": [1.0, 1.0], "accuracy": [0.0, train]},
        "val": {"loss": [1.0, 1.0], "accuracy": [0.5, 0.25 * round]},
        "seconds": {"train": 2.0, "evaluate": 0.5},
        "fusion": None if fused is None else known | fusion,
    }


def curve(accuracy=0.5, scale=1e6):
    """Three settings of two exits."""
    return BudgetCurve(
        p=np.array([0.5, 1.0, 1.5]),
        thresholds=np.array([[0.9, -np.inf], [0.5, -np.inf], [np.inf, -np.inf]]),
        accuracy=accuracy + np.array([0.0, 0.125, 0.25]),
        operations=scale * np.array([1.0, 1.5, 2.0]),
        share=np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        resampled=accuracy + np.linspace(-0.125, 0.125, 41)[:, None] * np.ones(3),
    )


IMPORTANCE = Importance(
    segments=(1, 0),
    parameters=(2500, 0),
    baseline=(0.8, 0.9),
    alone=np.array([[0.75, -0.1], [0.0, 0.0]]),
    in_turn=np.array([[0.75, -0.1], [np.nan, 0.0]]),
)


def results(method="sgd", seed=0, top1=(0.5, 0.75), rounds=2, name="run", **changes):
    """A run of two exits after some rounds; every other field can be changed."""
    config = run_config(method=method, seed=seed)
    found = RunResults(
        config=replace(config, storage=replace(config.storage, name=name)),
        round=rounds,
        run_id="",
        tensors=("a", "b", "c"),
        operations=(1_000_000, 2_500_000),
        parameters=(20_000, 300_000),
        top1=top1,
        top5=None,
        history=[entry(r, 0.25 * r) for r in range(1, rounds + 1)],
        curve=curve(),
        learned=None,
        importance=None,
        noise=None,
        training_passes=3 * rounds if method == "metagf" else rounds,
        training_operations=7_500_000 * rounds,
    )
    return replace(found, **changes)
