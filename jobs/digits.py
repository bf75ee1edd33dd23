"""Train a small multi-exit network on scikit-learn's handwritten digits.

python jobs/digits.py
python jobs/digits.py --recipe digits-sgd
ray job submit --working-dir . -- python jobs/digits.py --rounds 10
"""

import sys
from collections.abc import Sequence

from raygf.cli import main, parse
from raygf.launch import Result, run


def digits(argv: Sequence[str]) -> Result:
    """Parse the flags and train."""
    recipe, config = parse("Train a small multi-exit network on handwritten digits.", "digits", argv)
    return run(config, recipe)


if __name__ == "__main__":
    sys.exit(main(digits))
