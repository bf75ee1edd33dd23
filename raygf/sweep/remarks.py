"""What a sweep says while it runs."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A remark on standard error, where all that is not a result goes."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)
