"""Pixels are Pillow's whatever decodes a file; the two views of an image are torchvision's transforms."""

import io
import random
import statistics

import numpy as np
import pytest
import torch
from made_up_images import encode, photograph, random_pixels
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from raygf.data import pixels as module
from raygf.data.pixels import (
    central_box,
    decode_rgb,
    decode_tensor,
    draw_box,
    evaluation_view,
    training_view,
)

SQUARE = random_pixels(1, 16)[0]
WHOLE = photograph(0, 300, 200)
SHAPES = [(300, 400), (400, 300), (256, 256), (60, 200), (30, 31), (255, 1000), (1, 1)]


def decoded(file):
    return decode_tensor(np.frombuffer(file, np.uint8).copy())


@pytest.mark.parametrize(
    "file",
    [
        WHOLE,
        photograph(1, 1, 1),
        *(encode(SQUARE, "JPEG", mode) for mode in ("L", "CMYK")),
        *(encode(SQUARE, "PNG", mode) for mode in ("RGBA", "P", "1", "LA")),
        encode(SQUARE, "WEBP"),
        encode(SQUARE, "BMP"),
    ],
    ids=["jpeg", "one pixel", "grey", "cmyk", "rgba", "palette", "bits", "grey with alpha", "webp", "bmp"],
)
def test_both_decoders_give_the_same_pixels(file):
    pixels = decoded(file)
    assert pixels.dtype == torch.uint8 and len(pixels) == 3
    assert np.array_equal(pixels.numpy(), decode_rgb(file))


def test_png_is_exact_and_grey_of_sixteen_bits_is_scaled_not_clipped():
    assert np.array_equal(decode_rgb(encode(SQUARE)), SQUARE.transpose(2, 0, 1))
    deep, file = np.random.default_rng(0).integers(0, 65536, (5, 6), np.uint16), io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    assert np.array_equal(decode_rgb(file.getvalue()), np.broadcast_to(np.rint(deep / 257), (3, 5, 6)))


def test_jpegs_go_through_pillow_only_where_torchvision_can_not_decode_them(monkeypatch):
    expected = decoded(WHOLE)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_torchvision_decoder", lambda: None)
        assert torch.equal(decoded(WHOLE), expected)
    monkeypatch.setattr(module, "decode_rgb", lambda file: pytest.fail("decoded by Pillow"))
    assert torch.equal(decoded(WHOLE), expected)
    assert decoded(encode(SQUARE, "JPEG", "L")).shape == (3, 16, 16)


def test_orientation_tags_are_not_obeyed():
    """As ImageFolder reads them."""
    tags = Image.Exif()
    tags[0x0112] = 6
    file = encode(np.repeat(SQUARE, 2, axis=1), "JPEG", exif=tags)
    assert decoded(file).shape == (3, 16, 32)
    assert np.array_equal(decoded(file).numpy(), decode_rgb(file))


@pytest.mark.parametrize(
    "file",
    [b"", b"\xff\xd8\xff", WHOLE[:20], WHOLE[: len(WHOLE) // 2], b"text", encode(SQUARE)[:300]],
    ids=["nothing", "start of a JPEG", "head of a JPEG", "half a JPEG", "text", "part of a PNG"],
)
def test_what_is_no_whole_image_is_refused(file):
    for decode in (decoded, decode_rgb):
        with pytest.raises(ValueError, match="can't be decoded"):
            decode(file)


def image(height, width):
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return functional.pil_to_tensor(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_resize_and_center_crop(shape):
    pixels = image(*shape)
    expected = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    view = evaluation_view(pixels, 256, 224)
    assert view.shape == (3, 224, 224) and view.dtype == torch.uint8
    assert torch.equal(view, expected(pixels))
    by_pillow = functional.pil_to_tensor(expected(functional.to_pil_image(pixels)))
    assert (view.int() - by_pillow.int()).abs().max() <= 1  # ImageFolder's; rounded elsewhere


@pytest.mark.parametrize("shape", SHAPES)
def test_training_is_resized_crop_and_flip(shape):
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


def test_boxes_are_drawn_as_torchvision_draws_them():
    """Equal means of all four numbers, over many draws."""
    torch.manual_seed(0)
    stream, theirs = random.Random(0), v2.RandomResizedCrop(224, antialias=True)
    pixels = torch.zeros(3, 300, 400, dtype=torch.uint8)
    ours = zip(*(draw_box(300, 400, stream) for _ in range(1500)), strict=True)
    drawn = [theirs.make_params([pixels]) for _ in range(1500)]
    for name, values in zip(("top", "left", "height", "width"), ours, strict=True):
        expected = statistics.fmean(box[name] for box in drawn)
        assert statistics.fmean(values) == pytest.approx(expected, rel=0.08), name


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10)])
def test_too_narrow_images_give_their_centre(shape):
    """No random part fits; torchvision then takes the same one."""
    params = v2.RandomResizedCrop(224, scale=(0.9, 1.0)).make_params([torch.zeros(3, *shape)])
    expected = tuple(params[name] for name in ("top", "left", "height", "width"))
    assert draw_box(*shape, random.Random(0)) == expected == central_box(*shape)
