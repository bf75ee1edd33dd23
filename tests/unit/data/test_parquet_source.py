"""Parquet image sets: layouts of the hub, and every way in which one can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_images import encode, random_pixels

from raygf.config.run import DataConfig
from raygf.data import small_sets as memory_limit
from raygf.data import small_sets as parquet
from raygf.data.in_memory import ImageSet
from raygf.data.load import load_data
from raygf.errors import DataError

WriteParquet = Callable[..., Path]

PIXELS = random_pixels(7)
FILES = [encode(pixels) for pixels in PIXELS]
LABELS = [0, 1, 2, 0, 1, 2, 2]
CHW = np.stack(PIXELS).transpose(0, 3, 1, 2)


def load(path: Path, **fields: Any) -> ImageSet:
    return load_data(DataConfig(source="parquet", path=str(path), **fields), 0)


def assert_refused(path: Path, *parts: str, **fields: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(path, **fields)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def write_both(write: WriteParquet, **fields: Any) -> None:
    write("train.parquet", FILES, LABELS, **fields)
    write("test.parquet", FILES[:3], LABELS[:3], **fields)


def test_image_and_label(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet, names="cat,dog,frog")
    data = load(tmp_path)
    assert np.array_equal(data.train.images, CHW) and data.train.labels.tolist() == LABELS
    assert np.array_equal(data.test.images, CHW[:3]) and data.test.labels.tolist() == LABELS[:3]
    assert data.class_names == ("cat", "dog", "frog") and data.name == tmp_path.name
    assert (data.spec.channels, data.spec.height, data.spec.width, data.spec.classes) == (3, 5, 5, 3)
    np.testing.assert_allclose(data.statistics.mean, (CHW / 255).mean(axis=(0, 2, 3)))


def test_img_and_fine_label_with_hugging_face_names(write_parquet: WriteParquet, tmp_path: Path) -> None:
    names = {"fine_label": ["apple", "bear", "crab"], "coarse_label": ["fruit", "animal"]}
    for name in ("train", "test"):
        write_parquet(
            f"{name}.parquet",
            FILES,
            LABELS,
            image="img",
            label="fine_label",
            features=names,
            extra={"coarse_label": [0] * 7},
        )
    data = load(tmp_path)
    assert data.class_names == ("apple", "bear", "crab")
    assert np.array_equal(data.train.images, CHW) and data.train.labels.tolist() == LABELS


def test_plain_binary_and_the_only_whole_number(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet, plain=True, label="kind")
    data = load(tmp_path)
    assert np.array_equal(data.train.images, CHW) and data.train.labels.tolist() == LABELS
    assert data.class_names == ("0", "1", "2")


def test_many_files_in_a_data_folder_with_validation(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_parquet("data/train-00001-of-00002.parquet", FILES[4:], LABELS[4:])
    write_parquet("data/train-00000-of-00002.parquet", FILES[:4], LABELS[:4])
    write_parquet("data/validation-00000-of-00001.parquet", FILES[:2], LABELS[:2])
    write_parquet("data/test-00000-of-00001.parquet", FILES[:3], LABELS[:3])
    data = load(tmp_path)
    assert np.array_equal(data.train.images, CHW)
    assert np.array_equal(data.val.images, CHW[:2]) and data.count("test") == 3
    assert_refused(tmp_path, "validation split of its own", "--data.val 0", val=1)


def test_labels_of_few_bits(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("train.parquet", FILES, pa.array(LABELS, pa.uint8()))
    assert load(tmp_path).train.labels.tolist() == LABELS


def test_reads_in_batches(
    write_parquet: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(write_parquet)
    monkeypatch.setattr(parquet, "ROWS", 3)
    data = load(tmp_path)
    assert np.array_equal(data.train.images, CHW) and data.train.labels.tolist() == LABELS


def test_grey_and_jpeg_become_rgb(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    grey, jpeg = encode(PIXELS[0], "PNG", "L"), encode(PIXELS[1], "JPEG")
    write_parquet("train.parquet", [grey, jpeg], [0, 1])
    data = load(tmp_path)
    assert data.train.images.shape == (2, 3, 5, 5)
    assert (data.train.images[0] == data.train.images[0, :1]).all()


def test_image_size_brings_different_sizes_together(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("train.parquet", [FILES[0], encode(random_pixels(1, 9)[0])], [0, 1])
    train = tmp_path / "train.parquet"
    assert_refused(tmp_path, str(train), "row 1", "sizes differ", "9x9", "5x5", "--data.image-size")
    assert load(tmp_path, image_size=6).train.images.shape == (2, 3, 6, 6)


def test_sizes_must_agree_between_splits(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("test.parquet", [encode(random_pixels(1, 9)[0])], [0])
    assert_refused(tmp_path, "test.parquet: row 0", "sizes differ")


def test_no_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.path"):
        load_data(DataConfig(source="parquet"), 0)
    assert_refused(tmp_path / "none", f"{tmp_path / 'none'}: no such folder", "--data.path")


def test_no_files(tmp_path: Path) -> None:
    (tmp_path / "other.parquet").touch()
    assert_refused(tmp_path, str(tmp_path), "no files train*.parquet", "--data.path")


@pytest.mark.parametrize(("there", "missing"), [("train", "test"), ("test", "train")])
def test_a_split_is_missing(write_parquet: WriteParquet, tmp_path: Path, there: str, missing: str) -> None:
    write_parquet(f"{there}.parquet", FILES, LABELS)
    assert_refused(tmp_path, f"no files {missing}*.parquet", f"a {missing} split is needed")


def test_no_image_column(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet, image="picture")
    assert_refused(tmp_path, "train.parquet: no column 'image' or 'img'", "'picture', 'label'")


def test_image_column_of_a_wrong_type(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "train.parquet")
    assert_refused(tmp_path, "train.parquet: column 'image' is string", "binary")


def test_no_label_column(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("train.parquet", FILES, [str(label) for label in LABELS])
    assert_refused(tmp_path, "train.parquet: no label column", "no column of whole numbers")


def test_two_columns_that_could_be_the_label(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet, label="a", extra={})
    write_parquet("train.parquet", FILES, LABELS, label="a", extra={"b": LABELS})
    assert_refused(tmp_path, "train.parquet: no label column", "several that could be it ('a', 'b')")


def test_damaged_hugging_face_metadata(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    table = pq.read_table(tmp_path / "train.parquet").replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, tmp_path / "train.parquet")
    assert_refused(tmp_path, "train.parquet", "'huggingface' metadata")


def test_class_names_must_agree(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet, names="a,b,c")
    write_parquet("test.parquet", FILES, LABELS, names="a,c,b")
    assert_refused(tmp_path, "test.parquet: its class names differ", "train.parquet")


@pytest.mark.parametrize("keep", [0, 3, 0.5, -20])
def test_truncated_file(write_parquet: WriteParquet, tmp_path: Path, keep: float) -> None:
    write_both(write_parquet)
    file = tmp_path / "train.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert_refused(tmp_path, "train.parquet: not a whole Parquet file", "fetch it again")


def test_damage_inside_a_file(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    file = tmp_path / "train.parquet"
    content = bytearray(file.read_bytes())
    content[4:300] = b"\xff" * 296
    file.write_bytes(content)
    assert_refused(tmp_path, "train.parquet: ")


@pytest.mark.parametrize(
    "broken", [b"nothing", FILES[5][:60], encode(random_pixels(1, 16)[0], "JPEG")[:400], b""]
)
def test_undecodable_image(write_parquet: WriteParquet, tmp_path: Path, broken: bytes) -> None:
    write_both(write_parquet)
    write_parquet("train.parquet", [*FILES[:5], broken, FILES[6]], LABELS)
    assert_refused(tmp_path, "train.parquet: row 5", "can't be decoded")


def test_image_outside_the_file(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("train.parquet", [FILES[0], None], [0, 1])
    assert_refused(tmp_path, "train.parquet: row 1 has no image bytes")


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(write_parquet: WriteParquet, tmp_path: Path, label: int) -> None:
    write_both(write_parquet, names="a,b,c")
    write_parquet("test.parquet", FILES, [*LABELS[:4], label, *LABELS[5:]], names="a,b,c")
    assert_refused(tmp_path, f"test.parquet: row 4: label {label} is out of range", "from 0 to 2")


def test_label_out_of_range_without_names(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("test.parquet", FILES[:1], [-1])
    assert_refused(tmp_path, "test.parquet: row 0: label -1 is out of range", "at least 0")
    write_parquet("test.parquet", FILES[:1], [10**9])
    assert_refused(tmp_path, "labels go up to 1000000000", "only 8 images")


def test_missing_label(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("train.parquet", FILES, [*LABELS[:6], None])
    assert_refused(tmp_path, "train.parquet: row 6 has no label")


def test_rows_are_counted_across_batches(
    write_parquet: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(write_parquet)
    monkeypatch.setattr(parquet, "ROWS", 2)
    write_parquet("train.parquet", FILES, [*LABELS[:5], -7, 0])
    assert_refused(tmp_path, "train.parquet: row 5: label -7")
    write_parquet("train.parquet", [*FILES[:5], b"x", FILES[6]], LABELS)
    assert_refused(tmp_path, "train.parquet: row 5: the image")
    write_parquet("train.parquet", FILES, [*LABELS[:5], None, 0])
    assert_refused(tmp_path, "train.parquet: row 5 has no label")


@pytest.mark.parametrize("name", ["train", "test"])
def test_zero_rows(write_parquet: WriteParquet, tmp_path: Path, name: str) -> None:
    write_both(write_parquet)
    write_parquet(f"{name}.parquet", [], [])
    assert_refused(tmp_path, f"{name}.parquet: the split has no rows")


def test_one_empty_file_among_others_is_fine(write_parquet: WriteParquet, tmp_path: Path) -> None:
    write_both(write_parquet)
    write_parquet("train-0.parquet", [], [])
    assert load(tmp_path).count("train") == 7


def test_too_large_for_memory(
    write_parquet: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(write_parquet)
    monkeypatch.setattr(memory_limit, "MAX_BYTES", 10 * 75)
    assert load(tmp_path).count("train") == 7
    monkeypatch.setattr(memory_limit, "MAX_BYTES", 10 * 75 - 1)
    assert_refused(tmp_path, "10 images of 5x5 pixels", "GiB", "--data.image-size")
