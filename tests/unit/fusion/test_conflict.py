import math

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, dataset, owners_of, random_vectors, run_config, space_of
from torch.testing import assert_close

from raygf.config.run import FusionConfig
from raygf.fusion.conflict import (
    delta_norms,
    share_after,
    share_before,
    share_of_repeats,
    shared_cosine,
    tensor_cosines,
    tensor_gramians,
)
from raygf.rounds.delta import DeltaRound
from raygf.training import space as segments
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor

SPACE = space_of((2, 3), (4,), (5,))
SMALL = space_of((2,), (1,), (1,))
ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_gramians_equal_the_naive_ones(block, monkeypatch):
    monkeypatch.setattr(segments, "_BLOCK", block)
    deltas = random_vectors(3, SPACE.size)
    matrix = torch.stack(deltas).double()
    expected = torch.stack([(p := matrix[:, a:b]) @ p.T for a, b in [(0, 6), (6, 10), (10, 15)]])
    grams = tensor_gramians(deltas, SPACE)
    assert grams.dtype == torch.float64
    assert_close(grams, expected, atol=1e-5, rtol=1e-5)


def test_cosine_by_hand():
    one, two = torch.zeros(15), torch.zeros(15)
    one[0], one[6], two[0], two[10] = 3.0, 4.0, 1.0, 2.0
    cosine = shared_cosine(tensor_gramians([one, two], SPACE), ALL)
    assert cosine[0, 1].item() == pytest.approx(3 / (5 * 5**0.5)) and cosine[0, 1] == cosine[1, 0]
    assert shared_cosine(tensor_gramians([one, torch.zeros(15)], SPACE), ALL)[0, 1].isnan()


def test_only_what_both_own_counts():
    """The second tensor, where the deltas are opposite, belongs to the first exit alone."""
    (delta,) = random_vectors(1, SPACE.size)
    other = delta.clone()
    other[6:10] *= -7
    grams = tensor_gramians([delta, other], SPACE)
    assert shared_cosine(grams, torch.tensor([[True, True, True], [True, False, True]]))[0, 1].item() == (
        pytest.approx(1)
    )
    nothing = torch.tensor([[True, True, False], [False, False, True]])
    assert shared_cosine(grams, nothing)[0, 1].isnan()
    norms = delta_norms(grams, torch.tensor([[True, True, True], [False, True, False]]))
    assert_close(norms, torch.stack([delta.norm(), other[6:10].norm()]).double(), atol=1e-5, rtol=1e-5)


def test_shares_by_hand():
    """Three exits on tensors of 2, 1 and 1 elements; the last tensor belongs to exit 3 alone.

    In tensor 1 the cosines are −1 (exits 1, 2), 0 (1, 3), 0 (2, 3); in tensor 2: −1 (1, 2), exit 3 has zero.
    With α = 1/3 the update is (−1/3, 5/3) in tensor 1 and −2/3 in tensor 2, so exit 1 loses in both.
    """
    deltas = [torch.tensor(row) for row in ([1.0, 0, 1, 9], [-2.0, 0, -3, 9], [0.0, 5, 0, 9])]
    owned = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    grams = tensor_gramians(deltas, SMALL)
    cosines = tensor_cosines(grams, owned)
    assert cosines[:2].tolist() == [pytest.approx(-1 / 3), -1.0]  # the zero delta is left out
    assert cosines[2].isnan()  # one owner
    assert share_before(grams, owned) == pytest.approx(2 / 4)
    mean = tensor_gramians([*deltas, torch.stack(deltas).mean(dim=0)], SMALL)
    assert share_after(mean, owned) == pytest.approx(2 / 5)  # five deltas count: exit 3 has none in tensor 2
    only_third = tensor_gramians([*deltas, deltas[2]], SMALL)
    assert share_after(only_third, owned) == 0  # all are orthogonal
    alone = torch.eye(3, dtype=torch.bool)  # nothing is shared
    assert math.isnan(share_before(grams, alone))
    assert math.isnan(share_after(mean, alone))
    assert tensor_cosines(grams, alone).isnan().all()


def test_the_noise_floor_counts_an_exit_as_often_as_it_is_paired():
    """Three exits on two tensors, of which exit 1 has only the first; the third tensor is exit 3's alone.

    Pairs with another exit: 2, 2, 2 in tensor 1, then 0, 1, 1. Exit 1 turns around in tensor 1, exit 3 in
    tensor 2 (and in its own), exit 2's second delta is zero in tensor 2: 3 of 2 + 2 + 2 + 1 are negative.
    """
    first = [torch.tensor(row) for row in ([1.0, 0, 0], [1.0, 1, 0], [1.0, 1, 1])]
    second = [torch.tensor(row) for row in ([-1.0, 0, 0], [2.0, 0, 0], [3.0, -1, -1])]
    owned = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    grams = tensor_gramians([*first, *second], space_of((1,), (1,), (1,)))
    assert share_of_repeats(grams, owned) == pytest.approx(3 / 7)
    assert share_of_repeats(tensor_gramians([*first, *first], space_of((1,), (1,), (1,))), owned) == 0


def cosine_of(one, two):
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


@pytest.mark.parametrize("kind", ["tensor", "channel", "block", "network"])
@pytest.mark.parametrize("method", ["metagf", "delta-iso"])
def test_reported_conflict_is_the_naive_one(kind, method):
    """The fused update is what the merge really added."""
    config = run_config(method=method, fusion=FusionConfig(segments=kind, epsilon=0.5))
    data, bound = dataset(), bind()
    state, space, trainer = bound.state(), bound.space, ExitTrainer(config, data)
    step = DeltaRound(config, bound, data.open(CPU, 4, 5), LocalExecutor(config, data), owners_of(bound))
    outcome = step.run(state, 1)
    deltas = [trainer.train(state, exit, 3, 1).delta.astype(np.float64) for exit in range(3)]
    update = outcome.state.vector.astype(np.float64) - state.vector
    owned = owners_of(bound).numpy()
    before, after, means = [], [], []
    for t, slot in enumerate(space.slots):
        part = slice(slot.start, slot.stop)
        owners = np.flatnonzero(owned[:, t])
        pairs = [cosine_of(deltas[i][part], deltas[j][part]) for i in owners for j in owners if i < j]
        means.append(np.mean(pairs) if pairs else np.nan)
        before += pairs
        after += [cosine_of(deltas[i][part], update[part]) for i in owners] if len(owners) > 1 else []
    report = outcome.fusion
    assert report.conflict_before == pytest.approx(np.mean(np.array(before) < 0))
    assert report.conflict_after == pytest.approx(np.mean(np.array(after) < 0))
    assert report.tensor_cosine == pytest.approx(np.array(means), abs=1e-4, nan_ok=True)
    assert 0 < report.conflict_before < 1  # the tiny network does show conflict
