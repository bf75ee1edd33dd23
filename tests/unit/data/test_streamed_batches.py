"""Batches from disk: every image once, the same bits however many workers, and what can't be decoded."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from made_up_photographs import (
    CPU,
    config,
    load,
    open_set,
    photographs,
    pixels,
    write_folders,
    write_shard,
    write_shards,
)

from raygf.compute import Compute, derive_seed
from raygf.data import streaming as streamed_batches
from raygf.data import workers as worker_pool
from raygf.data.base import Batch
from raygf.data.in_memory import batch_edges
from raygf.data.load import load_data
from raygf.data.pixels import decode_tensor, evaluation_view, training_view
from raygf.data.stores import ShardReader
from raygf.data.streaming import StreamedBatches
from raygf.errors import DataError, RunFailed

torch.set_num_threads(1)
WRITE = {"shards": write_shards, "imagefolder": write_folders}
layouts = pytest.mark.parametrize("source", sorted(WRITE))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """30 training and 7 test images in both layouts."""
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITE.items()}


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about 12 of the 30 training images, so that shards are not fully shuffled."""
    size = 12 * sum(map(len, photographs(30))) // 30
    monkeypatch.setattr(streamed_batches, "BUFFER_BYTES", size)


def whole(batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of a pass."""
    made = list(batches)
    return torch.cat([images for images, _ in made]), torch.cat([labels for _, labels in made])


def bits(batches: Iterable[Batch]) -> list[tuple[bytes, list[int]]]:
    return [(images.contiguous().numpy().tobytes(), labels.tolist()) for images, labels in batches]


def views(files: Iterable[bytes], view: Callable[[int, torch.Tensor], torch.Tensor]) -> list[bytes]:
    """What the network should see of ``files``."""
    decoded = [decode_tensor(np.frombuffer(file, np.uint8).copy()) for file in files]
    return [view(number, image).contiguous().numpy().tobytes() for number, image in enumerate(decoded)]


def seen(images: torch.Tensor) -> list[bytes]:
    return [image.contiguous().numpy().tobytes() for image in pixels(images)]


def test_evaluation_is_every_image_in_order_normalised(sets: dict[str, Path]) -> None:
    images, labels = whole(open_set(sets["shards"], eval_batch=3).evaluate("test"))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and labels.dtype == torch.int64
    assert images.dtype == torch.float32 and images.shape == (7, 3, 16, 16)
    expected = views(photographs(7, 1000), lambda _, image: evaluation_view(image, 20, 16))
    assert seen(images) == expected
    first = torch.frombuffer(bytearray(expected[0]), dtype=torch.uint8).view(3, 16, 16) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[0], (first - mean[:, None, None]) / std[:, None, None])


@layouts
def test_an_epoch_is_every_image_once_augmented_by_seed_key_and_index(
    sets: dict[str, Path], source: str
) -> None:
    images, labels = whole(open_set(sets[source], source=source).train(3, "exit", 2))
    order = list(range(30)) if source == "shards" else sorted(range(30), key=lambda row: row % 3)
    files = photographs(30)

    def view(index: int, image: torch.Tensor) -> torch.Tensor:
        return training_view(image, 16, True, random.Random(derive_seed(3, "exit", 2, "image", index)))

    expected = views([files[row] for row in order], view)
    assert len(set(expected)) == 30
    assert sorted(seen(images)) == sorted(expected)
    assert [order[expected.index(view)] % 3 for view in seen(images)] == labels.tolist()
    assert seen(images) != expected  # shuffled


@layouts
def test_the_same_bits_with_any_number_of_workers(sets: dict[str, Path], source: str) -> None:
    made = []
    for workers in (0, 1, 2, 3):
        batches = open_set(sets[source], batch=7, eval_batch=4, source=source, val=6, workers=workers)
        passes = [batches.train(0, "exit", 1), batches.evaluate("val"), batches.train(0, "exit", 2)]
        made.append([bits(one) for one in passes])
        batches.close()
    assert [len(labels) for _, labels in made[0][0]] == [7, 7, 7, 3]
    assert made[0] == made[1] == made[2] == made[3]
    assert made[0][0] != made[0][2]


@layouts
def test_seed_and_key_decide_the_order_and_the_augmentation(sets: dict[str, Path], source: str) -> None:
    batches = open_set(sets[source], source=source)
    first, again = (bits(batches.train(0, "a", 1)) for _ in range(2))
    assert first == again
    for key in ((1, "a", 1), (0, "b", 1), (0, "a", 2)):
        other = bits(batches.train(*key))
        assert other != first
        assert [labels for _, labels in other] != [labels for _, labels in first]


def test_flip_and_layout(sets: dict[str, Path]) -> None:
    plain, flipped = (whole(open_set(sets["shards"], flip=f).train(0, "a"))[0] for f in (False, True))
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(plain, flipped, strict=True)]
    assert any(same) and any(mirrored) and all(a or b for a, b in zip(same, mirrored, strict=True))
    compute = Compute("cpu", "fp32", "channels_last")
    images, _ = next(iter(load(sets["shards"]).open(compute, 8, 8).train(0, "a")))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_last_batch_of_one_joins_the_one_before(sets: dict[str, Path]) -> None:
    batches = open_set(sets["shards"], batch=29, workers=1)
    assert [len(labels) for _, labels in batches.train(0, "a")] == [30]
    with pytest.raises(DataError, match="at least 2 are needed to train"):
        open_set(sets["shards"], train_limit=1).train(0, "a")
    assert list(open_set(sets["shards"]).evaluate("val")) == []


def test_batches_stay_as_they_are_when_their_memory_is_used_again(sets: dict[str, Path]) -> None:
    batches = open_set(sets["shards"], batch=2, workers=1)
    kept = list(batches.train(0, "a"))
    assert bits(kept) == bits(batches.train(0, "a"))


def test_global_random_numbers_are_left_alone(sets: dict[str, Path]) -> None:
    for workers in (0, 1):
        torch.manual_seed(0)
        random.seed(0)
        list(open_set(sets["shards"], workers=workers).train(0, "a"))
        assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(0)).item()
        assert random.random() == random.Random(0).random()


def test_few_row_groups_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50 row groups, those of the window, one that is on its way out, and one at the seam; each read once,
    but for those at the seam."""
    write_shard(tmp_path / "train.parquet", photographs(10) * 20, [0] * 200)
    write_shard(tmp_path / "val.parquet", photographs(2), [0, 0])
    kept, read = [], []
    original = ShardReader._read_unit

    def counted(self: ShardReader, unit: int) -> object:
        kept.append(self.kept)
        read.append(unit)
        return original(self, unit)

    monkeypatch.setattr(ShardReader, "_read_unit", counted)
    batches = open_set(tmp_path, batch=5)
    assert len(whole(batches.train(0, "a"))[1]) == 200
    assert max(kept) <= 12 / 4 + 4  # a batch may end a unit and need the next
    assert sorted(set(read)) == list(range(50)) and len(read) <= 50 + 12 / 4 + 1
    kept.clear()
    whole(batches.evaluate("train"))
    assert max(kept) <= 2


def test_a_pass_that_is_given_up_ends_its_workers_and_the_next_one_works(sets: dict[str, Path]) -> None:
    expected = bits(open_set(sets["shards"], batch=2).train(0, "b"))
    batches = open_set(sets["shards"], batch=2, workers=2)
    before = set(psutil.Process().children(recursive=True))
    given_up = batches.train(0, "a")
    next(given_up)
    workers = set(psutil.Process().children(recursive=True)) - before
    assert len(workers) == 2
    given_up.close()
    assert not any(worker.is_running() for worker in workers)
    assert bits(batches.train(0, "b")) == expected


def test_two_passes_at_a_time(sets: dict[str, Path]) -> None:
    batches = open_set(sets["shards"], batch=4, eval_batch=4, workers=1)
    training = batches.train(0, "a")
    first = next(training)
    assert len(whole(batches.evaluate("test"))[1]) == 7
    assert bits([first, *training]) == bits(open_set(sets["shards"], batch=4).train(0, "a"))


def test_workers_stay_from_pass_to_pass_until_they_are_closed(sets: dict[str, Path]) -> None:
    before = set(psutil.Process().children(recursive=True))
    batches = open_set(sets["shards"], workers=2)
    pids = []
    for number in range(2):
        list(batches.train(0, number))
        pids.append(set(psutil.Process().children(recursive=True)) - before)
    assert pids[0] == pids[1] and len(pids[0]) == 2
    batches.close()
    assert not any(worker.is_running() for worker in pids[0])


PROGRAM = """
import os, signal, sys
import psutil
from made_up_photographs import open_set
from pathlib import Path
batches = open_set(Path(sys.argv[1]), workers=2)
list(batches.train(0, "a"))
print(*[child.pid for child in psutil.Process().children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed(sets: dict[str, Path]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    program = [sys.executable, "-c", PROGRAM, str(sets["shards"])]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=60)
    pids = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(pids) == 2, done.stderr
    limit = time.monotonic() + 30
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < limit, "a worker outlived its process"
        time.sleep(0.2)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_lost_worker_ends_the_pass_in_one_line(
    sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        time.sleep(0.5)  # by then the process waits for it
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ShardReader, "_read_unit", die)
    with pytest.raises(RunFailed, match=r"^a worker process of the data was lost .*data\.workers") as caught:
        list(open_set(sets["shards"], workers=1).train(0, "a"))
    assert "\n" not in str(caught.value)


def test_without_fork(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(DataError, match=r"data\.workers = 1: .*--data\.workers 0"):
        list(open_set(sets["shards"], workers=1).train(0, "a"))


# Images that can't be decoded.

PLACES = {
    "shards": ("train-00000-of-00002.parquet: row 4", "train-00001-of-00002.parquet: row 3"),
    "imagefolder": ("train/n02/0004.JPEG", "train/n01/0018.JPEG"),
}


@pytest.fixture(params=sorted(WRITE))
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A set of which the training images 4 and 18 can't be decoded."""
    return request.param, WRITE[request.param](tmp_path, broken=(4, 18))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_image_is_an_error_that_names_it(damaged: tuple[str, Path], workers: int) -> None:
    source, path = damaged
    with pytest.raises(DataError) as caught:
        list(open_set(path, source=source, workers=workers).train(0, "a"))
    text = str(caught.value)
    assert any(place in text for place in PLACES[source]), text
    assert "can't be decoded" in text and "--data.max-undecodable" in text and "\n" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_up_to_the_limit_they_are_left_out_named_and_counted(
    damaged: tuple[str, Path], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = damaged
    batches = open_set(path, source=source, workers=workers, max_undecodable=2)
    expected = bits(open_set(path, source=source, max_undecodable=2).train(0, "a"))
    caplog.clear()
    made = list(batches.train(0, "a"))
    assert bits(made) == bits(batches.train(0, "a")) == expected
    sizes = [len(labels) for _, labels in made]
    assert sum(sizes) == 28 and sum(8 - size for size in sizes[:-1]) <= 2
    assert len(batches.undecodable) == 2
    for place in PLACES[source]:
        named = [record.message for record in caplog.records if place in record.message]
        assert len(named) == 1 and named[0].endswith("it is left out")
    others = torch.cat([labels for _, labels in made])
    assert torch.bincount(others).tolist() == [9, 9, 10]  # 18 is of class 0, 4 of class 1


def test_one_more_than_the_limit_is_an_error(damaged: tuple[str, Path]) -> None:
    source, path = damaged
    with pytest.raises(DataError, match=r"2 such image\(s\) in this pass, data\.max_undecodable = 1 allowed"):
        list(open_set(path, source=source, max_undecodable=1).train(0, "a"))
    with pytest.raises(DataError, match="2 such image"):
        list(open_set(path, source=source, max_undecodable=1).evaluate("train"))


def test_the_whole_ones_are_the_same_as_without_damage(
    damaged: tuple[str, Path], sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = damaged
    monkeypatch.setattr(streamed_batches, "BUFFER_BYTES", 10**9)  # the damaged files are smaller
    kept = seen(whole(open_set(path, source=source, max_undecodable=2).train(0, "a"))[0])
    undamaged = seen(whole(open_set(sets[source], source=source).train(0, "a"))[0])
    assert len(kept) == 28 and [image for image in undamaged if image in kept] == kept


def test_a_training_batch_with_one_image_left_is_left_out(tmp_path: Path) -> None:
    write_shards(tmp_path, broken=range(28))
    batches = open_set(tmp_path, batch=30, max_undecodable=28)
    assert [len(labels) for _, labels in batches.train(0, "a")] == [2]
    write_shards(tmp_path, broken=range(29))
    batches = open_set(tmp_path, batch=30, max_undecodable=29)
    with pytest.raises(DataError, match="of the train images too few can be decoded"):
        list(batches.train(0, "a"))
    assert [len(labels) for _, labels in batches.evaluate("train")] == [1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_is_an_error_whatever_the_limit(tmp_path: Path, workers: int) -> None:
    write_folders(tmp_path)
    batches = open_set(tmp_path, source="imagefolder", workers=workers, max_undecodable=30)
    (tmp_path / "train" / "n02" / "0004.JPEG").unlink()
    with pytest.raises(DataError, match=r"n02/0004\.JPEG: can't be read") as caught:
        list(batches.train(0, "a"))
    assert "\n" not in str(caught.value)


def test_no_image_bytes_counts_as_undecodable(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_shard(tmp_path / "train-00000-of-00002.parquet", [*photographs(14), None], [0] * 15)
    with pytest.raises(DataError, match=r"row 14: there are no image bytes"):
        list(open_set(tmp_path).train(0, "a"))
    assert len(whole(open_set(tmp_path, max_undecodable=1).train(0, "a"))[1]) == 29


def test_edges_are_those_of_sets_in_memory(sets: dict[str, Path]) -> None:
    sizes = [len(labels) for _, labels in open_set(sets["shards"], batch=4, train_limit=21).train(0, "a")]
    assert sizes == [stop - start for start, stop in batch_edges(21, 4)] == [4, 4, 4, 4, 5]


def test_every_split_of_the_front_door_opens(sets: dict[str, Path]) -> None:
    data = load_data(config(sets["shards"], val=5), 0)
    batches: Iterator[Batch] = data.open(CPU, 8, 8).evaluate("val")
    assert isinstance(data.open(CPU, 8, 8), StreamedBatches)
    assert sum(len(labels) for _, labels in batches) == 5 == data.count("val")
