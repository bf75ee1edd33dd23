"""The ImageNet job trains the paper's 5-exit MSDNet on photographs, and images come alike in Ray actors."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raygf.compute import Compute
from raygf.config.run import DataConfig
from raygf.data.load import load_data

RunJob = Callable[..., Any]
REPOSITORY = Path(__file__).parents[2]
SAMPLE = Path(os.environ.get("RAYGF_DATA") or REPOSITORY.parent / "shared" / "data") / "imagenet-sample"
CLASSES = 20


def photograph(seed: int) -> bytes:
    """A smooth colour JPEG of 96x72 pixels."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet set of 90 photographs, without test images."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = [{"bytes": photograph(row), "path": f"{row}.JPEG"} for row in range(90)]
    table = pa.table({"image": rows, "label": pa.array([row % CLASSES for row in range(90)], pa.int64())})
    table = table.replace_schema_metadata(
        {"class_names": ",".join(f"n{label:02d}" for label in range(CLASSES))}
    )
    pq.write_table(table, folder / "train-00000.parquet", row_group_size=10)
    return folder


@pytest.fixture(scope="module")
def folders(shards: Path) -> Path:
    """The same photographs as class folders, some of them as test images."""
    table = pq.read_table(shards / "train-00000.parquet").to_pylist()
    for row, cells in enumerate(table):
        split = "val" if row >= 80 else "train"
        path = shards / split / f"n{cells['label']:02d}" / f"{row}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cells["image"]["bytes"])
    return shards


def job(path: Path, source: str, *more: str) -> tuple[str, ...]:
    """Flags of two steps a pass on small crops, in this process."""
    return (
        *("--data.source", source, "--data.path", str(path), "--data.val", "10", "--data.workers", "1"),
        *("--data.train-limit", "16", "--data.crop", "64", "--data.resize", "72"),
        *("--rounds", "1", "--batch-size", "8", "--eval-batch-size", "10", "--storage.path", "runs"),
        *("--resources.executor", "local", "--tracking.enabled", "False", *more),
    )


def assert_trained(outcome: Any, method: str, passes: int) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = outcome.result
    assert (result["method"], result["rounds"], result["training_passes"]) == (method, 1, passes)
    assert len(result["test_accuracy"]) == 5
    assert "16 training, 10 validation, 10 test images" in " ".join(outcome.err.split())
    assert Path(result["checkpoint"]).is_file()
    return result


def test_five_exits_on_shards(run_job: RunJob, shards: Path) -> None:
    """On real photographs where there are any."""
    path = SAMPLE if SAMPLE.is_dir() else shards
    flags = job(path, "shards", "--data.test", "10")
    result = assert_trained(run_job("imagenet", *flags), "metagf", 6)
    if path == SAMPLE:
        assert [round(count / 1e6, 2) for count in result["parameters"]] == [4.24, 8.77, 13.07, 16.75, 23.96]


def test_recipe_for_sgd_on_class_folders(run_job: RunJob, folders: Path) -> None:
    flags = job(folders, "imagefolder", "--recipe", "imagenet-msdnet-sgd")
    assert_trained(run_job("imagenet", *flags), "sgd", 1)


def epoch(data: Any) -> Iterator[bytes]:
    """The bits of one training epoch."""
    for images, labels in data.open(Compute("cpu", "fp32", "contiguous"), 8, 8).train(0, "exit", 1, 2):
        yield images.numpy().tobytes() + labels.numpy().tobytes()


def test_workers_of_a_ray_actor_make_the_same_images_and_end_with_it(cluster: str, shards: Path) -> None:
    import ray

    config = DataConfig(
        source="shards", path=str(shards), test=10, val=10, crop=32, resize=36, workers=2, train_limit=40
    )
    data = load_data(config, 0)

    @ray.remote(num_cpus=1)
    class Reader:
        def read(self, data: Any) -> tuple[list[bytes], list[int]]:
            from raygf.data.streaming import StreamedBatches

            self.batches: StreamedBatches = data.open(Compute("cpu", "fp32", "contiguous"), 8, 8)
            made = [i.numpy().tobytes() + y.numpy().tobytes() for i, y in self.batches.train(0, "exit", 1, 2)]
            return made, [child.pid for child in psutil.Process().children(recursive=True)]

    actor = Reader.remote()
    bits, workers = ray.get(actor.read.remote(ray.put(data)), timeout=120)
    assert len(bits) == 5 and bits == list(epoch(data))
    assert len(workers) == 2 and all(psutil.pid_exists(pid) for pid in workers)
    processes = [psutil.Process(pid) for pid in workers]
    ray.kill(actor)
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert len(gone) == 2 and not alive
