from dataclasses import replace

import pytest
import torch

from raygf.compute import seeded_globals
from raygf.config.run import MSDNetConfig
from raygf.data.base import InputSpec
from raygf.models.msdnet import DenseLayer, MSDNet
from raygf.models.msdnet_lazy import lazy_stages

SPEC = InputSpec(3, 16, 16, 4)
SMALL = MSDNetConfig(exits=4, base=2, step=1, channels=8, growth=4, factors=(1, 2, 4), head_channels=8)
SHAPES = {
    "pruned": SMALL,
    "a scale dropped within a stage": replace(SMALL, exits=3, base=2, step=2),
    "two scales": replace(SMALL, factors=(1, 2)),
    "one scale": replace(SMALL, factors=(1,)),
    "no layers between the first": replace(SMALL, exits=2, base=1, step=1),
    "one exit": replace(SMALL, exits=1, base=5),
}


def build(config):
    with seeded_globals(0, "lazy"):
        network = MSDNet(config, SPEC)
        for _ in range(3):
            network(torch.randn(8, 3, 16, 16))
    return network.eval()


def walk(network, images):
    logits, state = [], images
    for stage, head in zip(lazy_stages(network), network.heads, strict=True):
        state = stage(state)
        logits.append(head(state))
    return logits


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_same_bits_as_the_forward_pass_and_nothing_computed_twice(config):
    network, images = build(config), torch.randn(3, 3, 16, 16)
    logits = walk(network, images)
    assert len(logits) == config.exits
    for lazy, plain in zip(logits, network(images), strict=True):
        assert torch.equal(lazy, plain)
    names = calls_up_to(network, config.exits)
    assert len(names) == len(set(names))


def calls_up_to(network, exit):
    """Names of the units of dense layers that run up to ``exit``."""
    names: list[str] = []
    hooks = [
        unit.register_forward_hook(lambda *_, name=name: names.append(name))
        for path, layer in network.named_modules()
        if isinstance(layer, DenseLayer)
        for name, unit in [(f"{path}.{scale}", unit) for scale, unit in enumerate(layer.scales)]
    ]
    state = torch.randn(2, 3, 16, 16)
    for stage in lazy_stages(network)[:exit]:
        state = stage(state)
    for hook in hooks:
        hook.remove()
    return names


@torch.no_grad()
def test_the_first_exit_leaves_out_what_its_head_does_not_need():
    """Three layers, three scales: after them the coarsest is at layer 3, the middle at 2, the finest at 1."""
    network = build(replace(SMALL, exits=2, base=3, step=6))
    expected = ["1.0", "1.1", "1.2", "2.1", "2.2", "3.2"]
    assert sorted(calls_up_to(network, 1)) == [f"stages.0.{name}" for name in expected]
    assert len(calls_up_to(network, 2)) > 6 + 2  # what was left out is made up for


@torch.no_grad()
def test_rows_are_independent_and_a_state_is_small():
    """What the classifier relies on: a subset of the rows goes on as if it had been alone."""
    network, images = build(SMALL), torch.randn(6, 3, 16, 16)
    first, *rest = lazy_stages(network)
    state = [part[[1, 4]] for part in first(images)]
    for stage in rest:
        state = stage(state)
        assert 1 <= len(state) <= 3  # at most a tensor per scale
    assert len(state) == 1  # only the last head reads it
    torch.testing.assert_close(network.heads[-1](state), network(images[[1, 4]])[-1])
