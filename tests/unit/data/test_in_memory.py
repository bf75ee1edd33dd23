"""Batches from memory: every image once, equal for equal keys, exact pixels."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from made_up_images import CPU, bits, make_set, make_split, refused
from torch.nn import functional

from raygf.compute import Compute, generator
from raygf.config.run import RunConfig
from raygf.data.base import Portion, batch_edges, images_of_rounds, round_batches
from raygf.data.in_memory import crop, draw_epoch


@pytest.mark.parametrize(("height", "width", "pad"), [(6, 6, 1), (6, 6, 4), (5, 9, 2), (3, 3, 5)])
def test_crop_is_pad_and_slice(height, width, pad):
    side = torch.arange(2 * pad + 1)
    corners = torch.cartesian_prod(side, side)
    images = torch.tensor(make_split(len(corners), (3, height, width)).images)
    padded = functional.pad(images, (pad, pad, pad, pad))
    expected = [
        image[:, top : top + height, left : left + width]
        for image, (top, left) in zip(padded, corners.tolist(), strict=True)
    ]
    assert torch.equal(crop(images, corners, pad), torch.stack(expected))


def test_draws_cover_their_range_and_nothing_else():
    draws = draw_epoch(2000, 3, True, generator(0, "x"))
    assert torch.equal(draws.order.sort().values, torch.arange(2000))
    assert draws.corners is not None and draws.flips is not None
    assert draws.corners.shape == (2000, 2)
    for edge in draws.corners.unbind(1):
        assert torch.equal(edge.unique(), torch.arange(7))
    assert 900 < int(draws.flips.sum()) < 1100
    off = draw_epoch(2000, 0, False, generator(0, "x"))
    assert off.corners is None and off.flips is None and torch.equal(off.order, draws.order)


def epoch(data, *key, compute=CPU):
    return list(data.open(compute, 8, 4).train(0, *key))


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def normalised(data, images):
    """The textbook formula, in float64."""
    pixels, mean, std = map(torch.tensor, (images / 255, data.statistics.mean, data.statistics.std))
    return (pixels - mean.double().view(-1, 1, 1)) / std.double().view(-1, 1, 1)


def test_equal_keys_give_equal_batches_in_every_open_and_others_do_not():
    data = make_set(pad=2, flip=True)
    first = bits(epoch(data, "exit", 3, 1))
    assert bits(epoch(data, "exit", 3, 1)) == first
    for seed, *key in ((0, "exit", 4, 1), (0, "exit", 3, 2), (0, "fusion", 3), (1, "exit", 3, 1)):
        assert bits(data.open(CPU, 8, 4).train(seed, *key)) != first


@pytest.mark.parametrize(("images", "sizes"), [(2, [2]), (16, [8, 8]), (17, [8, 9]), (99, [8, 8, 4])])
def test_fewer_images_are_the_first_of_the_epochs_order(images, sizes):
    data = make_set(train=20, pad=2, flip=True)
    whole = joined(epoch(data, "fuse", 1))
    some = list(data.open(CPU, 8, 4).train(0, "fuse", 1, part=Portion(images=images)))
    assert [len(labels) for _, labels in some] == sizes
    for mine, all_ in zip(joined(some), whole, strict=True):
        assert torch.equal(mine, all_[: sum(sizes)])


@pytest.mark.parametrize("train", [17, 20, 24])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, None])
def test_rounds_of_any_length_go_on_where_the_last_one_stopped(train, steps):
    data = make_set(train=train, pad=2, flip=True)
    source, rounds = data.open(CPU, 8, 4), range(1, 7)
    config = RunConfig(batch_size=8, round_steps=steps)
    made = [list(round_batches(source, config, "exit", round, 2)) for round in rounds]
    epochs = [batch for number in range(1, 20) for batch in source.train(0, "exit", number, 2)]
    assert [len(some) for some in made] == [steps or -(-train // 8) - (train == 17)] * 6
    flat = [batch for some in made for batch in some]
    assert bits(flat) == bits(epochs[: len(flat)])
    images = [sum(len(labels) for some in made[:done] for _, labels in some) for done in rounds]
    assert [images_of_rounds(config, done, train) for done in rounds] == images


def test_validation_images_are_shuffled_and_left_as_they_are():
    data = make_set(train=4, val=9, pad=2, flip=True)
    source, part = data.open(CPU, 4, 4), Portion("val")
    order = draw_epoch(9, 0, False, generator(0, "fuse", 1)).order
    for made, whole in zip(
        joined(source.train(0, "fuse", 1, part=part)), joined(source.evaluate("val")), strict=True
    ):
        assert torch.equal(made, whole[order])


def test_an_epoch_is_its_draws_applied_image_by_image():
    data = make_set(train=0, pad=2, flip=True)
    data.train = make_split(21, (3, 6, 8))
    draws = draw_epoch(21, 2, True, generator(0, "exit", 5, 2))
    assert draws.corners is not None and draws.flips is not None
    expected = []
    for index, (top, left), flip in zip(draws.order, draws.corners, draws.flips, strict=True):
        padded = np.pad(data.train.images[index], ((0, 0), (2, 2), (2, 2)))
        cut = padded[:, top : top + 6, left : left + 8]
        expected.append(cut[:, :, ::-1] if flip else cut)
    images, labels = joined(epoch(data, "exit", 5, 2))
    torch.testing.assert_close(images.double(), normalised(data, np.stack(expected)), rtol=0, atol=1e-6)
    assert torch.equal(labels, torch.tensor(data.train.labels)[draws.order])


@pytest.mark.parametrize(
    ("split", "sizes"), [("train", [4, 4, 1]), ("val", [4, 1]), ("test", [4, 3])], ids=str
)
def test_evaluation_keeps_order_and_pixels_whatever_the_augmentation(split, sizes):
    data = make_set(train=9, pad=4, flip=True)
    batches = list(data.open(CPU, 8, 4).evaluate(split))
    images, labels = joined(batches)
    assert [len(batch) for _, batch in batches] == sizes and data.count(split) == sum(sizes)
    expected = normalised(data, data.splits[split].images)
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(labels, torch.tensor(data.splits[split].labels))
    assert list(make_set(val=0).open(CPU, 8, 4).evaluate("val")) == []


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, [2]), (8, [8]), (9, [9]), (10, [8, 2]), (16, [8, 8]), (17, [8, 9]), (7, [7])]
)
def test_a_last_batch_of_one_joins_the_one_before(count, sizes):
    assert [len(labels) for _, labels in epoch(make_set(train=count), "x")] == sizes
    assert [stop - start for start, stop in batch_edges(count, 8)] == sizes


def test_too_few_training_images_are_refused_at_once():
    for count in (0, 1):
        with refused(f"training split has {count} images: at least 2"):
            make_set(train=count).open(CPU, 8, 4).train(0, "x")


def test_read_only_arrays_serve_without_a_warning_and_stay_as_they_are():
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
    assert bits(epoch(received, "x")) == bits(epoch(original, "x"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_batches():
    data = make_set(pad=2, flip=True)
    on_gpu = epoch(data, "x", compute=Compute("cuda", "fp32", "channels_last"))
    assert bits((images.cpu(), labels.cpu()) for images, labels in on_gpu) == bits(epoch(data, "x"))
