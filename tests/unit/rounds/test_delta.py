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
    one_exit,
    owners_of,
    plain,
    run_config,
    seeded,
    three_exits,
    with_dropout,
)
from torch import nn
from torch.testing import assert_close

from raygf.config.run import FusionConfig, LossConfig, ModelConfig, OptimConfig, ResourceConfig
from raygf.errors import ConfigError
from raygf.fusion.batchnorm import weighted_statistics
from raygf.fusion.fuse import fusion_weights
from raygf.fusion.fusion_pass import SharesHere, pass_batches
from raygf.methods.registry import ROUND_METHODS
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor, PassTask
from raygf.training.network import BoundNetwork, as_tensor
from raygf.training.space import Segments

DATA = dataset()
STATE = bind().state()


def make(config, build=three_exits):
    bound, batches = bind(build), DATA.open(CPU, config.batch_size, 5)
    return DeltaRound(config, bound, batches, LocalExecutor(config, DATA), owners_of(bound))


@pytest.mark.parametrize("kind", ["tensor", "channel", "block", "network"])
@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
def test_one_exit_alone_is_plain_training(kind, normalise):
    config = run_config("one_exit", fusion=FusionConfig(segments=kind, normalise=normalise))
    state = bind(one_exit).state()
    outcome = make(config, one_exit).run(state, 1)
    delta = ExitTrainer(config, DATA).train(state, 0, 1, 1).delta
    assert np.array_equal(outcome.state.vector, state.vector + delta)
    assert outcome.fusion.weights.tolist() == [[1.0] * 5]


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


def test_the_fusion_minimises_what_joint_sgd_does(monkeypatch):
    """In round 2 of 4, SDN's c is a third of the way from 0.01 to 0.15 and 0.3; the report's loss is F."""
    step, seen = make(run_config(loss=LossConfig(coefficients="sdn"))), []
    fuse = step._rule.fuse

    def spy(task, run):
        seen.append(fuse(task, run))
        return seen[-1]

    class Shares(SharesHere):
        def __init__(self, *arguments):
            seen.append(arguments[5].coefficients)
            super().__init__(*arguments)

    step._rule.fuse = spy
    monkeypatch.setattr("raygf.rounds.delta.SharesHere", Shares)
    report = step.run(STATE, 2).fusion
    coefficients, fused = seen
    assert coefficients == pytest.approx((0.01 + 0.14 / 3, 0.01 + 0.29 / 3, 1.0))
    assert report.loss == pytest.approx(np.dot(coefficients, fused.score.loss))


@pytest.mark.parametrize("method", ["metagf", "delta-mean"])
def test_an_outer_step_goes_along_the_merged_delta_and_gathers_statistics_there(method):
    """DiLoCo's first step is 0.7 · 1.9 times the merged delta."""
    plain = make(run_config(method=method)).run(STATE, 1).state
    there = make(run_config(method=method, fusion=FusionConfig(outer="nesterov"))).run(STATE, 1).state
    assert_close(there.vector - STATE.vector, 0.7 * 1.9 * (plain.vector - STATE.vector), rtol=1e-4, atol=1e-6)
    by_hand = bind()
    by_hand.load(replace(STATE, vector=there.vector))
    for images, _ in DATA.open(CPU, 4, 5).train(0, "fuse", 1):
        by_hand.network.train()(images)
    for name, value in by_hand.network.named_buffers():
        assert_close(as_tensor(there.buffers[name]), value)


@pytest.mark.parametrize(
    ("objective", "steps", "images", "sizes"),
    [
        *(("train", None, 8, [4, 4]), ("train", None, 20, [4] * 5), ("train", 5, None, [4] * 5)),
        *(("train", 2, None, [4, 4]), ("train", 2, 6, [4, 2]), ("train", 7, None, [4] * 7)),
        *(
            ("val", None, None, [4, 4]),
            ("val", 1, None, [4]),
            ("val", 9, None, [4, 4]),
            ("val", 2, 6, [4, 2]),
        ),
    ],
)
def test_eta_is_fitted_on_as_many_images_as_are_set(objective, steps, images, sizes):
    """20 training and 8 validation images, all of them at most; five steps are an epoch, the default."""
    config = run_config(round_steps=steps, fusion=FusionConfig(objective=objective, images=images))
    batches = list(pass_batches(config, DATA.open(CPU, 4, 5), 1))
    assert [len(labels) for _, labels in batches] == sizes
    step = make(config)
    outcome = step.run(STATE, 1)
    assert step.arrays()["adam_steps"] == len(sizes)
    if sizes == [4] * 5:
        assert outcome.state.sha256() == make(run_config()).run(STATE, 1).state.sha256()


@pytest.mark.parametrize("aux_exits", ["shallower", "none"])
@pytest.mark.parametrize("batchnorm", ["recalibrated", "weighted"])
def test_parts_are_merged_as_whole_vectors_are(aux_exits, batchnorm):
    loss = LossConfig(aux_exits=aux_exits)
    config = run_config(loss=loss, fusion=FusionConfig(batchnorm=batchnorm))
    step = make(config)
    trained = step._executor.train(STATE, 1, [None] * 3)
    sizes = [len(update.delta) for update in trained.updates]
    assert sizes[0] < sizes[1] < sizes[2] <= STATE.vector.size
    merged = step.run(STATE, 1).state
    space, owned = bind().space, owners_of(bind())
    whole = [part.unpack(as_tensor(u.delta)) for part, u in zip(step._parts, trained.updates, strict=True)]
    for slot, owners in zip(space.slots, owned.T, strict=True):
        if owners.sum() == 1:  # a head, or the deepest stage: its owner's own step
            mine = whole[int(owners.nonzero())][slot.start : slot.stop]
            assert_close(as_tensor(merged.vector - STATE.vector)[slot.start : slot.stop], mine)
    assert merged.buffers.keys() == STATE.buffers.keys()


@pytest.mark.parametrize("aux_exits", ["all", "none"])
def test_fisher_merging_is_that_of_the_exits_own_gradients(aux_exits):
    config = run_config(method="delta-fisher", loss=LossConfig(aux_exits=aux_exits))
    step = make(config)
    updates = step._executor.train(STATE, 1, [None] * 3).updates
    deltas, fishers = (step._whole([getattr(u, name) for u in updates]) for name in ("delta", "fisher"))
    owned = owners_of(bound := bind())
    lengths = torch.tensor([slot.stop - slot.start for slot in bound.space.slots])
    mine = torch.stack(fishers) * owned.repeat_interleave(lengths, dim=1) + 1e-30
    expected = (mine * torch.stack(deltas)).sum(dim=0) / mine.sum(dim=0)
    found = as_tensor(step.run(STATE, 1).state.vector - STATE.vector)
    known = torch.stack(fishers).sum(dim=0) > 1e-20
    assert known.float().mean() > 0.9
    assert_close(found[known], expected[known], rtol=1e-3, atol=1e-6)


ADAM = FusionConfig(outer="adam", normalise="free", objective="entropy", shards=2)
OUTER = (FusionConfig(outer="nesterov"), ADAM)


@pytest.mark.parametrize(
    ("method", "fusion", "carry"),
    [
        *(("metagf", FusionConfig(), carry) for carry in (False, True)),
        *((name, some, False) for name in ROUND_METHODS for some in OUTER),
    ],
)
def test_arrays_and_restore_continue_the_run(method, fusion, carry):
    steps = 2 if fusion.outer != "none" else None  # which ends in the midst of an epoch
    optim = OptimConfig(carry_momentum=carry)
    config = run_config(method=method, optim=optim, fusion=fusion, round_steps=steps)
    whole = make(config)
    middle = whole.run(STATE, 1).state
    arrays = whole.arrays()
    before = copy.deepcopy(arrays)
    expected = whole.run(middle, 2).state
    second = make(config)
    for array in (*arrays.values(), middle.vector, *middle.buffers.values()):
        array.flags.writeable = False
    second.restore(arrays)
    assert second.run(middle, 2).state.sha256() == expected.sha256()
    one, two = whole.arrays(), second.arrays()
    assert one.keys() == two.keys()
    assert ("momentum_2" in one) is carry
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert all(np.array_equal(before[name], arrays[name]) for name in before)  # nothing was written into
    fresh = make(config).run(middle, 2).state
    assert fresh.sha256() != expected.sha256()  # what is stored matters


def test_dropout_in_the_fusion_pass_is_seeded():
    config, seen = run_config("with_dropout"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        seen.append(make(config, with_dropout).run(STATE, 1).state.sha256())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", ["tensor", "channel"])
def test_weighted_statistics_are_the_exits_averaged(kind):
    config = run_config(fusion=FusionConfig(segments=kind, batchnorm="weighted"))
    round, bound = make(config), bind()
    outcome = round.run(STATE, 1)
    updates = LocalExecutor(config, DATA).train(STATE, 1, [None] * 3).updates
    buffers = [{name: as_tensor(a) for name, a in update.buffers.items()} for update in updates]
    segments = Segments(kind, bound.space)
    alpha = fusion_weights(as_tensor(round.arrays()["eta_fitted"]), segments.spread(owners_of(bound)))
    for name, value in weighted_statistics(bound.network, buffers, alpha, segments).items():
        assert_close(torch.from_numpy(outcome.state.buffers[name]), value)
    deepest = outcome.state.buffers["stages.2.1.running_var"]
    assert_close(torch.from_numpy(deepest), buffers[2]["stages.2.1.running_var"])


def test_weighted_statistics_without_a_scale_are_refused_early():
    def plain(spec=None):
        network = three_exits()
        network.stages[1][1] = nn.BatchNorm2d(4, affine=False)
        return network

    with pytest.raises(ConfigError, match=r"fusion\.batchnorm = 'weighted': stages\.1\.1 has no"):
        make(run_config(fusion=FusionConfig(batchnorm="weighted")), plain)


def test_report():
    outcome = make(run_config()).run(STATE, 1)
    report, names = outcome.fusion, bind().space.names
    owned = ~np.isnan(report.weights)
    expected = owners_of(bind()).numpy()
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


@pytest.mark.parametrize("method", ["metagf", "delta-pcgrad", "delta-iso"])
def test_shares_of_the_fusion_pass_agree_with_the_whole_where_nothing_is_normalised(method):
    """The last batch of 22 images has two, too few to be divided."""
    data = dataset(train=22)

    def fused(shards):
        config = run_config(method=method, fusion=FusionConfig(shards=shards))
        bound, batches = BoundNetwork(seeded(plain), CPU), data.open(CPU, 4, 5)
        executor = LocalExecutor(replace(config, model=ModelConfig("tiny_network:plain")), data)
        step = DeltaRound(config, bound, batches, executor, owners_of(bound))
        return step, step.run(bound.state(), 1)

    (_, whole), (step, halves) = fused(1), fused(2)
    assert_close(halves.state.vector, whole.state.vector, rtol=1e-5, atol=1e-6)
    assert halves.fusion.loss == pytest.approx(whole.fusion.loss, rel=1e-5)
    assert halves.fusion.accuracy == whole.fusion.accuracy
    if method == "metagf":
        assert step.arrays()["adam_steps"] == 6
        assert_close(step.arrays()["eta"], fused(1)[0].arrays()["eta"], rtol=1e-4, atol=1e-4)


def test_shares_normalise_apart_and_their_statistics_are_averaged():
    """Two shares of two images each. BatchNorm's running mean is linear: its average is that of the whole."""
    fusion, data = FusionConfig(lr=0.0), dataset(train=4)
    deltas = [torch.zeros(STATE.vector.size)] * 3

    def buffers(shards):
        config, bound = run_config(fusion=replace(fusion, shards=shards)), bind()
        batches = data.open(CPU, 4, 5).train(0, "x")
        shares = SharesHere(config, bound, batches, STATE, deltas, PassTask(1, (1.0,) * 3), range(shards))
        while shares.step(torch.full((3, 15), 1 / 3), False):
            pass
        return shares.buffers()

    (whole,), halves = buffers(1), buffers(2)
    mean = [half["stages.0.1.running_mean"] for half in halves]
    assert not torch.equal(*mean)
    assert_close((mean[0] + mean[1]) / 2, whole["stages.0.1.running_mean"])


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"batch_size = 4: must be at least 6 with fusion\.shards = 3"):
        make(run_config(fusion=FusionConfig(shards=3)))
    for replicas, text in (
        ((1, 3, 1), "at least 6 with resources.replicas = 3"),
        ((1, 2), "has 2 numbers: give"),
    ):
        with pytest.raises(ConfigError, match=text):
            make(run_config(resources=ResourceConfig(executor="local", replicas=replicas)))
