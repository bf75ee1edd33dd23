"""Meta-GF on Ray exit actors against joint SGD at equal compute, on handwritten digits with few labels.

python jobs/demo.py
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raygf.errors import loading

with loading():
    from raygf.cli import main, parse_flags
    from raygf.config.recipes import get_recipe
    from raygf.config.run import ResourceConfig
    from raygf.console import print_table
    from raygf.launch import compared, run
    from raygf.on_ray.cluster import connected

NEXT = """
Both runs had the same compute, counted in epochs of joint SGD: a round of Meta-GF takes one for every exit
and one for the fusion weights. Where to look next:

  make ui                              both runs in MLflow: curves, fusion weights, figures
  python jobs/digits.py --help         every setting of such a run
  python jobs/cifar.py --help          the paper's networks on CIFAR
  docs/method.md                       what happens in a round, equation by equation
"""


DESCRIPTION = "Meta-GF on Ray exit actors against joint SGD at equal compute, on handwritten digits."


@dataclass(frozen=True)
class DemoConfig:
    """No settings; jobs/digits.py has all the flags."""


def demo(argv: Sequence[str]) -> dict[str, Any]:
    """Train both, print one table."""
    parse_flags(DemoConfig, DESCRIPTION, argv)
    metagf, sgd = get_recipe("digits"), get_recipe("digits-sgd")
    with connected(ResourceConfig(address="local")):
        print("Meta-GF: every exit trains in a Ray actor of its own, the driver merges", file=sys.stderr)
        results = {"Meta-GF": run(metagf, "digits")}
        print("\nJoint SGD, with as many training passes", file=sys.stderr)
        results["joint SGD"] = run(sgd, "digits-sgd")
    print_table(compared(results))
    print(NEXT, flush=True)
    return {title: result.json() for title, result in results.items()}


if __name__ == "__main__":
    sys.exit(main(demo))
