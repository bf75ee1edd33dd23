"""Batches: every image once, equal for equal keys, exact pixels."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from made_up_images import CPU, make_set, make_split

from raygf.compute import Compute, generator
from raygf.data.base import Batch
from raygf.data.in_memory import ImageSet, batch_edges, draw_epoch
from raygf.errors import DataError

Batches = list[Batch]


def epoch(data: ImageSet, *key: str | int, batch_size: int = 8, compute: Compute = CPU) -> Batches:
    return list(data.open(compute, batch_size, 4).train(0, *key))


def joined(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def normalised(data: ImageSet, images: np.ndarray) -> torch.Tensor:
    """The textbook formula, in float64."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (data.statistics.mean, data.statistics.std)
    )
    return (torch.tensor(images, dtype=torch.float64) / 255 - mean) / std


def test_equal_keys_give_equal_batches_in_every_open() -> None:
    data = make_set(pad=2, flip=True)
    for first, second in zip(epoch(data, "exit", 3, 1), epoch(data, "exit", 3, 1), strict=True):
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("key", [("exit", 4, 1), ("exit", 3, 2), ("fusion", 3)])
def test_another_key_gives_other_batches(key: tuple[str | int, ...]) -> None:
    data = make_set(pad=2, flip=True)
    assert not torch.equal(joined(epoch(data, "exit", 3, 1))[0], joined(epoch(data, *key))[0])


def test_another_seed_gives_other_batches() -> None:
    source = make_set().open(CPU, 8, 4)
    assert not torch.equal(joined(list(source.train(0, "a")))[0], joined(list(source.train(1, "a")))[0])


def test_two_epochs_of_one_source_do_not_disturb_each_other() -> None:
    source = make_set(pad=1, flip=True).open(CPU, 8, 4)
    alone = joined(list(source.train(0, "a")))
    together = list(zip(source.train(0, "a"), source.train(0, "b"), strict=True))
    assert torch.equal(joined([a for a, _ in together])[0], alone[0])


def test_every_image_comes_exactly_once_and_with_its_label() -> None:
    data = make_set(train=23)
    images, labels = joined(epoch(data, "x"))
    expected = normalised(data, data.train.images).float()
    matches = (images[:, None] - expected[None]).abs().amax(dim=(2, 3, 4)) < 1e-5
    assert torch.equal(matches.sum(0), torch.ones(23)) and torch.equal(matches.sum(1), torch.ones(23))
    assert torch.equal(labels, torch.tensor(data.train.labels)[matches.int().argmax(1)])
    assert not torch.equal(matches, torch.eye(23, dtype=torch.bool)), "not shuffled"


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_keeps_order_and_pixels_whatever_the_augmentation(split: str) -> None:
    data = make_set(pad=4, flip=True)
    batches = list(data.open(CPU, 8, 4).evaluate(split))  # type: ignore[arg-type]
    images, labels = joined(batches)
    assert [len(batch) for _, batch in batches] == {"val": [4, 1], "test": [4, 3]}[split]
    torch.testing.assert_close(
        images.double(), normalised(data, data.splits[split].images), rtol=0, atol=1e-6
    )  # type: ignore[index]
    assert torch.equal(labels, torch.tensor(data.splits[split].labels))  # type: ignore[index]


def test_the_training_split_can_be_evaluated() -> None:
    data = make_set(train=9)
    assert torch.equal(joined(list(data.open(CPU, 8, 4).evaluate("train")))[1], torch.arange(9))


def test_an_empty_split_has_no_batches() -> None:
    assert list(make_set(val=0).open(CPU, 8, 4).evaluate("val")) == []


def test_an_epoch_is_its_draws_applied_image_by_image() -> None:
    data = make_set(train=21, pad=2, flip=True)
    draws = draw_epoch(21, 2, True, generator(0, "exit", 5, 2))
    assert draws.corners is not None and draws.flips is not None
    expected = []
    for index, (top, left), flip in zip(draws.order, draws.corners, draws.flips, strict=True):
        padded = np.pad(data.train.images[index], ((0, 0), (2, 2), (2, 2)))
        cut = padded[:, top : top + 6, left : left + 6]
        expected.append(cut[:, :, ::-1] if flip else cut)
    images, labels = joined(epoch(data, "exit", 5, 2))
    torch.testing.assert_close(images.double(), normalised(data, np.stack(expected)), rtol=0, atol=1e-6)
    assert torch.equal(labels, torch.tensor(data.train.labels)[draws.order])


def test_padding_is_black_before_normalisation() -> None:
    data = make_set(pad=6)
    images, _ = joined(epoch(data, "x"))
    black = normalised(data, np.zeros((1, 3, 1, 1), np.uint8)).float()
    corners = images[:, :, ::5, ::5].permute(0, 2, 3, 1).reshape(-1, 3)
    assert (corners - black.view(3)).abs().amax(1).lt(1e-6).any()
    assert images.amin(dim=(0, 2, 3)).sub(black.view(3)).abs().max() < 1e-6


def test_flips_about_half() -> None:
    data = make_set(train=400, flip=True)
    images, _ = joined(epoch(data, "x"))
    expected = normalised(data, data.train.images).float()
    unflipped = ((images[:, None] - expected[None]).abs().amax(dim=(2, 3, 4)) < 1e-5).any(1).float().mean()
    assert 0.4 < unflipped < 0.6


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(2, [2]), (8, [8]), (9, [9]), (10, [8, 2]), (16, [8, 8]), (17, [8, 9]), (7, [7])],
)
def test_a_last_batch_of_one_joins_the_one_before(count: int, sizes: list[int]) -> None:
    assert [len(labels) for _, labels in epoch(make_set(train=count), "x")] == sizes
    assert [stop - start for start, stop in batch_edges(count, 8)] == sizes


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_training_images_are_refused_at_once(count: int) -> None:
    source = make_set(train=count).open(CPU, 8, 4)
    with pytest.raises(DataError, match=f"training split has {count} images: at least 2"):
        source.train(0, "x")


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_type_and_layout(memory_format: str, pad: int, flip: bool) -> None:
    compute = Compute("cpu", "fp32", memory_format)
    source = make_set(pad=pad, flip=flip).open(compute, 8, 4)
    for images, labels in [*source.train(0, "x"), *source.evaluate("test")]:
        assert images.dtype == torch.float32 and images.shape[1:] == (3, 6, 6)
        assert images.is_contiguous(memory_format=compute.layout)
        assert labels.dtype == torch.int64


def test_layouts_hold_the_same_pixels() -> None:
    data = make_set(pad=2, flip=True)
    last = joined(epoch(data, "x", compute=Compute("cpu", "fp32", "channels_last")))
    assert torch.equal(joined(epoch(data, "x"))[0], last[0])


def test_read_only_arrays_serve_without_a_warning_and_stay_as_they_are() -> None:
    original = make_set(pad=2, flip=True)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(original, protocol=5, buffer_callback=buffers.append)
    received = pickle.loads(stream, buffers=[bytes(buffer) for buffer in buffers])
    assert not received.train.images.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = epoch(received, "x")
        tested = list(received.open(CPU, 8, 4).evaluate("test"))
    for images, _ in [*batches, *tested]:
        images.zero_()
    assert np.array_equal(received.train.images, original.train.images)
    assert torch.equal(joined(epoch(received, "x"))[0], joined(epoch(original, "x"))[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_batches() -> None:
    data = make_set(pad=2, flip=True)
    on_gpu = joined(epoch(data, "x", compute=Compute("cuda", "fp32", "channels_last")))
    on_cpu = joined(epoch(data, "x"))
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0]) and torch.equal(on_gpu[1].cpu(), on_cpu[1])


def test_images_that_are_not_square() -> None:
    data = make_set(train=0, pad=2, flip=True)
    data.train = make_split(9, (3, 4, 8))
    assert joined(epoch(data, "x"))[0].shape == (9, 3, 4, 8)
