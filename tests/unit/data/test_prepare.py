"""Image sets written as Parquet shards, scaled down, in parallel and in several goes."""

import io
import signal

import made_up_images as made
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up_images import photograph, refused, write_folders
from PIL import Image

from raygf.cli import main
from raygf.data import prepare as module
from raygf.data.prepare import PrepareConfig, prepare, prepare_image, prepare_job
from raygf.data.stores import Part, index_shards


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 4)


def run(path, out, **fields):
    return prepare(PrepareConfig(str(path), str(out), **{"shard_images": 12, "processes": 0, **fields}))


def stored(out, split="train"):
    """The images and labels of a split as stored, in order."""
    part = Part.of(index_shards(sorted((out / "data").glob(f"{split}-*.parquet"))))
    return [(file.tobytes(), label) for (_, file), label in zip(part.files(), part.labels, strict=True)]


def files_of(out):
    return {path.name: path.read_bytes() for path in (out / "data").iterdir()}


def prepared(file, *settings):
    return prepare_image(np.frombuffer(file, np.uint8).copy(), *settings)


def test_class_folders_become_shards_of_the_same_images(tmp_path):
    folder, out = write_folders(tmp_path / "set"), tmp_path / "out"
    assert run(folder, out)["images"] == {"train": 30, "val": 7}
    names = [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert sorted(files_of(out)) == [*names, "val-00000-of-00001.parquet"]
    data, given = made.load_streamed(out), made.load_streamed(folder, source="imagefolder")
    assert data.class_names == made.NAMES and (data.count("train"), data.count("test")) == (30, 7)
    expected = zip((file.tobytes() for _, file in given.train.files()), given.train.labels, strict=True)
    assert sorted(stored(out)) == sorted(expected)
    assert {label for _, label in stored(out)[:8]} == {0, 1, 2}  # shuffled
    assert pq.ParquetFile(out / "data" / names[0]).metadata.num_row_groups == 3


def test_parquet_files_keep_their_order_and_splits(tmp_path):
    source, out = made.write_shards(tmp_path / "set"), tmp_path / "out"
    made.write_parquet(source / "test.parquet", [photograph(5)], [1], names=",".join(made.NAMES))
    run(source, out)
    assert stored(out) == [(photograph(row), row % 15 % 3) for row in range(30)]
    assert stored(out, "test") == [(photograph(5), 1)] and len(stored(out, "val")) == 7


def test_the_same_bytes_with_any_number_of_processes(tmp_path):
    folder = write_folders(tmp_path / "set")
    for count in (0, 1, 2):
        run(folder, tmp_path / str(count), short_side=20, processes=count)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_only_larger_images_are_scaled(tmp_path):
    small, large = photograph(0, 40, 20), photograph(0, 90, 60)
    assert prepared(small, 20, 90) == small and prepared(large, None, 90) == large
    file = prepared(large, 20, 90)
    with Image.open(io.BytesIO(large)) as image, Image.open(io.BytesIO(file)) as scaled:
        expected = image.resize((30, 20), Image.Resampling.LANCZOS)
        difference = np.asarray(scaled.convert("L"), float) - np.asarray(expected.convert("L"))
    assert np.abs(difference).mean() < 3  # of 255
    assert len(prepared(large, 20, 50)) < len(file)


@pytest.mark.parametrize("kind", [("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "CMYK")])
def test_images_of_every_kind_become_jpegs(kind):
    with Image.open(io.BytesIO(prepared(made.encode(made.random_pixels(1, 64)[0], *kind), 16, 90))) as image:
        assert (image.format, image.mode) == ("JPEG", "L" if "L" in kind else "RGB")
        assert image.size == (16, 16)


def test_images_that_cant_be_decoded_are_named_and_counted(tmp_path, capsys):
    for file in (made.BROKEN, photograph(0, 40, 40)[:-400]):
        for short_side in (None, 10, 100):
            with pytest.raises(ValueError, match="can't be decoded"):
                prepared(file, short_side, 90)
    folder, out = write_folders(tmp_path / "set", broken=(3, 17)), tmp_path / "out"
    with refused("1 image(s) can't be decoded; raise --max-undecodable 0"):
        run(folder, out)
    assert not (out / "data").exists()
    for _ in range(2):  # then they are counted in what is there
        assert run(folder, out, max_undecodable=2)["left_out"] == 2
    told = capsys.readouterr().err
    for row in (3, 17):
        assert f"set/train/{made.NAMES[row % 3]}/{row:04d}.JPEG: the image can't be decoded" in told
    assert len(stored(out)) == 28


def test_finished_shards_are_kept_and_other_settings_refused(tmp_path):
    folder, out = write_folders(tmp_path / "set"), tmp_path / "out"
    run(folder, out, short_side=20)
    whole = files_of(out)
    first, second, *_ = sorted(whole)
    unfinished = (out / "data").rename(out / "unfinished")
    (unfinished / second).unlink()
    (unfinished / first).write_bytes(whole[second])  # to see that it is not written again
    with refused(f"{out}: was begun with", '"short_side": 20', '"short_side": 24'):
        run(folder, out, short_side=24)
    run(folder, out, short_side=20)
    assert files_of(out) == {**whole, first: whole[second]}
    (folder / "train" / "n01" / "new.JPEG").write_bytes(photograph(99))
    with refused(f"{out}: was begun with", "digests"):
        run(folder, out, short_side=20)


def test_what_a_user_may_do_wrong_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "set", 6, 0)
    for flags, text in (
        ("--path nowhere --out out", "nowhere: no such folder; set --path"),
        ("--path set --out set", "set: is not empty, and not of this job"),
        ("--path set --out out --quality 101", "quality = 101: must be"),
    ):
        assert main(prepare_job, flags.split()) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1


def test_ctrl_c_ends_at_once_keeps_finished_shards_and_names_the_command(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--path", str(write_folders(tmp_path / "set")), "--out", str(out), "--shard-images", "12"]
    monkeypatch.setattr(module.Console, "print", lambda *_, **more: signal.raise_signal(signal.SIGINT))
    assert main(prepare_job, [*flags, "--processes", "1"]) == 130
    assert capsys.readouterr().err.startswith("interrupted; resume with ")
    (first,) = (out / "unfinished").glob("*.parquet")
    assert first.name == "train-00000-of-00003.parquet" and pq.read_metadata(first).num_rows == 12
