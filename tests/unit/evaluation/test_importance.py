"""Pruning by hand, and on a run: which elements go, in which order, and what is divided by what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_network import space_of
from torch.testing import assert_close

from raygf.errors import CheckpointError
from raygf.evaluation.importance import (
    importance_of,
    important_segments,
    learned_weights,
    measure_importance,
    relative_loss,
)
from raygf.evaluation.loading import load_run
from raygf.fusion.fuse import fusion_weights
from raygf.training.network import as_tensor
from raygf.training.space import Segments

SPACE = space_of((2, 2), (3,))
ALPHA = torch.tensor([[0.6, 1.0, 0.5], [0.4, 0.0, 0.5]])
OWNED = torch.tensor([[True, True, True], [True, False, True]])


def test_important_is_above_a_half_and_shared():
    """The second segment is the first exit's alone; in the third none is above."""
    assert important_segments(ALPHA, OWNED).tolist() == [[True, False, False], [False, False, False]]
    # One weight for the whole network may exceed a half although the mask says no.
    alpha, owned = torch.tensor([[0.7], [0.2], [0.1]]), torch.tensor([[False], [True], [True]])
    assert not important_segments(alpha, owned).any()


@pytest.mark.parametrize(
    ("kind", "mask", "left"),
    [
        ("tensor", [True, False], [0, 0, 0, 0, 5, 6, 7]),
        ("tensor", [False, True], [1, 2, 3, 4, 0, 0, 0]),
        ("channel", [False, True, True, False, False], [1, 2, 0, 0, 0, 6, 7]),
        ("network", [True], [0] * 7),
        ("network", [False], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_pruning_zeroes_exactly_the_segments(kind, mask, left):
    vector = np.arange(1, 8, dtype=np.float32)
    seen = []
    important, segments = torch.tensor([mask]), Segments(kind, SPACE)
    measure_importance(vector, important, segments, lambda pruned: seen.append(pruned) or [1.0])
    assert [pruned.tolist() for pruned in seen] == [[1, 2, 3, 4, 5, 6, 7], left, left]
    assert all(pruned.dtype == np.float32 for pruned in seen)


def test_exit_by_exit_by_hand():
    """Exit 1 is as accurate as tensor 1 is whole, exit 2 as both are."""
    lost = relative_loss(np.array([0.8, 0.5, 0.0]), np.array([0.2, 0.6, 0.0]))
    assert lost == pytest.approx(np.array([0.75, -0.2, np.nan]), nan_ok=True)
    calls = []

    def measure(vector):
        calls.append(vector.tolist())
        first, second = np.count_nonzero(vector[:4]) / 4, np.count_nonzero(vector[4:]) / 3
        return first, (first + second) / 2

    important = torch.tensor([[True, False], [False, True]])
    vector = np.ones(7, dtype=np.float32)
    found = measure_importance(vector, important, Segments("tensor", SPACE), measure)
    assert found.segments == (1, 1) and found.parameters == (4, 3)
    assert found.baseline == (1.0, 1.0)
    assert found.alone.tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert found.in_turn[0].tolist() == [1.0, 0.5]
    assert np.isnan(found.in_turn[1, 0])  # both gone: relative to what was left
    assert found.in_turn[1, 1] == 1.0
    assert calls[0] == [1] * 7 and calls[-1] == [0] * 7
    assert vector.all()
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    found = measure_importance(vector, nothing, Segments("tensor", SPACE), lambda vector: [vector.sum() / 7])
    assert found.segments == found.parameters == (0,)
    assert found.alone.tolist() == found.in_turn.tolist() == [[0.0]]


def test_weights_are_those_of_the_last_merge(fused_checkpoint):
    run = load_run(fused_checkpoint)
    learned = learned_weights(run)
    fitted, average = (as_tensor(run.checkpoint.method[name]) for name in ("eta_fitted", "eta"))
    assert_close(learned.alpha, fusion_weights(fitted, learned.owned))
    assert not np.allclose(learned.alpha, fusion_weights(average, learned.owned))
    head = run.bound.space.names.index("heads.0.2.weight")
    assert learned.per_tensor[0, head] == pytest.approx(1)
    assert np.isnan(learned.per_tensor[1:, head]).all()  # the other exits do not use it


def test_weights_of_another_size_are_refused(fused_checkpoint):
    run = load_run(fused_checkpoint)
    short = replace(run.checkpoint, method={"eta_fitted": run.checkpoint.method["eta_fitted"][:, :3]})
    with pytest.raises(CheckpointError, match=r"fusion weights \(3, 3\) .* another network"):
        learned_weights(replace(run, checkpoint=short))


def test_importance_prunes_on_the_test_images_and_puts_everything_back(fused_checkpoint):
    run = load_run(fused_checkpoint)
    before = run.bound.state().sha256()
    learned = learned_weights(run)
    # One channel of the first stage, which all exits share, is made exit 3's; the rest belongs to none.
    alpha = torch.zeros_like(learned.alpha)
    alpha[2, 0] = 0.9
    found = importance_of(run, replace(learned, alpha=alpha))
    assert found.segments == (0, 0, 1) and found.parameters == (0, 0, 9)
    assert found.baseline == pytest.approx(run.outputs("test").top1)
    assert not found.alone[:2].any()
    pruned = load_run(fused_checkpoint)
    pruned.bound.vector[:9] = 0
    expected = 1 - np.array(pruned.outputs("test").top1) / np.array(found.baseline)
    assert found.alone[2] == pytest.approx(expected)
    assert found.in_turn[2] == pytest.approx(expected)
    assert run.bound.state().sha256() == before
