"""What a data set is before a run's seed divides it."""

from __future__ import annotations

from dataclasses import dataclass

from raygf.data.splits import Split
from raygf.data.statistics import ChannelStatistics


@dataclass(frozen=True, eq=False)
class Source:
    """The splits that a data set comes with; all images have one size."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    val: Split | None = None
    """A validation split of its own; None where it is to be held out of ``train``."""
    statistics: ChannelStatistics | None = None
    """Published channel statistics; None where they are to be computed of the training images."""
