"""Write a set of large images as Parquet shards that are quick to read and decode, scaled down if asked to.

python jobs/prepare.py --path /data/imagenet --out /data/imagenet-256 --short-side 256
python jobs/imagenet.py --data.source shards --data.path /data/imagenet-256
"""

import sys

from raygf.errors import loading

with loading():
    from raygf.cli import main
    from raygf.data.prepare import prepare_job

if __name__ == "__main__":
    sys.exit(main(prepare_job))
