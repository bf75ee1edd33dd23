"""How large a data set may be that is held in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raygf.errors import DataError

MAX_BYTES = 8 * 2**30


def require_memory(count: int, shape: Sequence[int]) -> None:
    """Raise DataError if ``count`` images uint8 of ``shape`` (C, H, W) are more than may be held in memory.

    To be asked before they are scaled: the first one may be too large already.
    """
    needed = count * math.prod(shape)
    if needed > MAX_BYTES:
        raise DataError(
            f"{count} images of {shape[-1]}x{shape[-2]} pixels take {needed / 2**30:.1f} GiB; at most "
            f"{MAX_BYTES / 2**30:g} GiB are held in memory: set a smaller --data.image-size"
        )
