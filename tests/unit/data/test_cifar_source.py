"""CIFAR through torchvision, with a made-up archive whose checksums torchvision is told to expect."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from raygf.config.run import DataConfig
from raygf.data.load import load_data
from raygf.errors import DataError

BATCH = 20


def store(path: Path, content: dict[str, Any]) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_archive(folder: Path, kind: type[CIFAR10], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for part in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(kind, part):
            data = random.integers(0, 256, (BATCH, 3072), dtype=np.uint8)
            labels = [number % 10 for number in range(BATCH)]
            files.append([name, store(folder / name, {"data": data, key: labels})])
        monkeypatch.setattr(kind, part, files)
    meta = dict(kind.meta)
    meta["md5"] = store(folder / meta["filename"], {meta["key"]: list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", meta)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_archive(tmp_path / "cifar-10-batches-py", CIFAR10, "labels", monkeypatch)
    return tmp_path


def load(path: Path, **fields: Any) -> Any:
    return load_data(DataConfig(source="cifar10", path=str(path), **fields), 0)


def test_loads_pixels_labels_and_names(cifar10: Path) -> None:
    data = load(cifar10)
    assert data.train.images.shape == (100, 3, 32, 32) and data.test.images.shape == (20, 3, 32, 32)
    raw = pickle.loads((cifar10 / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    assert np.array_equal(data.train.images[:BATCH].reshape(BATCH, -1), raw["data"])
    assert data.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.name == "cifar10" and data.class_names == tuple("abcdefghij")
    assert data.statistics.mean == (0.4914, 0.4824, 0.4467)


def test_cifar100_uses_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(tmp_path / "cifar-100-python", CIFAR100, "fine_labels", monkeypatch)
    data = load_data(DataConfig(source="cifar100", path=str(tmp_path)), 0)
    assert data.name == "cifar100" and data.count("train") == BATCH
    assert data.statistics.std == (0.2675, 0.2565, 0.2761)


def test_split_and_size(cifar10: Path) -> None:
    data = load(cifar10, val=30, image_size=16)
    assert (data.count("train"), data.count("val")) == (70, 30)
    assert data.spec.height == data.spec.width == 16 and data.test.images.shape[2:] == (16, 16)


def assert_refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert_refused(
        tmp_path / "none", f"{tmp_path / 'none'}: no such folder", "cifar-10-batches-py", "--data.path"
    )


def test_missing_archive(tmp_path: Path) -> None:
    assert_refused(tmp_path, "cifar-10-batches-py: no such folder", "unpack http", "--data.path")


def test_missing_file(cifar10: Path) -> None:
    (cifar10 / "cifar-10-batches-py" / "data_batch_3").unlink()
    assert_refused(cifar10, "data_batch_3: no such file", "unpack http")


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_damaged_file(cifar10: Path, name: str) -> None:
    file = cifar10 / "cifar-10-batches-py" / name
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(cifar10, f"{name}: damaged", "MD5", "unpack http", "anew")


def test_published_checksums_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    store(folder / "data_batch_1", {"data": [], "labels": []})
    assert_refused(tmp_path, "data_batch_1: damaged")
