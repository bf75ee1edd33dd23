"""Files of a data set that are there twice."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from raygf.errors import DataError


def refuse_copies(files: Sequence[Path]) -> None:
    """Raise DataError if two of the ``files`` of one split are the same, byte by byte.

    Their images would count twice, and the same image could be trained on and held out. Only files of equal
    size are read, and those up to the first difference.
    """
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    for alike in by_size.values():
        for one, other in combinations(alike, 2):
            if filecmp.cmp(one, other, shallow=False):
                raise DataError(
                    f"{other}: the same file as {one.name}: its images would count twice; remove one of them"
                )
