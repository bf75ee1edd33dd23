"""Crop and flip against slow references."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from raygf.compute import generator
from raygf.data.in_memory import crop, draw_epoch, mirror


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator(0, "test"))


def slow_crop(images: torch.Tensor, corners: torch.Tensor, pad: int) -> torch.Tensor:
    height, width = images.shape[2:]
    padded = functional.pad(images, (pad, pad, pad, pad))
    cuts = [
        image[:, top : top + height, left : left + width]
        for image, (top, left) in zip(padded, corners.tolist(), strict=True)
    ]
    return torch.stack(cuts)


@pytest.mark.parametrize(("height", "width", "pad"), [(6, 6, 1), (6, 6, 4), (5, 9, 2), (3, 3, 5)])
def test_crop_is_pad_and_slice(height: int, width: int, pad: int) -> None:
    side = 2 * pad + 1
    corners = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    images = random_images(len(corners), height, width)
    assert torch.equal(crop(images, corners, pad), slow_crop(images, corners, pad))


def test_the_middle_crop_is_the_image() -> None:
    images = random_images(4, 6, 6)
    assert torch.equal(crop(images, torch.full((4, 2), 3), 3), images)


def test_mirror_is_its_own_inverse_and_touches_only_what_it_should() -> None:
    images, flips = random_images(4, 5, 6), torch.tensor([True, False, True, False])
    flipped = mirror(images, flips)
    assert torch.equal(flipped[flips], images[flips].flip(3))
    assert torch.equal(flipped[~flips], images[~flips])
    assert torch.equal(mirror(flipped, flips), images)


def test_draws_cover_their_range_and_nothing_else() -> None:
    draws = draw_epoch(2000, 3, True, generator(0, "x"))
    assert torch.equal(draws.order.sort().values, torch.arange(2000))
    assert draws.corners is not None and draws.flips is not None
    assert draws.corners.shape == (2000, 2)
    for edge in draws.corners.unbind(1):
        assert torch.equal(edge.unique(), torch.arange(7))
    assert 900 < int(draws.flips.sum()) < 1100


def test_nothing_is_drawn_for_what_is_off() -> None:
    draws = draw_epoch(10, 0, False, generator(0, "x"))
    assert draws.corners is None and draws.flips is None
    assert torch.equal(draws.order, draw_epoch(10, 4, True, generator(0, "x")).order)
