"""Train a multi-exit network on CIFAR-10 or CIFAR-100.

python jobs/cifar.py --data.path /data/cifar10
python jobs/cifar.py --recipe cifar100-msdnet-metagf --data.path /data/cifar100
python jobs/cifar.py --data.source parquet --data.path /data/cifar10-parquet --rounds 30
"""

import sys
from collections.abc import Sequence

from raygf.cli import main, parse
from raygf.launch import Result, run


def cifar(argv: Sequence[str]) -> Result:
    """Parse the flags and train."""
    recipe, config = parse(
        "Train a multi-exit network on CIFAR-10 or CIFAR-100.", "cifar10-msdnet-metagf", argv
    )
    return run(config, recipe)


if __name__ == "__main__":
    sys.exit(main(cifar))
