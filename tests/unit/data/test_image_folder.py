"""Images in class folders."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from made_up_photographs import photograph, write_folders

from raygf.data.stores import NameTable, index_folder
from raygf.errors import DataError


def put(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def refused(root: Path, *parts: str, split: str = "train", names: tuple[str, ...] | None = None) -> None:
    with pytest.raises(DataError) as caught:
        index_folder(str(root), split, names)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_names_in_little_memory() -> None:
    names = ["a.JPEG", "", "ä ö.jpg", "\udcff.png", "z"]
    table = NameTable.of(names)
    assert [table[i] for i in range(len(table))] == names
    assert len(NameTable.of([])) == 0


def test_classes_are_the_sorted_folders_and_files_are_sorted_within(tmp_path: Path) -> None:
    for name in (
        "n02/b.JPEG",
        "n02/a.jpeg",
        "n01/z.png",
        "n10/c.jpg",
        "n02/.hidden.jpg",
        "n02/notes.txt",
        "stray.jpg",
    ):
        put(tmp_path / "train" / name, name.encode())
    (tmp_path / "train" / ".cache").mkdir()
    store = index_folder(str(tmp_path), "train")
    assert store.class_names == ("n01", "n02", "n10")
    assert store.labels.tolist() == [0, 1, 1, 2] and store.labels.dtype == np.int64
    found = [store.where(i).removeprefix(f"{tmp_path}/train/") for i in range(4)]
    assert found == ["n01/z.png", "n02/a.jpeg", "n02/b.JPEG", "n10/c.jpg"]
    reader = pickle.loads(pickle.dumps(store)).open()
    assert [reader.read(i, 0).tobytes().decode() for i in range(4)] == found


def test_test_images_have_the_training_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, 6, 0)
    put(tmp_path / "val" / "n03" / "a.jpg")
    store = index_folder(str(tmp_path), "val", ("n01", "n02", "n03"))
    assert store.labels.tolist() == [2] and store.where(0).endswith("val/n03/a.jpg")
    put(tmp_path / "val" / "n07" / "a.jpg")
    refused(tmp_path, "val/n07: no class of that name", split="val", names=("n01", "n02", "n03"))


def test_errors(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path}/train: can't be listed", "--data.path")
    put(tmp_path / "train" / "a.jpg")
    refused(tmp_path, "train: no class folders; images must lie in")
    put(tmp_path / "train" / "n01" / "a.txt")
    put(tmp_path / "train" / "n02" / "a.jpg")
    refused(tmp_path, "train/n01: no images; expected files ending in .jpeg, .jpg")
    (tmp_path / "val" / "n01").mkdir(parents=True)
    refused(tmp_path, "val: no images", split="val", names=("n01",))


def test_a_file_that_is_gone_and_a_folder_that_is_not_here(tmp_path: Path) -> None:
    put(tmp_path / "train" / "n01" / "a.jpg", photograph(0))
    store = index_folder(str(tmp_path), "train")
    store.check()
    (tmp_path / "train" / "n01" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"n01/a\.jpg: can't be read \(No such file"):
        store.open().read(0, 0)
    (tmp_path / "train").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"train: no such folder on .*; every node must see the images"):
        store.check()
