from __future__ import annotations

import pytest
import torch

from raygf.compute import Compute
from raygf.data.base import ChannelStatistics, Normaliser

STATISTICS = ChannelStatistics((0.4914, 0.5, 0.1), (0.2470, 0.25, 1.0))
ALL = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_by_the_formula(layout: str) -> None:
    compute = Compute("cpu", "fp32", layout)
    images = Normaliser(STATISTICS, compute)(ALL)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (STATISTICS.mean, STATISTICS.std))
    torch.testing.assert_close(images, (ALL.float() / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=compute.layout)
    assert ALL[0, 0, 0, :3].tolist() == [0, 1, 2]  # left as it was


def test_back_to_the_same_pixels() -> None:
    normalise = Normaliser(STATISTICS, Compute("cpu", "fp32", "contiguous"))
    assert torch.equal(normalise.pixels(normalise(ALL)), ALL)
