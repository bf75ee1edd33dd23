"""Every network trains with every method: two rounds on a few real images.

The networks are the real ones, but with fewer channels where there are many (and MSDNet with one layer an
exit), and the images are small; ``benchmarks/pairs.py`` does the same at full size with a few hundred images.
The losses are shown as a table at the end of the tests.
"""

import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from few_images import few_images
from pair_bench import METHODS, NETWORKS, Bench, Pair

from raygf.compute import torch_threads
from raygf.config.run import ModelConfig, MSDNetConfig
from raygf.models.build import BUILDERS
from raygf.models.sdn import VGG16SDN, MobileNetSDN, WideResNet32x4SDN

CIFAR = Path(os.environ.get("RAYGF_DATA") or Path(__file__).parents[3] / "shared" / "data") / "cifar10"
IMAGES = 8
ATTACHED = "torchvision:shufflenet_v2_x0_5@0.5"
MSDNET = MSDNetConfig(base=1, step=1, channels=4, growth=4, head_channels=16)
SIZES = {"vgg16-sdn": 32}
"""Pixels a side; 8 where nothing stands here."""


@pytest.fixture(scope="module", params=[*BUILDERS, ATTACHED])
def bench(request):
    """A network and the images; real photographs where there are any."""
    name = request.param
    data = few_images(str(CIFAR) if CIFAR.is_dir() else "", IMAGES, SIZES.get(name, 8))
    with pytest.MonkeyPatch.context() as patch, torch_threads(1):
        for kind, factor in ((VGG16SDN, 8), (WideResNet32x4SDN, 8), (MobileNetSDN, 8)):
            patch.setattr(kind, "widths", tuple(width // factor for width in kind.widths))
        patch.setattr(VGG16SDN, "hidden", 32)
        yield name, Bench(ModelConfig(name, msdnet=MSDNET), data, IMAGES, lr=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_two_rounds(bench, method, record_property):
    name, trainer = bench
    started = time.process_time()
    losses = trainer.train(method)
    record_property("pair", asdict(Pair(name, method, losses, time.process_time() - started)))
    assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_the_program_trains_all_of_them_too():
    assert {*BUILDERS} < {*NETWORKS}
