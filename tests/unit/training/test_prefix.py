"""Trainings of a part of the network agree with those of the whole, and leave the rest alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_network import CPU, SPEC, bind, dataset, run_config, seeded
from torch.testing import assert_close

from raygf.config.run import LossConfig, ModelConfig, MSDNetConfig, OptimConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.build import build_model
from raygf.training.exit_trainer import ExitTrainer
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork
from raygf.training.prefix import parts_of, prefix
from raygf.training.space import Stretches, find_ownership

MSDNET = ModelConfig(
    msdnet=MSDNetConfig(exits=3, base=2, step=1, channels=4, growth=4, factors=(1, 2), head_channels=8)
)
STEP = OptimConfig(lr=0.05, momentum=0.9, weight_decay=1e-3)


def trained(model, aux_exits, aux, exit):
    """The exit's delta as a whole vector (P,), 0 where nothing is sent, and the trainer that made it."""
    config = replace(run_config(), model=model, optim=STEP, loss=LossConfig(aux, aux_exits=aux_exits))
    trainer = ExitTrainer(config, dataset())
    state = bound(model).state()
    update = trainer.train(state, exit, 3, 1)
    return trainer.whole(update), update


def bound(model):
    return BoundNetwork(build_model(model, SPEC, 0), CPU)


@pytest.mark.parametrize("model", [MSDNET, ModelConfig("tiny_network:three_exits")], ids=["msdnet", "stages"])
@pytest.mark.parametrize("exit", [0, 1, 2])
def test_an_exit_alone_moves_as_in_the_whole_network_with_no_weight_on_the_others(model, exit):
    part, update = trained(model, "none", 0.0, exit)
    whole, of_all = trained(model, "all", 0.0, exit)
    network = bound(model)
    owned = find_ownership(network.network, SPEC.blank(2), network.space)[exit].tolist()
    mine = Stretches.of(network.space, owned)
    assert len(update.delta) == mine.size < network.space.size
    assert_close(part, mine.unpack(mine.pack(whole)), rtol=1e-4, atol=1e-5)
    assert update.loss == pytest.approx(of_all.loss, rel=1e-5) and update.accuracy == of_all.accuracy
    assert update.buffers.keys() <= of_all.buffers.keys()
    for name, array in update.buffers.items():
        np.testing.assert_allclose(array, of_all.buffers[name], rtol=1e-4, atol=1e-5)


def test_shallower_exits_pull_too_and_deeper_ones_do_not():
    """One step by hand, on ``CE_2 + λ CE_1``."""
    network = bind(seed=0)
    config = replace(
        run_config(), optim=OptimConfig(0.1, 0.0, 0.0), loss=LossConfig(0.5, aux_exits="shallower")
    )
    data = dataset(train=4)
    update = ExitTrainer(config, data).train(network.state(), 1, 3, 1)
    before = network.vector.clone()
    network.network.train()
    images, labels = next(iter(data.open(CPU, 4, 5).train(0, "exit", 1, 1)))
    first, second, _ = exit_losses(network.forward(images), labels)
    (0.5 * first + second).backward()
    owned = find_ownership(network.network, SPEC.blank(2), network.space)[1].tolist()
    expected = Stretches.of(network.space, owned).pack(-0.1 * network.grad)
    assert_close(torch.from_numpy(update.delta), expected)
    assert torch.equal(network.vector, before)


@pytest.mark.parametrize("exits", [range(3), range(1), range(1, 2), range(2, 3)])
def test_a_prefix_gives_the_networks_own_logits(exits):
    spec = InputSpec(3, 16, 16, 5)
    network = build_model(MSDNET, spec, 0).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole, part = network(images), prefix(network, exits)(images)
    for mine, exit in zip(part, exits, strict=True):
        assert_close(mine, whole[exit])


def test_a_prefix_runs_no_deeper_module_and_no_other_head():
    network = bind().network
    called = []
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    prefix(network, range(1, 2))(torch.zeros(2, 1, 4, 4))
    tops = {".".join(name.split(".")[:2]) for name in called}
    assert tops == {"stages.0", "stages.1", "heads.1"}


def test_a_network_without_stages_runs_whole_and_moves_what_the_exit_owns():
    network = seeded(lambda: TwoLayers())
    parts = parts_of(BoundNetwork(network, CPU), SPEC.blank(2), "none")
    assert [part.owned.size for part in parts] == [51, 63]
    assert [len(part.forward(SPEC.blank(2))) for part in parts] == [1, 1]


class TwoLayers(torch.nn.Module):
    """Two exits in a row, by no stages."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 3), torch.nn.Linear(3, 3)

    def forward(self, x):
        one = self.first(x.flatten(1))
        return [one, self.second(one)]


class WithStem(torch.nn.Module):
    """Has stages and heads, but its forward pass begins with something else."""

    def __init__(self):
        super().__init__()
        self.stem, self.stages = torch.nn.Linear(16, 4), torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.heads = torch.nn.ModuleList([torch.nn.Linear(4, 3)])

    def forward(self, x):
        return [self.heads[0](self.stages[0](self.stem(x.flatten(1))))]


def test_what_a_network_of_ones_own_does_beside_its_stages_is_not_left_out():
    network = seeded(WithStem)
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    (logits,) = prefix(network, range(1))(images)
    assert torch.equal(logits, network(images)[0])


def test_stretches_join_neighbours_and_put_back_what_they_took():
    space = bind().space
    chosen = [number in (0, 1, 5) for number in range(len(space.slots))]
    stretches = Stretches.of(space, chosen)
    vector = torch.arange(1.0, space.size + 1)
    assert [len(part) for part in stretches.cut(vector)] == [
        space.slots[1].stop,
        space.slots[5].stop - space.slots[5].start,
    ]
    packed = stretches.pack(vector)
    kept = torch.cat([torch.full((s.stop - s.start,), c) for s, c in zip(space.slots, chosen, strict=True)])
    assert torch.equal(stretches.unpack(packed), vector * kept)


def test_the_deepest_exit_can_not_teach_where_it_is_not_run():
    with pytest.raises(ConfigError, match=r"loss\.aux_exits = 'none': must be all with loss\.distill"):
        LossConfig(aux_exits="none", distill=True)
