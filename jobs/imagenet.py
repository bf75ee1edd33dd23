"""Train a multi-exit network on ImageNet, or on any set of photographs that is read from disk.

python jobs/imagenet.py --data.path /data/imagenet                     # train/CLASS/*.JPEG, val/CLASS/*.JPEG
python jobs/imagenet.py --recipe imagenet-msdnet-sgd --data.source shards --data.path /data/imagenet-parquet
python jobs/imagenet.py --data.source shards --data.path some --data.test 50 --data.val 50 --batch-size 16
"""

import sys
from functools import partial

from raygf.errors import loading

with loading():
    from raygf.cli import main
    from raygf.launch import run_job

if __name__ == "__main__":
    description = "Train a multi-exit network on ImageNet, or on any photographs that are read from disk."
    sys.exit(main(partial(run_job, description, "imagenet-msdnet-metagf")))
