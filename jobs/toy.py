"""The paper's toy problem: where SGD, PCGrad and Meta-GF go on two tasks, and Eq. 7 in numbers.

python jobs/toy.py --out toy
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygf.cli import main, parse_flags
from raygf.compute import torch_threads
from raygf.config import fields as checks
from raygf.config.run import MethodConfig
from raygf.evaluation import toy
from raygf.evaluation.figure_toy import loss_figure, trajectory_csv, trajectory_figure
from raygf.evaluation.report import write_files
from raygf.evaluation.reprojection import cases_csv, cases_markdown, check_cases
from raygf.methods import torchjd


@dataclass(frozen=True)
class ToyConfig:
    """What to draw, and where to."""

    out: str = "toy"
    """Folder for the figures and tables."""
    steps: int = 1500
    """SGD steps of each task."""

    def __post_init__(self) -> None:
        checks.text("out", self.out, empty=False)
        checks.whole("steps", self.steps, 10)


def draw_toy(argv: Sequence[str]) -> dict[str, Any]:
    """Train with the three methods, write figures and tables, print the table of Eq. 7."""
    config = parse_flags(ToyConfig, "The Meta-GF paper's toy problem (Section 3.1, Fig. 1).", argv)
    started = time.perf_counter()
    with torch_threads(1):  # eight parameters: more threads would only wait for each other
        alone = [toy.train_alone(task, config.steps) for task in (0, 1)]
        methods = [
            toy.train_sgd(config.steps),
            toy.train_weighted("PCGrad", torchjd.pcgrad(MethodConfig()), config.steps),
            toy.train_metagf(config.steps),
        ]
    cases = check_cases()
    paths = write_files(
        Path(config.out),
        {
            "toy_trajectories.png": trajectory_figure(methods, alone),
            "toy_losses.png": loss_figure(methods, alone),
            "toy_trajectories.csv": trajectory_csv([*methods, *alone]),
            "eq7.md": cases_markdown(cases),
            "eq7.csv": cases_csv(cases),
        },
    )
    print(cases_markdown(cases))
    return {
        "final_losses": {run.method: toy.losses_at(run.points[-1]).tolist() for run in methods},
        "steps": config.steps,
        "files": [str(path) for path in paths],
        "seconds": round(time.perf_counter() - started, 3),
    }


if __name__ == "__main__":
    sys.exit(main(draw_toy))
