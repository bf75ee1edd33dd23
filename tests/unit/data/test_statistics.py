"""Channel statistics against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_images import make_split

from raygf.data.base import channel_statistics


@pytest.mark.parametrize("count", [1, 3, 1500])
def test_equals_numpy(count: int) -> None:
    images = make_split(count, (3, 4, 5)).images
    statistics = channel_statistics(images)
    np.testing.assert_allclose(statistics.mean, (images / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, (images / 255).std(axis=(0, 2, 3)), rtol=1e-12)


def test_order_does_not_matter() -> None:
    images = make_split(2000, (3, 4, 4)).images
    assert channel_statistics(images) == channel_statistics(images[::-1])


def test_a_channel_of_one_value_can_be_divided_by() -> None:
    images = np.full((3, 1, 4, 4), 51, np.uint8)
    statistics = channel_statistics(images)
    assert statistics.std == (1.0,) and statistics.mean == pytest.approx((0.2,))
