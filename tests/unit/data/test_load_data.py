"""The package's front door."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_images import CPU

from raygf.config.run import DataConfig
from raygf.data.base import Dataset, channel_statistics
from raygf.data.load import load_data


def test_importing_loads_no_heavy_library() -> None:
    heavy = ("ray", "mlflow", "sklearn", "pyarrow", "torchvision")
    program = f"import sys, raygf.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_statistics_are_those_of_the_training_images_that_are_kept() -> None:
    data = load_data(DataConfig(val=100, per_class=20), 0)
    assert data.statistics == channel_statistics(data.train.images)
    assert np.array_equal(np.bincount(data.train.labels), np.full(10, 20))


def test_same_seed_same_set() -> None:
    config = DataConfig(val=100, train_limit=300)
    first, second = (load_data(config, 7) for _ in range(2))
    assert np.array_equal(first.train.images, second.train.images)
    assert np.array_equal(first.val.labels, second.val.labels)


def test_augmentation_is_handed_on() -> None:
    data: Dataset = load_data(DataConfig(pad=0, flip=False, train_limit=50), 0)
    images = [images for images, _ in data.open(CPU, 16, 16).train(0, "x")]
    plain = [images for images, _ in data.open(CPU, 16, 16).evaluate("train")]
    total, expected = sum(batch.sum() for batch in images), sum(batch.sum() for batch in plain)
    assert float(total) == pytest.approx(float(expected), abs=0.1)


REAL = Path(os.environ.get("RAYGF_DATA") or Path(__file__).parents[3].parent / "shared" / "data") / "cifar10"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real images: set RAYGF_DATA")
def test_real_images(tmp_path: Path) -> None:
    # One file of each split is enough, and quick.
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").symlink_to(min(REAL.resolve().glob(f"{name}*.parquet")))
    data = load_data(DataConfig(source="parquet", path=str(tmp_path), val=1000, train_limit=4000), 0)
    assert (data.count("train"), data.count("val")) == (4000, 1000)
    assert data.spec.height == data.spec.width == 32 and data.class_names[0] == "airplane"
    assert data.statistics.mean == pytest.approx((0.49, 0.48, 0.45), abs=0.02)
    assert data.statistics.std == pytest.approx((0.25, 0.24, 0.26), abs=0.02)
    assert np.bincount(data.train.labels).min() > 300
