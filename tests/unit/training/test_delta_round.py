from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_network import (
    CPU,
    bind,
    dataset,
    dense_fuse,
    one_exit,
    run_config,
    seeded,
    segment_numbers,
    three_exits,
    with_dropout,
)
from torch import nn
from torch.testing import assert_close

from raygf.config.run import FusionConfig, OptimConfig, RunConfig
from raygf.errors import ConfigError
from raygf.fusion.batchnorm import weighted_statistics
from raygf.fusion.fuse import fusion_weights
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor, Trained
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork, NetworkState, as_tensor
from raygf.training.space import Segments, find_ownership

DATA = dataset()
STATE = bind().state()


class Reversed:
    """Trains the exits from the last to the first, each with a trainer of its own."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def train(self, state, round, momenta):
        n = len(momenta)
        updates = [
            ExitTrainer(self.config, DATA).train(state, exit, n, round, momenta[exit])
            for exit in reversed(range(n))
        ]
        return Trained(tuple(reversed(updates)), 0.0, 0.0, 0.0, ("hello",))

    def close(self):
        self.closed = True


def make(config: RunConfig, build=three_exits, executor=None, data=DATA) -> DeltaRound:
    bound = BoundNetwork(seeded(build), CPU)
    owned = find_ownership(bound.network, torch.zeros(2, 1, 4, 4), bound.space)
    executor = executor or LocalExecutor(config, data)
    return DeltaRound(config, bound, data.open(CPU, config.batch_size, 5), executor, owned)


def with_fusion(**fusion) -> RunConfig:
    return run_config(fusion=FusionConfig(**fusion))


@pytest.mark.parametrize("kind", ["tensor", "channel", "network"])
@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
def test_one_exit_alone_is_plain_sgd(kind, normalise):
    config = run_config("one_exit", fusion=FusionConfig(segments=kind, normalise=normalise))
    state = bind(one_exit).state()
    outcome = make(config, one_exit).run(state, 1)
    delta = ExitTrainer(config, DATA).train(state, 0, 1, 1).delta
    assert np.array_equal(outcome.state.vector, state.vector + delta)
    reference = bind(one_exit)
    sgd = torch.optim.SGD(reference.network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    reference.network.train()
    for images, labels in DATA.open(CPU, 4, 5).train(0, "exit", 1, 0):
        sgd.zero_grad()
        exit_losses(reference.network(images), labels).sum().backward()
        sgd.step()
    expected = torch.cat([p.detach().flatten() for p in reference.network.parameters()])
    assert_close(torch.from_numpy(outcome.state.vector), expected)
    assert outcome.fusion.weights.tolist() == [[1.0] * 5]


@pytest.mark.parametrize("kind", ["tensor", "channel", "network"])
def test_merge_is_with_the_fitted_weights(kind):
    """With ema = 0 the fitted η is what the checkpoint carries."""
    config = with_fusion(segments=kind, ema=0.0, epsilon=0.7)
    round = make(config)
    outcome = round.run(STATE, 1)
    trainer, space = ExitTrainer(config, DATA), bind().space
    deltas = [torch.from_numpy(trainer.train(STATE, exit, 3, 1).delta) for exit in range(3)]
    segments = Segments(kind, space)
    owned = segments.spread(find_ownership(bind().network, torch.zeros(1, 1, 4, 4), space))
    alpha = 0.7 * fusion_weights(as_tensor(round.arrays()["eta"]), owned)
    numbers = segment_numbers(kind, [slot.shape for slot in space.slots])
    expected = dense_fuse(torch.from_numpy(STATE.vector), deltas, alpha, numbers)
    assert_close(torch.from_numpy(outcome.state.vector), expected)
    common = alpha[:, owned.all(dim=0)]
    assert (common.amax(dim=0) - common.amin(dim=0)).max() > 0.02  # not just the mean


def test_next_round_starts_from_the_moving_average():
    fitted, averaged = make(with_fusion(ema=0.0)), make(with_fusion(ema=0.9))
    one, two = fitted.run(STATE, 1), averaged.run(STATE, 1)
    assert np.array_equal(one.state.vector, two.state.vector)  # the merge uses the fitted η
    assert_close(averaged.arrays()["eta"], 0.9 + 0.1 * fitted.arrays()["eta"])
    for name in ("adam_first", "adam_second", "adam_steps"):
        assert np.array_equal(averaged.arrays()[name], fitted.arrays()[name])


def test_weights_learn_in_every_round():
    """In the published program they dropped out of the optimizer after the first."""
    round, state, seen = make(run_config()), STATE, []
    for number in (1, 2, 3):
        outcome = round.run(state, number)
        state = outcome.state
        seen.append(copy.deepcopy(round.arrays()))
        assert seen[-1]["adam_steps"] == 5 * number
    assert np.abs(seen[0]["eta"] - 1).max() > 1e-3
    for before, after in pairwise(seen):
        assert np.abs(after["eta"] - before["eta"]).max() > 1e-4
        assert not np.array_equal(after["adam_second"], before["adam_second"])


def test_fusion_rate_decays_with_the_rounds():
    """The first step of Adam is as long as its rate; one batch makes it the only one."""
    config = replace(with_fusion(ema=0.0), batch_size=20)
    steps = [
        np.abs(round.arrays()["eta"] - 1).max()
        for number in (1, 2, 3, 4)
        if (round := make(config)).run(STATE, number)
    ]
    assert steps == pytest.approx([0.1, 0.1, 0.01, 0.001], rel=1e-2)


@pytest.mark.parametrize("carry", [False, True])
def test_arrays_and_restore_continue_the_run(carry):
    config = run_config(optim=OptimConfig(carry_momentum=carry))
    whole = make(config)
    middle = whole.run(STATE, 1).state
    arrays = copy.deepcopy(whole.arrays())
    expected = whole.run(middle, 2).state
    second = make(config)
    second.restore(arrays)
    assert second.run(middle, 2).state.sha256() == expected.sha256()
    one, two = whole.arrays(), second.arrays()
    assert one.keys() == two.keys()
    assert ("momentum_2" in one) is carry
    assert all(np.array_equal(one[name], two[name]) for name in one)
    fresh = make(config).run(middle, 2).state
    assert fresh.sha256() != expected.sha256()  # what is stored matters


def test_restore_takes_read_only_arrays_and_writes_nothing():
    config = run_config(optim=OptimConfig(carry_momentum=True))
    round = make(config)
    middle = round.run(STATE, 1).state
    arrays = copy.deepcopy(round.arrays())
    for array in arrays.values():
        array.flags.writeable = False
    before = {name: array.copy() for name, array in arrays.items()}
    round.restore(arrays)
    round.run(middle, 2)
    assert all(np.array_equal(before[name], arrays[name]) for name in before)


def test_arrays_stand_when_the_run_goes_on():
    """A checkpoint may still be on its way while the next round trains."""
    round = make(run_config(optim=OptimConfig(carry_momentum=True)))
    middle = round.run(STATE, 1).state
    arrays = round.arrays()
    before = copy.deepcopy(arrays)
    round.run(middle, 2)
    assert all(np.array_equal(before[name], arrays[name]) for name in before)


def test_who_trains_and_in_which_order_changes_no_bit():
    config = run_config()
    one, two = make(config).run(STATE, 1), make(config, executor=Reversed(config)).run(STATE, 1)
    assert one.state.sha256() == two.state.sha256()
    assert one.train == two.train
    assert two.notes == ("hello",)


def test_dropout_in_the_fusion_pass_is_seeded():
    config, seen = run_config("with_dropout"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        seen.append(make(config, with_dropout).run(STATE, 1).state.sha256())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert seen[0] == seen[1]


def test_the_state_is_not_written():
    state = bind().state()
    before = state.sha256()
    for array in (state.vector, *state.buffers.values()):
        array.flags.writeable = False
    make(run_config()).run(state, 1)
    assert state.sha256() == before


def test_recalibrated_statistics_come_from_the_fusion_pass():
    """With lr = 0 the fused network stays the same during the pass, so it can be run by hand."""
    config = with_fusion(lr=0.0)
    outcome = make(config).run(STATE, 1)
    by_hand = bind()
    by_hand.load(NetworkState(outcome.state.vector, STATE.buffers))
    by_hand.network.train()
    with torch.no_grad():
        for images, _ in DATA.open(CPU, 4, 5).train(0, "fuse", 1):
            by_hand.network(images)
    for name, value in by_hand.network.named_buffers():
        assert_close(torch.from_numpy(outcome.state.buffers[name]), value)


@pytest.mark.parametrize("kind", ["tensor", "channel"])
def test_weighted_statistics_are_the_exits_averaged(kind):
    config = with_fusion(segments=kind, batchnorm="weighted", ema=0.0)
    round = make(config)
    outcome = round.run(STATE, 1)
    trainer, bound = ExitTrainer(config, DATA), bind()
    buffers = [
        {name: torch.from_numpy(a) for name, a in trainer.train(STATE, exit, 3, 1).buffers.items()}
        for exit in range(3)
    ]
    segments = Segments(kind, bound.space)
    owned = segments.spread(find_ownership(bound.network, torch.zeros(1, 1, 4, 4), bound.space))
    alpha = fusion_weights(as_tensor(round.arrays()["eta"]), owned)
    expected = weighted_statistics(bound.network, buffers, alpha, segments)
    for name, value in expected.items():
        assert_close(torch.from_numpy(outcome.state.buffers[name]), value)
    deepest = outcome.state.buffers["stages.2.1.running_var"]
    assert_close(torch.from_numpy(deepest), buffers[2]["stages.2.1.running_var"])


def test_weighted_statistics_without_a_scale_are_refused_early():
    def plain(spec=None):
        network = three_exits()
        network.stages[1][1] = nn.BatchNorm2d(4, affine=False)
        return network

    with pytest.raises(ConfigError, match=r"fusion\.batchnorm = 'weighted': stages\.1\.1 has no"):
        make(with_fusion(batchnorm="weighted"), plain)


def test_report():
    outcome = make(run_config()).run(STATE, 1)
    report, names = outcome.fusion, bind().space.names
    owned = ~np.isnan(report.weights)
    expected = find_ownership(bind().network, torch.zeros(1, 1, 4, 4), bind().space).numpy()
    assert np.array_equal(owned, expected)
    assert np.nansum(report.weights, axis=0) == pytest.approx(np.ones(len(names)))
    shared = [t for t, name in enumerate(names) if name.startswith(("stages.0", "stages.1"))]
    own = [[t for t in shared if owned[exit, t]] for exit in range(3)]
    means = [report.weights[exit, own[exit]].mean() for exit in range(3)]
    assert report.mean_weight == pytest.approx(means)
    deltas = [ExitTrainer(run_config(), DATA).train(STATE, exit, 3, 1).delta for exit in range(3)]
    assert report.delta_norm[2] != pytest.approx(np.linalg.norm(deltas[2]))  # not over what it doesn't own
    views = [bind().space.views(torch.from_numpy(delta)) for delta in deltas]
    stem = [torch.cat([v[name].flatten() for name in names if name.startswith("stages.0")]) for v in views]
    cosine = nn.functional.cosine_similarity(stem[0], stem[2], dim=0).item()
    assert report.cosine[0, 2] == report.cosine[2, 0] == pytest.approx(cosine, abs=1e-5)
    assert np.diag(report.cosine) == pytest.approx(np.ones(3))


def test_scores_and_times():
    outcome = make(run_config()).run(STATE, 1)
    trainer = ExitTrainer(run_config(), DATA)
    updates = [trainer.train(STATE, exit, 3, 1) for exit in range(3)]
    assert outcome.train.loss == tuple(update.loss for update in updates)
    assert outcome.train.accuracy == tuple(update.accuracy for update in updates)
    assert set(outcome.seconds) == {"broadcast", "train", "wait", "fuse"}
    assert min(outcome.seconds.values()) >= 0


def test_costs_a_pass_an_exit_and_one_more():
    assert make(run_config()).passes == 4
    assert make(run_config("one_exit"), one_exit).passes == 2


def test_closing_closes_the_executor():
    executor = Reversed(run_config())
    make(run_config(), executor=executor).close()
    assert executor.closed


def test_an_unused_parameter_never_moves():
    """It decays in every exit's training, but nobody owns it."""

    def with_spare(spec=None):
        network = three_exits()
        network.spare = nn.Linear(2, 2)
        return network

    bound = bind(with_spare)
    rng = np.random.default_rng(0)

    class Fake:
        def train(self, state, round, momenta):
            base = LocalExecutor(run_config(), DATA).train(STATE, round, momenta)
            wide = [
                replace(u, delta=np.append(u.delta, rng.normal(size=6)).astype(np.float32))
                for u in base.updates
            ]
            return replace(base, updates=tuple(wide))

    state = bound.state()
    outcome = make(run_config(), with_spare, Fake()).run(state, 1)
    assert np.array_equal(outcome.state.vector[-6:], state.vector[-6:])
    assert not np.array_equal(outcome.state.vector[:-6], state.vector[:-6])
    assert np.isnan(outcome.fusion.weights[:, -2:]).all()
    assert np.isfinite(outcome.fusion.mean_weight).all()
