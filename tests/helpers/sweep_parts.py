"""A plan, its trials and what became of them, for the tests of sweeps."""

from dataclasses import replace

from torch import nn

from raygf.config.recipes import get_recipe
from raygf.config.run import StorageConfig
from raygf.records import ExitScore, RoundRecord, RunEnd
from raygf.sweeps.plan import Plan, SweepOptions
from raygf.sweeps.report import TrialRow

FIELDS = ("fusion.lr", "fusion.segments")


def plan(run=None, path="/runs", **changes):
    """A sweep of ``FIELDS`` around the recipe "digits", with 3 exits and 2 actors a trial."""
    run = run or get_recipe("digits")
    made = Plan(
        recipe="digits",
        options=SweepOptions(),
        run=replace(run, storage=StorageConfig(path, "sweep")),
        fields=FIELDS,
        metric="val_accuracy/average",
        mode="max",
        actors=2,
        costs=(10, 30, 60),
        images={"train": 192, "val": 300, "test": 497},
    )
    return replace(made, **changes)


def row(number, score=0.5, **changes):
    """A trial that came to its end; without a score one that failed."""
    made = TrialRow(
        trial=f"ab_{number:05d}",
        status="failed" if score is None else "finished",
        values={"fusion.lr": 0.1 * (number + 1), "fusion.segments": "tensor"},
        score=score,
        test=None if score is None else (score - 0.05, score, score + 0.05),
        rounds=40,
        passes=160,
        operations=480,
        seconds=12.34,
        checkpoint=f"/runs/sweep/ab_{number:05d}/checkpoint_000039/checkpoint.npz",
        run_id=f"run{number}",
        cause="the data is missing" if score is None else "",
    )
    return replace(made, **changes)


def record(round=1, accuracy=(0.5, 0.7), **changes):
    """A round of a run of 4 rounds."""
    score = ExitScore((1.5, 0.5), accuracy)
    made = RoundRecord(round, 4, 4 * round, 0.1, 0.1, score, score, {"train": 1.0}, f"round-{round}.npz")
    return replace(made, **changes)


def end(rounds=4):
    """The end of a run."""
    return RunEnd(rounds, 4 * rounds, ExitScore((1.0, 0.5), (0.6, 0.8)), "ab12", "round-4.npz", True)


class EightExits(nn.Module):
    """Eight heads on one layer."""

    def __init__(self, spec):
        super().__init__()
        self.shared = nn.Linear(spec.channels * spec.height * spec.width, 4)
        self.heads = nn.ModuleList(nn.Linear(4, spec.classes) for _ in range(8))

    def forward(self, images):
        shared = self.shared(images.flatten(1)).relu()
        return [head(shared) for head in self.heads]
