"""Image files to pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made_up_images import encode, random_pixels
from PIL import Image

from raygf.data.pixels import decode_rgb

PIXELS = random_pixels(1, size=16)[0]


def test_png_is_exact() -> None:
    assert np.array_equal(decode_rgb(encode(PIXELS)), PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(("format", "mode"), [("JPEG", None), ("JPEG", "CMYK"), ("WEBP", None)])
def test_lossy_files_come_close(format: str, mode: str | None) -> None:
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    decoded = decode_rgb(encode(smooth, format, mode))
    assert decoded.shape == (3, 16, 16) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - smooth.transpose(2, 0, 1)).mean() < 8


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(format: str) -> None:
    decoded = decode_rgb(encode(PIXELS, format, "L"))
    assert np.array_equal(decoded[0], decoded[1]) and np.array_equal(decoded[0], decoded[2])


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA"])
def test_other_png_modes_become_rgb(mode: str) -> None:
    assert decode_rgb(encode(PIXELS, "PNG", mode)).shape == (3, 16, 16)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    assert np.array_equal(decode_rgb(file.getvalue())[0], deep >> 8)


@pytest.mark.parametrize("file", [b"", b"no image", encode(PIXELS, "JPEG")[:300], encode(PIXELS)[:300]])
def test_what_is_no_whole_image_is_refused(file: bytes) -> None:
    with pytest.raises(ValueError, match="can't be decoded"):
        decode_rgb(file)
