"""Train a multi-exit network on CIFAR-10 or CIFAR-100.

python jobs/cifar.py --data.path /data/cifar10
python jobs/cifar.py --recipe cifar100-msdnet-metagf --data.path /data/cifar100
python jobs/cifar.py --data.source parquet --data.path /data/cifar10-parquet --rounds 30
"""

import sys
from functools import partial

from raygf.errors import loading

with loading():
    from raygf.cli import main
    from raygf.launch import run_job

if __name__ == "__main__":
    description = "Train a multi-exit network on CIFAR-10 or CIFAR-100."
    sys.exit(main(partial(run_job, description, "cifar10-msdnet-metagf")))
