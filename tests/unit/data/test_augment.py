"""Augmentation by torchvision: of every image by itself, of whole batches, the same for equal keys."""

import pytest
import torch
from made_up_images import CPU, bits, load_streamed, make_set, write_folders
from torch.nn.functional import one_hot

from raygf.config.run import DataConfig, RunConfig
from raygf.data.augment import Augmentation, mixed

IMAGES = torch.full((64, 3, 16, 16), 100, dtype=torch.uint8)
IMAGES[:, :, 4:12, 4:12] = torch.arange(64, dtype=torch.uint8).view(8, 8) * 3


@pytest.mark.parametrize("augment", [Augmentation("randaugment"), Augmentation("trivialaugment", 0.5)])
def test_every_image_is_changed_by_draws_of_its_own_from_its_key(augment):
    before = torch.random.get_rng_state()
    first = augment.each(IMAGES, 0, "exit", 1, 2, 64)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(first.flatten(1).unique(dim=0)) > 20 and first.dtype == torch.uint8
    torch.rand(1)
    assert torch.equal(augment.each(IMAGES, 0, "exit", 1, 2, 64), first)
    assert not torch.equal(augment.each(IMAGES, 0, "exit", 1, 2, 128), first)


def test_a_share_of_the_images_is_erased_in_part():
    white = torch.full((400, 1, 12, 12), 255, dtype=torch.uint8)
    erased = (Augmentation(erasing=0.25).each(white, 0, "x") == 0).float().mean(dim=(1, 2, 3))
    assert 70 < int((erased > 0).sum()) < 130 and 0.01 < erased[erased > 0].min() < erased.max() < 0.4


def test_training_is_augmented_and_evaluation_is_not():
    data = make_set(train=20)
    plain = data.open(CPU, 8, 4)
    trained, tested = bits(plain.train(0, "exit", 1, 0)), bits(plain.evaluate("test"))
    data.augmentation = Augmentation("trivialaugment", 0.5)
    assert bits(plain.train(0, "exit", 1, 0)) == bits(data.open(CPU, 8, 4).train(0, "exit", 1, 0)) != trained
    assert bits(plain.evaluate("test")) == tested


def test_streamed_images_are_the_same_with_any_number_of_workers(tmp_path):
    write_folders(tmp_path, train=12)

    def epoch(**settings):
        data = load_streamed(tmp_path, source="imagefolder", **settings)
        return bits(data.open(CPU, 8, 8).train(0, "exit", 1, 0))

    strong = {"augment": "randaugment", "erasing": 0.5}
    assert epoch(**strong) == epoch(workers=2, **strong) != epoch()


@pytest.mark.parametrize("kinds", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_batches_are_mixed_with_themselves_as_their_labels_say(kinds):
    source, seen = make_set(train=48).open(CPU, 8, 4), set()
    config = RunConfig(data=DataConfig(**dict.fromkeys(kinds, 1.0)))
    batches = list(mixed(source, config, "exit", 1, 0))
    for (images, labels), (before, classes) in zip(batches, source.train(0, "exit", 1, 0), strict=True):
        hard, other = one_hot(classes, 10).float(), before.roll(1, 0)
        pair = int((classes != classes.roll(1)).nonzero()[0])
        share = labels[pair, classes[pair]]
        torch.testing.assert_close(labels, share * hard + (1 - share) * hard.roll(1, 0))
        kept = (images == before).all(dim=1).all(dim=0)
        cut = bool(kept.any())
        seen.add("cutmix" if cut else "mixup")
        expected = torch.where(kept, before, other) if cut else share * before + (1 - share) * other
        torch.testing.assert_close(images, expected)
        assert not cut or torch.isclose(kept.float().mean(), share)
    assert seen == set(kinds)
    torch.rand(1)
    assert bits(mixed(source, config, "exit", 1, 0)) == bits(batches)
