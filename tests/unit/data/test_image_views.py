"""The two views of an image against torchvision's transforms."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from raygf.data.pixels import RATIO, SCALE, central_box, draw_box, evaluation_view, training_view

SHAPES = [(300, 400), (400, 300), (256, 256), (60, 200), (30, 31), (255, 1000)]


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return functional.pil_to_tensor(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_resize_and_center_crop(shape: tuple[int, int]) -> None:
    pixels = image(*shape)
    expected = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    view = evaluation_view(pixels, 256, 224)
    assert view.shape == (3, 224, 224) and view.dtype == torch.uint8
    assert torch.equal(view, expected(pixels))
    by_pillow = functional.pil_to_tensor(expected(functional.to_pil_image(pixels)))
    assert (view.int() - by_pillow.int()).abs().max() <= 1  # ImageFolder's; rounded elsewhere


@pytest.mark.parametrize("shape", SHAPES)
def test_training_is_resized_crop_and_flip(shape: tuple[int, int]) -> None:
    pixels = image(*shape)
    flips = set()
    for seed in range(6):
        stream = random.Random(seed)
        box, mirrored = draw_box(*shape, stream), stream.random() < 0.5
        expected = functional.resized_crop(pixels, *box, [64, 64], antialias=True)
        plain = training_view(pixels, 64, False, random.Random(seed))
        assert torch.equal(plain, expected) and plain.shape == (3, 64, 64)
        view = training_view(pixels, 64, True, random.Random(seed))
        assert torch.equal(view, functional.horizontal_flip(expected) if mirrored else expected)
        flips.add(mirrored)
    assert flips == {True, False}


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_lie_in_the_image_and_have_the_right_shape(shape: tuple[int, int]) -> None:
    stream = random.Random(0)
    for _ in range(300):
        top, left, height, width = box = draw_box(*shape, stream)
        assert top >= 0 and left >= 0 and top + height <= shape[0] and left + width <= shape[1]
        if box == central_box(*shape):
            continue
        assert 0.9 * SCALE[0] <= height * width / (shape[0] * shape[1]) <= SCALE[1]
        slack = 1 / min(height, width)  # sides are rounded
        assert RATIO[0] * (1 - slack) - 0.01 <= width / height <= RATIO[1] * (1 + slack) + 0.01


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    """Equal means of all four numbers, over many draws."""
    torch.manual_seed(0)
    stream, theirs = random.Random(0), v2.RandomResizedCrop(224, antialias=True)
    pixels = torch.zeros(3, 300, 400, dtype=torch.uint8)
    ours = [draw_box(300, 400, stream) for _ in range(3000)]
    drawn = [theirs.make_params([pixels]) for _ in range(3000)]
    for name in ("top", "left", "height", "width"):
        mean = statistics.fmean(getattr(box, name) for box in ours)
        assert mean == pytest.approx(statistics.fmean(box[name] for box in drawn), rel=0.06), name


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10)])
def test_too_narrow_images_give_their_centre(shape: tuple[int, int]) -> None:
    """No random part fits; torchvision then takes the same one."""
    box = draw_box(*shape, random.Random(0))
    params = v2.RandomResizedCrop(224, scale=(0.9, 1.0)).make_params([torch.zeros(3, *shape)])
    assert box._asdict() == params == central_box(*shape)._asdict()


def test_one_pixel() -> None:
    pixels = torch.full((3, 1, 1), 7, dtype=torch.uint8)
    assert (training_view(pixels, 4, True, random.Random(0)) == 7).all()
    assert (evaluation_view(pixels, 5, 4) == 7).all()
