"""What can't be done ends with one line that says why, before anything has been trained."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

RunJob = Callable[..., Any]

SMALL = (
    *("--data.train-limit", "48", "--model.msdnet.base", "1", "--model.msdnet.step", "1"),
    *("--model.msdnet.channels", "8", "--rounds", "2", "--storage.path", "runs"),
)
LOCAL = ("--resources.executor", "local", "--tracking.enabled", "False")


def assert_one_error(outcome: Any, says: str, code: int = 2) -> str:
    """One line for people on standard error, nothing trained, no result. Returns the line."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert outcome.code == code, outcome.err
    assert len(lines) == 1, outcome.err
    assert says in lines[0]
    assert outcome.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in outcome.err
    assert not [line for line in outcome.err.splitlines() if line.startswith("round ")]
    assert outcome.out == ""
    return lines[0]


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--recipe", "nope"), "recipe = 'nope': must be one of digits, digits-sgd, "),
        (("--recipe",), "recipe = ''"),
        (("--nonsense", "3"), "--nonsense"),
        (("--optim.lr", "-0.1"), "optim.lr = -0.1: must be a finite number above 0"),
        (("--optim.lr", "nan"), "optim.lr = nan: must be a finite number above 0"),
        (("--optim.lr", "fast"), "--optim.lr"),
        (("--optim.lr",), "--optim.lr"),
        (("--rounds", "0"), "rounds = 0: must be a whole number of at least 1"),
        (("--rounds", "1.5"), "--rounds"),
        (("--batch-size", "1"), "batch_size = 1: must be a whole number of at least 2"),
        (("--method", "nope"), "method = 'nope': must be one of metagf, "),
        (("--fusion.segments", "galaxy"), "--fusion.segments"),
        (("--resources.executor", "dask"), "--resources.executor"),
        (("--storage.resume", "True"), "storage.resume: say which run with --storage.name"),
        (("--storage.name", "a/b"), "storage.name = 'a/b': must be a plain folder name"),
        (("--storage.path", "nothing://there"), "storage.path = 'nothing://there'"),
        (("--data.val", "1300"), "data.val = 1300"),
        (("--data.train-limit", "1301"), "data.train_limit = 1301"),
        (("--data.per-class", "1000"), "data.per_class = 1000"),
        (("--model.name", "nope"), "nope"),
        (("--model.name", "no_such_package.nets:make"), "no_such_package"),
        (("--compute.device", "cuda"), "compute.device = 'cuda'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags(run_job: RunJob, flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    started = time.monotonic()
    assert_one_error(run_job("digits", *SMALL, *LOCAL, *flags), says)
    assert time.monotonic() - started < 10


def test_cifar_without_its_folder(run_job: RunJob, tmp_path: Path) -> None:
    line = assert_one_error(run_job("cifar", "--data.path", "nowhere", *LOCAL), "nowhere: no such folder")
    assert "--data.path must hold cifar-10-batches-py" in line
    assert "cifar-10-python.tar.gz" in line


def test_cifar_with_an_empty_folder(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_error(run_job("cifar", "--data.path", "empty", *LOCAL), "cifar-10-batches-py: no such folder")


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Parquet image set of two classes, 24 training and 8 test images, with one row changed."""

    def write(row: int = -1, image: bytes | None = None, label: int | None = None) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for split, count in (("train", 24), ("test", 8)):
            images = [jpeg(number) for number in range(count)]
            labels = [number % 2 for number in range(count)]
            if split == "train" and row >= 0:
                images[row] = images[row] if image is None else image
                labels[row] = labels[row] if label is None else label
            rows = [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(images)]
            table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
            pq.write_table(
                table.replace_schema_metadata({"class_names": "cat,dog"}), folder / f"{split}-00000.parquet"
            )
        return folder

    return write


def train_on(folder: Path) -> tuple[str, ...]:
    network = ("exits", "2"), ("base", "1"), ("step", "1"), ("channels", "4"), ("factors", "1", "2")
    flags = [word for name, *values in network for word in (f"--model.msdnet.{name}", *values)]
    data = ("--data.source", "parquet", "--data.path", str(folder), "--data.val", "0")
    return (*data, *flags, "--batch-size", "8", "--rounds", "1", "--storage.path", "runs", *LOCAL)


def test_whole_images_are_fine(run_job: RunJob, write_images: Callable[..., Path]) -> None:
    """So that the errors below are those of the one row that is changed."""
    outcome = run_job("cifar", *train_on(write_images()))
    assert outcome.code == 0, outcome.err
    assert len(outcome.result["test_accuracy"]) == 2


def test_broken_image(run_job: RunJob, write_images: Callable[..., Path]) -> None:
    folder = write_images(row=17, image=jpeg(17)[:90])
    line = assert_one_error(run_job("cifar", *train_on(folder)), "row 17: the image can't be decoded")
    assert "train-00000.parquet" in line


def test_label_out_of_range(run_job: RunJob, write_images: Callable[..., Path]) -> None:
    folder = write_images(row=5, label=2)
    says = "row 5: label 2 is out of range; labels must be from 0 to 1"
    line = assert_one_error(run_job("cifar", *train_on(folder)), says)
    assert "train-00000.parquet" in line


def test_damaged_parquet_file(run_job: RunJob, write_images: Callable[..., Path]) -> None:
    folder = write_images()
    file = folder / "train-00000.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    assert_one_error(run_job("cifar", *train_on(folder)), "train-00000.parquet: not a whole Parquet file")


def test_storage_that_can_not_be_written(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    flags = (*SMALL, *LOCAL, "--storage.path", "file/runs", "--storage.name", "one")
    line = assert_one_error(run_job("digits", *flags), "storage.path: can't write to ")
    assert f"{tmp_path}/file/runs/one" in line


def test_folder_of_another_run(run_job: RunJob) -> None:
    flags = (*SMALL, *LOCAL, "--storage.name", "one")
    assert run_job("digits", *flags).code == 0
    line = assert_one_error(run_job("digits", *flags), "runs/one holds checkpoints already")
    assert "--storage.resume" in line and "--storage.name" in line


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--resources.cpus-per-exit", "no node of the cluster can hold an exit actor (64 CPUs, 0 GPUs)"),
        ("--resources.driver-cpus", "no node of the cluster can hold the driver (64 CPUs, 0 GPUs)"),
    ],
    ids=["exit", "driver"],
)
def test_more_than_the_machine_has(cluster: str, run_job: RunJob, flag: str, says: str) -> None:
    started = time.monotonic()
    line = assert_one_error(run_job("digits", *SMALL, flag, "64", "--tracking.enabled", "False"), says)
    assert flag.removeprefix("--").replace("-", "_") in line
    assert time.monotonic() - started < 30


def test_weights_that_become_infinite(run_job: RunJob, tmp_path: Path) -> None:
    """Exit code 1: what was asked for could be tried. The run's checkpoints stand, here none."""
    outcome = run_job("digits", *SMALL, *LOCAL, "--optim.lr", "1e30")
    line = assert_one_error(outcome, "metagf, exit 1, round 1: ", 1)
    assert "lower optim.lr" in line
    assert list(tmp_path.glob("runs/*/*.npz")) == []


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tracking_server_that_does_not_answer(run_job: RunJob, closed_port: int) -> None:
    flags = ("--resources.executor", "local", "--tracking.uri", f"http://127.0.0.1:{closed_port}")
    started = time.monotonic()
    says = f"no MLflow server answers at http://127.0.0.1:{closed_port}: Connection refused"
    assert_one_error(run_job("digits", *SMALL, *flags), says)
    assert time.monotonic() - started < 20


# As programs: nothing else gets between the error and the one who reads it.


def test_program_with_an_unknown_flag(call_job: RunJob) -> None:
    assert_one_error(call_job("digits", "--optim.learning-rate", "1"), "--optim.learning-rate")


def test_program_with_an_unknown_recipe(call_job: RunJob) -> None:
    assert_one_error(call_job("cifar", "--recipe", "imagenet"), "recipe = 'imagenet': must be one of ")


def test_program_on_a_cluster_that_is_not_there(call_job: RunJob, closed_port: int) -> None:
    address = f"127.0.0.1:{closed_port}"
    flags = ("--tracking.enabled", "False", "--resources.address", address)
    outcome = call_job("digits", *SMALL, *flags, seconds=30)  # left to itself, Ray tries for many minutes
    assert_one_error(outcome, f"no Ray cluster answers at {address}")
