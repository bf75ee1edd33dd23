"""Augmentation by torchvision: of every image by itself, of whole batches, the same for equal keys."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_images import CPU, bits, load_streamed, make_set, make_split, refused, write_folders

from raygf.config.run import DataConfig
from raygf.data.augment import Augmentation, mixed
from raygf.data.load import load_data
from raygf.errors import name_function

GREY = torch.full((64, 3, 16, 16), 100, dtype=torch.uint8)
GREY[:, :, 4:12, 4:12] = torch.arange(64, dtype=torch.uint8).view(8, 8) * 3


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_every_image_is_changed_by_draws_of_its_own(name):
    augment = Augmentation(name)
    torch.manual_seed(1)
    first, before = augment.each(GREY, 0, "exit", 1, 2, 64), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(augment.each(GREY, 0, "exit", 1, 2, 64), first)
    assert not torch.equal(augment.each(GREY, 0, "exit", 1, 2, 128), first)
    assert torch.equal(torch.manual_seed(1).get_state(), before)  # it leaves the generator as it was
    assert len(first.flatten(1).unique(dim=0)) > 20 and first.dtype == torch.uint8
    assert torch.equal(GREY[0], GREY[1])


def test_a_share_of_the_images_is_erased_in_part():
    white = torch.full((400, 1, 12, 12), 255, dtype=torch.uint8)
    erased = (Augmentation(erasing=0.25).each(white, 0, "x") == 0).float().mean(dim=(1, 2, 3))
    assert 70 < int((erased > 0).sum()) < 130
    assert 0.01 < erased[erased > 0].min() < erased.max() < 0.4
    assert Augmentation().each(white, 0) is white


def test_training_is_augmented_and_evaluation_is_not():
    plain, strong = make_set(train=20), make_set(train=20)
    strong.augmentation = Augmentation("trivialaugment", 0.5)
    one, two = plain.open(CPU, 8, 4), strong.open(CPU, 8, 4)
    trained = bits(two.train(0, "exit", 1, 0))
    assert trained == bits(strong.open(CPU, 8, 4).train(0, "exit", 1, 0)) != bits(one.train(0, "exit", 1, 0))
    assert bits(one.evaluate("test")) == bits(two.evaluate("test"))


def test_streamed_images_are_the_same_with_any_number_of_workers(tmp_path):
    write_folders(tmp_path, train=12)

    def epoch(**settings):
        data = load_streamed(tmp_path, source="imagefolder", **settings)
        return bits(data.open(CPU, 8, 8).train(0, "exit", 1, 0))

    strong = {"augment": "randaugment", "erasing": 0.5}
    assert epoch(**strong) == epoch(workers=2, **strong) != epoch()


@pytest.mark.parametrize("kinds", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_batches_are_mixed_with_themselves_as_their_labels_say(kinds):
    source = make_set(train=48).open(CPU, 8, 4)
    config = DataConfig(**dict.fromkeys(kinds, 1.0))
    plain, seen = list(source.train(0, "exit", 1, 0)), set()
    for (images, labels), (before, classes) in zip(
        mixed(source, config, 0, "exit", 1, 0), plain, strict=True
    ):
        hard = torch.nn.functional.one_hot(classes, 10).float()
        pair = int((classes != classes.roll(1)).nonzero()[0])
        share = labels[pair, classes[pair]]
        torch.testing.assert_close(labels, share * hard + (1 - share) * hard.roll(1, 0))
        kept = (images == before).all(dim=1).all(dim=0)
        seen.add("cutmix" if kept.any() else "mixup")
        mixture = share * before + (1 - share) * before.roll(1, 0)
        expected = torch.where(kept, before, before.roll(1, 0)) if kept.any() else mixture
        torch.testing.assert_close(images, expected)
        assert torch.isclose(kept.float().mean(), share) or not kept.any()
    assert seen == set(kinds)
    again = bits(mixed(source, config, 0, "exit", 1, 0))
    torch.manual_seed(5)
    assert (
        bits(mixed(source, config, 0, "exit", 1, 0)) == again != bits(mixed(source, config, 0, "exit", 1, 1))
    )


def test_without_mixing_nothing_changes_and_odd_channels_are_refused():
    source = make_set(train=20).open(CPU, 8, 4)
    assert bits(mixed(source, DataConfig(), 0, "x")) == bits(source.train(0, "x"))
    odd = make_split(9, (2, 6, 6))
    loaded = [
        (torch.from_numpy(image), int(label)) for image, label in zip(odd.images, odd.labels, strict=True)
    ]
    config = DataConfig(source=name_function(lambda config: (loaded, loaded)), augment="randaugment", pad=0)
    with refused("data.augment = 'randaugment': for images of 1 or 3 channels, not 2"):
        load_data(config, 0)
    assert np.array_equal(load_data(replace(config, augment="none"), 0).test.images, odd.images)
