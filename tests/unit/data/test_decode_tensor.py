"""Whatever decodes a file, the pixels are Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from made_up_images import encode, random_pixels
from made_up_photographs import photograph
from PIL import Image

from raygf.data import pixels as module
from raygf.data.pixels import decode_rgb, decode_tensor

SQUARE = random_pixels(1, 16)[0]
WHOLE = photograph(0, 300, 200)


def decoded(file: bytes) -> torch.Tensor:
    return decode_tensor(np.frombuffer(file, np.uint8).copy())


@pytest.mark.parametrize(
    "file",
    [
        WHOLE,
        photograph(1, 1, 1),
        encode(SQUARE, "JPEG", "L"),
        encode(SQUARE, "JPEG", "CMYK"),
        encode(SQUARE, "PNG", "RGBA"),
        encode(SQUARE, "PNG", "P"),
        encode(SQUARE, "WEBP"),
        encode(SQUARE, "BMP"),
    ],
    ids=["jpeg", "one pixel", "grey", "cmyk", "png", "palette", "webp", "bmp"],
)
def test_pixels_are_pillows(file: bytes) -> None:
    pixels = decoded(file)
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3
    assert np.array_equal(pixels.numpy(), decode_rgb(file))


def test_without_torchvisions_decoder_pillow_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decoded(WHOLE)
    monkeypatch.setattr(module, "_torchvision_decoder", lambda: None)
    assert torch.equal(decoded(WHOLE), expected)


def test_orientation_tags_are_not_obeyed() -> None:
    """As ImageFolder reads them."""
    tags = Image.Exif()
    tags[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.repeat(SQUARE, 2, axis=1)).save(file, "JPEG", exif=tags)
    assert decoded(file.getvalue()).shape == (3, 16, 32)
    assert np.array_equal(decoded(file.getvalue()).numpy(), decode_rgb(file.getvalue()))


def test_jpegs_do_not_go_through_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode_rgb", lambda file: pytest.fail("decoded by Pillow"))
    assert decoded(WHOLE).shape == (3, 200, 300)
    assert decoded(encode(SQUARE, "JPEG", "L")).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "file", [b"", b"\xff\xd8\xff", WHOLE[:20], WHOLE[: len(WHOLE) // 2], b"text", b"\x89PNG\r\n"]
)
def test_what_is_no_image(file: bytes) -> None:
    with pytest.raises(ValueError, match="can't be decoded"):
        decoded(file)
