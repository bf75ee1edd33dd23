"""Networks of a few hundred parameters, data to match, and naive formulas to compare with."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from raygf.compute import Compute, seeded_globals
from raygf.config.run import (
    ComputeConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    ResourceConfig,
    RunConfig,
    StorageConfig,
    TrackingConfig,
)
from raygf.data.base import ChannelStatistics, InputSpec
from raygf.data.in_memory import ImageSet
from raygf.data.splits import Split
from raygf.fusion.fusion_pass import SharesHere, run_pass
from raygf.methods.base import Setting
from raygf.models.multi_exit import MultiExitNetwork
from raygf.training.exit_trainer import PassTask
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork
from raygf.training.space import FlatSpace, find_ownership

torch.set_num_threads(1)

CPU = Compute("cpu", "fp32", "contiguous")
SPEC = InputSpec(1, 4, 4, 3)


def _stage(inputs):
    return nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())


def _head(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def _network(exits, spec):
    stages = [_stage(spec.channels if k == 0 else 4) for k in range(exits)]
    return MultiExitNetwork(stages, [_head(spec.classes) for _ in range(exits)])


def three_exits(spec=SPEC):
    """Three stages with BatchNorm, three heads: 393 parameters in 15 tensors."""
    return _network(3, spec)


def one_exit(spec=SPEC):
    """One stage, one head."""
    return _network(1, spec)


def plain(spec=SPEC, width=5):
    """Three exits without BatchNorm."""

    def stage(inputs):
        return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU())

    def head():
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, spec.classes))

    return MultiExitNetwork([stage(spec.channels), stage(width), stage(width)], [head() for _ in range(3)])


def with_dropout(spec=SPEC):
    """``three_exits`` with dropout in the first stage."""
    network = _network(3, spec)
    network.stages[0].append(nn.Dropout(0.3))
    return network


class Tied(nn.Module):
    """Two exits; the second layer uses the first one's weight again."""

    def __init__(self, spec=SPEC):
        super().__init__()
        self.into = nn.Linear(spec.channels * spec.height * spec.width, spec.classes)
        self.first = nn.Linear(spec.classes, spec.classes)
        self.second = nn.Linear(spec.classes, spec.classes)
        self.second.weight = self.first.weight

    def forward(self, x):
        one = self.first(self.into(x.flatten(1)))
        return [one, self.second(one)]


def seeded(build, seed=0):
    """What ``build`` makes, its weights drawn from ``seed``."""
    with seeded_globals(seed, "tiny"):
        return build()


def bind(build=three_exits, seed=0):
    """A bound network on the CPU."""
    return BoundNetwork(seeded(build, seed), CPU)


def owners_of(bound):
    """Which exit depends on which tensor (n, T)."""
    return find_ownership(bound.network, torch.zeros(2, 1, 4, 4), bound.space)


def setting_of(bound, **methods):
    """What a method may know of ``bound``."""
    return Setting(MethodConfig(**methods), bound.network, owners_of(bound), bound.space)


def space_of(*shapes):
    """The flat space of parameters "0", "1" … of these shapes."""
    return FlatSpace.of(nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes]))


def random_vectors(count, size, scale=1.0, seed=0, **kind):
    """``count`` normal vectors (size,)."""
    stream = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(size, generator=stream, **kind) for _ in range(count)]


def random_batches(count=3, size=6, seed=0):
    """``count`` batches for ``SPEC``."""
    stream = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 4, 4, generator=stream), torch.randint(0, 3, (size,), generator=stream))
        for _ in range(count)
    ]


def dataset(train=20, val=8, test=9, pad=0, flip=False):
    """Noisy images whose brightness tells the class."""

    def split(count, seed):
        draws = np.random.default_rng(seed)
        labels = draws.integers(0, 3, count)
        noise = draws.integers(0, 100, (count, 1, 4, 4))
        return Split((noise + 70 * labels[:, None, None, None]).astype(np.uint8), labels.astype(np.int64))

    statistics = ChannelStatistics((0.5,), (0.25,))
    return ImageSet("tiny", SPEC, ("a", "b", "c"), split(train, 1), split(val, 2), split(test, 3), statistics,
                    pad, flip)  # fmt: skip


def run_config(model="three_exits", path="unused", **changes):
    """A run on the tiny network: batches of 4, everything in this process."""
    config = RunConfig(
        rounds=4,
        batch_size=4,
        eval_batch_size=5,
        data=DataConfig(pad=0, flip=False),
        model=ModelConfig(f"tiny_network:{model}"),
        optim=OptimConfig(weight_decay=1e-3),
        compute=ComputeConfig("cpu", "fp32", "contiguous"),
        resources=ResourceConfig(executor="local"),
        storage=StorageConfig(path=path, name="run"),
        tracking=TrackingConfig(enabled=False),
    )
    return replace(config, **changes)


def pass_over(batches, config, bound, state, deltas, coefficients=(1.0, 1.0, 1.0)):
    """Runs fusion passes over ``batches``, in this process."""

    def run(make, base=None):
        task = PassTask(3, tuple(float(c) for c in coefficients), None if base is None else base.numpy())
        ranks = range(config.fusion.shards)
        shares = SharesHere(config, bound, batches, state, deltas, task, ranks)
        return run_pass(shares, make, "fusion pass, round 3")

    return run


def buffers_after(vector, batches):
    """The buffers of a fresh network at ``vector`` after a pass over ``batches`` in train mode."""
    bound = bind()
    bound.vector.copy_(vector)
    bound.network.train()
    with torch.no_grad():
        for images, _ in batches:
            bound.network(images)
    return dict(bound.network.named_buffers())


def torch_epoch(network, batches, sgd, coefficients=(1.0,)):
    """An epoch of torch's own SGD on the weighted sum of the exits' losses."""
    network.train()
    for images, labels in batches:
        sgd.zero_grad()
        (torch.stack(exit_losses(network(images), labels)) * torch.tensor(coefficients)).sum().backward()
        sgd.step()


def vector_of(network):
    """A copy of the parameters (P,)."""
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def segment_numbers(kind, shapes):
    """The segment of every element of the flat vector (P,), written down from the definition."""
    numbers: list[int] = []
    next_segment = 0
    for shape in shapes:
        size = int(np.prod(shape))
        parts = shape[0] if kind == "channel" and shape else 1
        numbers += [next_segment + element // (size // parts) for element in range(size)]
        next_segment += parts
    return torch.tensor(numbers) * (kind != "network")


def dense_fuse(base, deltas, weights, numbers):
    """``base + Σ_i weights_i Δ_i`` with every element's weight written out (n, P)."""
    return base + (weights[:, numbers] * torch.stack(deltas)).sum(dim=0)
