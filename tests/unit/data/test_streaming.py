"""Batches from disk: every image once, the same bits however many workers; images that can't be decoded."""

import os
import random
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from made_up_images import (
    CPU,
    WRITE,
    bits,
    load_streamed,
    photographs,
    refused,
    write_folders,
    write_parquet,
)

from raygf.compute import Compute, derive_seed, generator
from raygf.config.run import RunConfig
from raygf.data import streaming
from raygf.data.base import Normaliser, Portion, batch_edges, round_batches
from raygf.data.pixels import decode_tensor, evaluation_view, training_view
from raygf.data.stores import ShardReader
from raygf.data.streaming import STATISTICS, Pass, cut, in_order, shuffled
from raygf.errors import RunFailed

torch.set_num_threads(1)
layouts = pytest.mark.parametrize("source", sorted(WRITE))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """30 training and 7 test images in both layouts."""
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITE.items()}


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    """Room for about 12 of the 30 training images, so that shards are not fully shuffled."""
    size = 12 * sum(map(len, photographs(30))) // 30
    monkeypatch.setattr(streaming, "BUFFER_BYTES", size)


def open_set(path, batch=8, eval_batch=8, **fields):
    """The batches of a small streamed set on the CPU."""
    return load_streamed(path, **fields).open(CPU, batch, eval_batch)


def joined(batches):
    """All images and labels of a pass."""
    made = list(batches)
    return torch.cat([images for images, _ in made]), torch.cat([labels for _, labels in made])


def views(files, view):
    """What the network should see of ``files``."""
    decoded = [decode_tensor(np.frombuffer(file, np.uint8).copy()) for file in files]
    return [view(number, image).contiguous().numpy().tobytes() for number, image in enumerate(decoded)]


def seen(images):
    """The pixels of normalised images."""
    pixels = Normaliser(STATISTICS, CPU).pixels(images)
    return [image.contiguous().numpy().tobytes() for image in pixels]


def test_evaluation_is_every_image_in_order(sets):
    images, labels = joined(open_set(sets["shards"], eval_batch=3).evaluate("test"))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and labels.dtype == torch.int64
    assert images.dtype == torch.float32 and images.shape == (7, 3, 16, 16)
    assert seen(images) == views(photographs(7, 1000), lambda _, image: evaluation_view(image, 20, 16))
    assert list(open_set(sets["shards"]).evaluate("val")) == []


@layouts
@pytest.mark.parametrize("flip", [True, False])
def test_an_epoch_is_every_image_once_augmented_by_seed_key_and_index(sets, source, flip):
    data = load_streamed(sets[source], source=source, flip=flip)
    layout = Compute("cpu", "fp32", "channels_last")
    images, labels = joined(data.open(layout, 8, 8).train(3, "exit", 2))
    assert images.is_contiguous(memory_format=torch.channels_last)
    order = list(range(30)) if source == "shards" else sorted(range(30), key=lambda row: row % 3)
    files = photographs(30)

    def view(index, image):
        return training_view(image, 16, flip, random.Random(derive_seed(3, "exit", 2, "image", index)))

    expected = views([files[row] for row in order], view)
    assert len(set(expected)) == 30
    assert sorted(seen(images)) == sorted(expected)
    assert [order[expected.index(view)] % 3 for view in seen(images)] == labels.tolist()
    assert seen(images) != expected  # shuffled


@layouts
def test_the_same_bits_with_any_number_of_workers(sets, source):
    made = []
    for count in (0, 1, 2, 3):
        batches = open_set(sets[source], batch=7, eval_batch=4, source=source, val=6, workers=count)
        passes = [batches.train(0, "exit", 1), batches.evaluate("val"), batches.train(0, "exit", 2)]
        # Listed first: batches stay as they are when their memory is used again.
        made.append([bits(list(one)) for one in passes])
    assert [len(labels) for _, labels in made[0][0]] == [7, 7, 7, 3]
    assert made[0] == made[1] == made[2] == made[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_images_are_the_first_of_the_epochs_order(sets, workers):
    batches = open_set(sets["shards"], batch=7, workers=workers)
    whole = joined(batches.train(0, "fuse", 1))
    some = joined(batches.train(0, "fuse", 1, part=Portion(images=9)))
    assert torch.equal(some[0], whole[0][:9]) and torch.equal(some[1], whole[1][:9])
    held_out = open_set(sets["shards"], batch=7, val=6, workers=workers)  # which are not cut at random
    mixed, plain = joined(held_out.train(0, "x", part=Portion("val"))), joined(held_out.evaluate("val"))
    assert sorted(seen(mixed[0])) == sorted(seen(plain[0])) and seen(mixed[0]) != seen(plain[0])


@pytest.mark.parametrize("workers", [0, 2])
@layouts
def test_rounds_go_on_where_the_last_one_stopped_and_decode_no_others(sets, source, workers, monkeypatch):
    """Epochs of five batches, the last one of two images."""
    decoded = []
    spy = lambda file: decoded.append(1) or decode_tensor(file)  # noqa: E731
    monkeypatch.setattr("raygf.data.streaming.decode_tensor", spy)
    batches = open_set(sets[source], batch=7, source=source, workers=workers)
    config = RunConfig(batch_size=7, round_steps=3)
    made = [bits(list(round_batches(batches, config, "exit", round, 1))) for round in (1, 2, 3)]
    assert workers or len(decoded) == 8 * 7 + 2
    one, two = (bits(list(batches.train(0, "exit", number, 1))) for number in (1, 2))
    assert made == [one[:3], [*one[3:], two[0]], two[1:4]]


def test_global_random_numbers_are_left_alone(sets):
    for count in (0, 1):
        torch.manual_seed(0)
        random.seed(0)
        list(open_set(sets["shards"], workers=count).train(0, "a"))
        assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(0)).item()
        assert random.random() == random.Random(0).random()


def test_few_row_groups_are_in_memory(tmp_path, monkeypatch):
    """Of 50 row groups, those of the window, one that is on its way out, and one at the seam; each read once,
    but for those at the seam."""
    write_parquet(tmp_path / "train.parquet", photographs(10) * 20, [0] * 200, group=4)
    write_parquet(tmp_path / "val.parquet", photographs(2), [0, 0])
    kept, read = [], []
    original = ShardReader._read_unit

    def counted(self, unit):
        kept.append(len(self._kept))
        read.append(unit)
        return original(self, unit)

    monkeypatch.setattr(ShardReader, "_read_unit", counted)
    batches = open_set(tmp_path, batch=5)
    assert len(joined(batches.train(0, "a"))[1]) == 200
    assert max(kept) <= 12 / 4 + 4  # a batch may end a unit and need the next
    assert sorted(set(read)) == list(range(50)) and len(read) <= 50 + 12 / 4 + 1
    kept.clear()
    joined(batches.evaluate("train"))
    assert max(kept) <= 2


def children():
    return set(psutil.Process().children(recursive=True))


def test_workers_stay_from_pass_to_pass_and_end_with_their_batches(sets):
    before = children()
    batches = open_set(sets["shards"], workers=2)
    pids = []
    for number in range(2):
        list(batches.train(0, number))
        pids.append(children() - before)
    assert pids[0] == pids[1] and len(pids[0]) == 2
    del batches
    assert not children() - before


def test_a_pass_that_is_given_up_or_fails_ends_its_workers_and_the_next_one_works(sets, tmp_path):
    before = children()
    batches = open_set(sets["shards"], batch=2, workers=2)
    given_up = batches.train(0, "a")
    next(given_up)
    assert len(children() - before) == 2
    given_up.close()
    assert not children() - before
    assert bits(batches.train(0, "b")) == bits(open_set(sets["shards"], batch=2).train(0, "b"))
    write_folders(tmp_path)
    failing = [open_set(tmp_path, source="imagefolder", workers=count) for count in (0, 2)]
    (tmp_path / "train" / "n02" / "0004.JPEG").unlink()
    for batches in failing:
        with refused("n02/0004.JPEG: no such file"):
            list(batches.train(0, "a"))
        assert not children() - before


def test_two_passes_at_a_time(sets):
    batches = open_set(sets["shards"], batch=4, eval_batch=4, workers=1)
    training = batches.train(0, "a")
    first = next(training)
    assert len(joined(batches.evaluate("test"))[1]) == 7
    assert bits([first, *training]) == bits(open_set(sets["shards"], batch=4).train(0, "a"))


def test_a_lost_worker_ends_the_pass_in_one_line(sets, monkeypatch):
    def die(*_):
        time.sleep(0.5)  # by then the process waits for it
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ShardReader, "_read_unit", die)
    with pytest.raises(RunFailed, match=r"^a worker process of the data was lost .*data\.workers") as caught:
        list(open_set(sets["shards"], workers=1).train(0, "a"))
    assert "\n" not in str(caught.value)


# Images that can't be decoded.

PLACES = {
    "shards": ("train-00000-of-00002.parquet: row 4", "train-00001-of-00002.parquet: row 3"),
    "imagefolder": ("train/n02/0004.JPEG", "train/n01/0018.JPEG"),
}


@pytest.fixture(params=sorted(WRITE))
def damaged(request, tmp_path):
    """A set of which the training images 4 and 18 can't be decoded."""
    return request.param, WRITE[request.param](tmp_path, broken=(4, 18))


@pytest.mark.parametrize("count", [0, 2])
def test_an_image_that_can_not_be_decoded_is_an_error_that_names_it(damaged, count):
    source, path = damaged
    batches = open_set(path, source=source, workers=count)
    for one_pass in (batches.train(0, "a"), batches.evaluate("train")):
        with refused("can't be decoded", "raygf prepare --max-undecodable") as caught:
            list(one_pass)
        assert any(place in str(caught.value) for place in PLACES[source])


# The order of a pass, and its tasks: near enough to random, few units at a time, all done once.

COUNT, GROUP = 1000, 20
IMAGES = np.arange(COUNT) * 3 + 5
UNITS = np.arange(COUNT) // GROUP + 100


def order(window, seed=0, units=UNITS):
    return shuffled(IMAGES, units, window, generator(seed, "order"))


def open_units(visits):
    """How many visits are under way at every place."""
    opened, closed = np.zeros(len(visits) + 1), np.zeros(len(visits) + 1)
    for visit in np.unique(visits):
        places = np.flatnonzero(visits == visit)
        opened[places[0]] += 1
        closed[places[-1] + 1] += 1
    return (opened - closed).cumsum()[:-1]


@pytest.mark.parametrize("window", [1, 100, 999, 1000, 10**6])
def test_every_image_comes_once_and_its_visits_are_those_of_its_unit(window):
    made = order(window)
    assert np.array_equal(np.sort(made.images), IMAGES)
    unit = UNITS[(made.images - 5) // 3]
    for visit in np.unique(made.visits):
        assert len(np.unique(unit[made.visits == visit])) == 1
    units = [set(unit[made.visits // 2 == pair]) for pair in np.unique(made.visits // 2)]
    assert all(len(names) == 1 for names in units) and len(units) == COUNT // GROUP


@pytest.mark.parametrize("window", [1, 40, 100, 300])
def test_no_more_units_are_kept_than_the_window_holds(window):
    made = order(window)
    # The rows that came into the window, a unit that is on its way out, and one at the circle's seam.
    assert open_units(made.visits).max() <= window / GROUP + 3
    again = len(np.unique(made.visits)) - COUNT // GROUP
    assert again <= window / GROUP + 1  # units that are read twice


def test_a_window_that_holds_all_reads_every_unit_once_and_shuffles_fully():
    made = order(COUNT)
    assert len(np.unique(made.visits)) == COUNT // GROUP
    rank = np.argsort(made.images)
    assert abs(np.corrcoef(rank, np.arange(COUNT))[0, 1]) < 0.1
    within = np.abs(np.diff(rank.reshape(-1, GROUP), axis=1)).mean()  # neighbours of one unit
    assert within == pytest.approx(COUNT / 3, rel=0.15)  # as far apart as any two


def test_any_stretch_of_a_windowed_order_mixes_units_evenly():
    """The beginning and the end too: the same number of units in every stretch as long as the window."""
    made = order(200)
    kinds = [len(np.unique(made.visits[start : start + 100] // 2)) for start in range(0, COUNT, 100)]
    assert min(kinds) >= 10 and max(kinds) <= 16
    neighbours = np.mean(made.visits[1:] // 2 == made.visits[:-1] // 2)
    assert neighbours < 0.2  # in the files 0.95


@pytest.mark.parametrize("window", [100, COUNT])
@pytest.mark.parametrize("units", [UNITS, None], ids=["units", "single"])
def test_the_seed_decides_or_else_the_files(window, units):
    first, again, other = (order(window, seed, units) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and np.array_equal(np.sort(other.images), IMAGES)
    assert not np.array_equal(first.images, other.images)
    assert not np.array_equal(first.images, IMAGES)
    assert units is not None or not first.visits.any()
    files = in_order(IMAGES, UNITS)
    assert np.array_equal(files.images, IMAGES) and np.array_equal(files.visits // 2, UNITS)


ORDERS = {
    "windowed": order(200),
    "full": order(COUNT),
    "in order": in_order(IMAGES, UNITS),
    "single": order(1, units=None),
    "one unit": in_order(IMAGES, np.zeros(COUNT, np.int64)),
}
each_order = pytest.mark.parametrize("name", ORDERS)


def tasks(name, workers):
    """A pass, and its tasks by batch; a last batch of one image joins the one before."""
    whole = Pass("train", ORDERS[name], batch_edges(COUNT, 27), (0, "a"))
    made = list(cut(whole, workers, slots=4, ahead=2))
    assert len(made) == workers * len(whole.edges)
    return whole, [made[start : start + workers] for start in range(0, len(made), workers)]


@each_order
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_a_batch_has_its_images_at_their_places_and_every_visit_ends_once_with_its_last(name, workers):
    whole, batches = tasks(name, workers)
    ended: list[int] = []
    for number, ((start, stop), parts) in enumerate(zip(whole.edges, batches, strict=True)):
        batch = np.full(stop - start, -1)
        for part in parts:
            assert (part.slot, part.split, part.key) == (number % 4, "train", (0, "a"))
            batch[part.places] = part.images
        assert np.array_equal(batch, whole.order.images[start:stop])
        assert sum(len(part.places) for part in parts) == stop - start
        used = {int(visit) for part in parts for visit in part.visits}
        over = parts[0].over.tolist()
        assert all(part.over.tolist() == over for part in parts) and set(over) <= used
        assert not used & set(ended)
        ended += over
    assert sorted(ended) == sorted(set(whole.order.visits.tolist()))


@each_order
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_have_alike_much_to_do(name, workers):
    """Over stretches as long as what is prepared ahead."""
    _, batches = tasks(name, workers)
    loads = np.array([[len(part.places) for part in parts] for parts in batches[:-1]])
    stretches = loads[: len(loads) // 6 * 6].reshape(-1, 6, workers).sum(axis=1)
    assert (stretches.max(axis=1) / stretches.mean(axis=1)).max() < 1.6


@pytest.mark.parametrize("name", ["windowed", "full"])
def test_no_unit_is_read_by_two_workers_where_there_are_enough(name):
    _, batches = tasks(name, 3)
    owners: dict[int, set[int]] = {}
    for parts in batches:
        for worker, part in enumerate(parts):
            for visit in part.visits.tolist():
                owners.setdefault(visit, set()).add(worker)
    assert all(len(workers) == 1 for workers in owners.values())
