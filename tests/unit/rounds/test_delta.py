import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, dataset, one_exit, owners_of, run_config, three_exits, with_dropout
from torch import nn
from torch.testing import assert_close

from raygf.config.run import FusionConfig, LossConfig, OptimConfig
from raygf.errors import ConfigError
from raygf.fusion.batchnorm import weighted_statistics
from raygf.fusion.fuse import fusion_weights
from raygf.rounds.delta import DeltaRound
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor
from raygf.training.network import as_tensor
from raygf.training.space import Segments

DATA = dataset()
STATE = bind().state()


def make(config, build=three_exits):
    bound, batches = bind(build), DATA.open(CPU, config.batch_size, 5)
    return DeltaRound(config, bound, batches, LocalExecutor(config, DATA), owners_of(bound))


@pytest.mark.parametrize("kind", ["tensor", "channel", "network"])
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


def test_the_fusion_minimises_what_joint_sgd_does():
    """In round 2 of 4, SDN's c is a third of the way from 0.01 to 0.15 and 0.3; the report's loss is F."""
    step, seen = make(run_config(loss=LossConfig(coefficients="sdn"))), []
    fuse = step._rule.fuse

    def spy(task):
        seen.append((task.coefficients.tolist(), fuse(task)))
        return seen[-1][1]

    step._rule.fuse = spy
    report = step.run(STATE, 2).fusion
    ((coefficients, fused),) = seen
    assert coefficients == pytest.approx((0.01 + 0.14 / 3, 0.01 + 0.29 / 3, 1.0))
    assert report.loss == pytest.approx(np.dot(coefficients, fused.score.loss))


@pytest.mark.parametrize(("images", "steps"), [(8, 2), (20, 5), (None, 5)])
def test_eta_is_fitted_on_as_many_images_as_are_set(images, steps):
    step = make(run_config(fusion=FusionConfig(images=images)))
    outcome = step.run(STATE, 1)
    assert step.arrays()["adam_steps"] == steps
    if steps == 5:
        assert np.array_equal(outcome.state.vector, make(run_config()).run(STATE, 1).state.vector)


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


@pytest.mark.parametrize("carry", [False, True])
def test_arrays_and_restore_continue_the_run(carry):
    config = run_config(optim=OptimConfig(carry_momentum=carry))
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
    buffers = [bound.buffer_tensors(update.buffers) for update in updates]
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


def test_scores_and_times():
    one = make(run_config())
    outcome = one.run(STATE, 1)
    updates = LocalExecutor(run_config(), DATA).train(STATE, 1, [None] * 3).updates
    assert outcome.train.loss == tuple(update.loss for update in updates)
    assert outcome.train.accuracy == tuple(update.accuracy for update in updates)
    assert set(outcome.seconds) == {"broadcast", "train", "wait", "fuse"}
    assert min(outcome.seconds.values()) >= 0
