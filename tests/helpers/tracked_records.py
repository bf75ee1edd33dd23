"""Records of a run of two exits that was never trained, and a tracker that gets them."""

import math

import numpy as np

from raygf.config.run import OptimConfig, RunConfig
from raygf.records import ExitScore, FusionReport, RoundRecord, RunEnd, RunStart
from raygf.tracking.tracker import Tracker

START = RunStart(
    round=0,
    classes=10,
    train_images=900,
    val_images=300,
    test_images=597,
    parameters=(30_000, 60_000),
    operations=(350_000, 800_000),
    tensors=("stem", "head.0", "head.1"),
    setting="cpu",
    data="made up",
    digests={"train": "0123456789abcdef", "test": "fedcba9876543210"},
    software={"python": "3.11.9", "torch": "2.14.1"},
)
END = RunEnd(2, 6, ExitScore((0.5, 0.4), (0.8, 0.9)), "ab" * 32, "runs/x/round-2", finished=True, seconds=4.0)
FUSION = FusionReport(
    weights=np.array([[0.25, 1, np.nan], [0.75, np.nan, 1]]),
    mean_weight=(0.25, 0.75),
    cosine=np.array([[1, 0.5], [0.5, 1]]),
    delta_norm=(3.0, 4.0),
    loss=1.5,
    accuracy=(0.5, 0.6),
    tensor_cosine=np.array([0.5, np.nan, np.nan]),
    conflict_before=0.25,
    conflict_after=0.125,
)
CONFIG = RunConfig(rounds=3, optim=OptimConfig(lr=0.05))


def record(number, accuracy=(0.6, 0.7), *notes):
    train, val = ExitScore((1.2, 1.0), (0.5, 0.6)), ExitScore((1.1, math.nan), accuracy)
    seconds = {"train": 1.5, "fuse": 0.5}
    return RoundRecord(number, 3, 3 * number, 0.05, 0.1, train, val, seconds, "c", FUSION, notes)


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def track(store, said, *records, run_id=None, config=CONFIG, start=START, end=END):
    """A run from its start to its end; its id."""
    tracker = Tracker(store, "trial", said.append)
    run_id = tracker.start(config, "run", run_id)
    tracker.log_start(start)
    for each in records:
        tracker.log_round(each)
    tracker.finish(end)
    return run_id
