"""All tables and figures of past runs, from their checkpoints alone.

python jobs/evaluate.py --checkpoint runs/digits-20260102-030405 --out results
python jobs/evaluate.py --checkpoint runs/ours-0 runs/ours-1 runs/sgd-0 --labels ours ours SGD --out results
"""

import sys

from raygf.errors import loading

with loading():
    from raygf.api import evaluate_job
    from raygf.cli import main

if __name__ == "__main__":
    sys.exit(main(evaluate_job))
