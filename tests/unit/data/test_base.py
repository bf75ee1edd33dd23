"""Channel statistics are NumPy's; images are normalised by the formula."""

import numpy as np
import pytest
import torch
from made_up_images import make_split

from raygf.compute import Compute
from raygf.data.base import ChannelStatistics, Normaliser, channel_statistics

STATISTICS = ChannelStatistics((0.4914, 0.5, 0.1), (0.2470, 0.25, 1.0))
ALL = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)


@pytest.mark.parametrize("count", [1, 3, 1500])
def test_statistics_are_numpys_and_can_be_divided_by(count):
    images = make_split(count, (3, 4, 5)).images
    statistics = channel_statistics(images)
    np.testing.assert_allclose(statistics.mean, (images / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, (images / 255).std(axis=(0, 2, 3)), rtol=1e-12)
    assert channel_statistics(images[::-1]) == statistics
    one_value = channel_statistics(np.full((3, 1, 4, 4), 51, np.uint8))
    assert one_value.std == (1.0,) and one_value.mean == pytest.approx((0.2,))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_images_are_normalised_by_the_formula_and_back(layout):
    compute = Compute("cpu", "fp32", layout)
    normalise = Normaliser(STATISTICS, compute)
    images = normalise(ALL)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (STATISTICS.mean, STATISTICS.std))
    torch.testing.assert_close(images, (ALL.float() / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=compute.layout)
    assert ALL[0, 0, 0, :3].tolist() == [0, 1, 2]  # left as it was
    assert torch.equal(normalise.pixels(images), ALL)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_images_of_large_batches_are_normalised_to_the_same_bits(layout):
    normalise = Normaliser(STATISTICS, Compute("cpu", "fp32", layout))
    images = ALL.repeat(4, 1, 30, 30)  # 22 MB in float32
    assert torch.equal(normalise(images), normalise(ALL).repeat(4, 1, 30, 30))
