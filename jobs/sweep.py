"""Train many runs of one recipe side by side under Ray Tune, and find the best settings.

python jobs/sweep.py --space fusion_lr --recipe digits --trials 8
python jobs/sweep.py --space method --recipe digits
python jobs/sweep.py --resume --storage.name fusion_lr-20260102-030405
ray job submit --working-dir . -- python jobs/sweep.py --space fusion_lr --concurrent 4
"""

import sys

from raygf.errors import loading

with loading():
    from raygf.cli import main
    from raygf.sweeps.run import run_sweep

if __name__ == "__main__":
    sys.exit(main(run_sweep))
