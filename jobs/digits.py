"""Train a small multi-exit network on scikit-learn's handwritten digits.

python jobs/digits.py
python jobs/digits.py --recipe digits-sgd
ray job submit --working-dir . -- python jobs/digits.py --rounds 10
"""

import sys
from functools import partial

from raygf.errors import loading

with loading():
    from raygf.cli import main
    from raygf.launch import run_job

if __name__ == "__main__":
    sys.exit(main(partial(run_job, "Train a small multi-exit network on handwritten digits.", "digits")))
