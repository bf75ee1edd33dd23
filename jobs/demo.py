"""Early exit at work: a network with three exits trained on handwritten digits, and what each budget buys.

python jobs/demo.py
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raygf.errors import loading

with loading():
    import numpy as np
    from rich.table import Table

    from raygf.api import load
    from raygf.cli import main, parse_flags
    from raygf.config.recipes import get_recipe
    from raygf.config.run import ResourceConfig
    from raygf.console import print_table
    from raygf.evaluation.loading import LoadedRun
    from raygf.evaluation.tables import count_unit, terminal_table
    from raygf.launch import run
    from raygf.on_ray.cluster import connected
    from raygf.serving.adaptive import AdaptiveClassifier

NEXT = """\
Easy digits leave at the first exit, hard ones go on: as right as the whole network, for a part of its cost.
Where to look next:

  make ui                              the run in MLflow: curves, fusion weights, figures
  raygf train --help                   every setting of such a run (in .venv/bin)
  docs/tutorial.ipynb                     the same from Python, step by step
  docs/method.md                       what happens in a round, equation by equation
"""
DESCRIPTION = "A network with three exits, trained on Ray on handwritten digits, that stops early."
BUDGETS = (0.35, 0.4, 0.5, 0.75)
"""Shares of the whole network's operations, beside the first exit, the default budget and all."""


@dataclass(frozen=True)
class DemoConfig:
    """No settings; jobs/digits.py has all the flags."""


def demo(argv: Sequence[str]) -> dict[str, Any]:
    """Train, stop early, print a table."""
    parse_flags(DemoConfig, DESCRIPTION, argv)
    with connected(ResourceConfig(address="local")):
        print("Every exit trains in a Ray actor of its own, and the driver merges them.", file=sys.stderr)
        result = run(get_recipe("digits"), "digits")
    print_table(budget_table(load(result.checkpoint).loaded))
    print(NEXT, flush=True)
    return asdict(result)


def budget_table(trained: LoadedRun) -> Table:
    """What the network gets right on the test images, spends, and where images leave, for some budgets."""
    fast, test = AdaptiveClassifier.from_run(trained), trained.dataset.test
    whole, unit = fast.operations[-1], count_unit(fast.operations)
    budgets = {fast.operations[0], fast.default_budget, whole, *(share * whole for share in BUDGETS)}
    rows = []
    for budget in sorted(budgets):
        found = fast.predict(test.images, budget=budget)
        spent, right = found.operations.mean(), (found.label == test.labels).mean()
        left = np.bincount(found.exit, minlength=fast.exits) / len(found.exit)
        shares = (f"{part:.0%}" for part in left)
        costs = unit.text(round(budget)), unit.text(round(spent)), f"{spent / whole:.0%}"
        rows.append((*costs, f"{right:.1%}", *shares))
    leave = [f"at exit {number}" for number in range(1, fast.exits + 1)]
    titles = [f"Budget ({unit.name})", f"Spent ({unit.name})", "of all", "Right", *leave]
    title = f"Average operations per image, and what is right of {len(test.labels)} test images"
    return terminal_table(titles, rows, [], title)


if __name__ == "__main__":
    sys.exit(main(demo))
