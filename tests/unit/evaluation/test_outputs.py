"""Every exit on every image: by hand, in evaluation mode, without a trace."""

import math

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, random_batches, seeded, with_dropout
from torch import nn

from raygf.errors import DataError, NonFiniteError
from raygf.evaluation.outputs import (
    Calibration,
    ExitOutputs,
    collect_outputs,
    evaluate,
    fit_temperatures,
    read_logits,
)
from raygf.training.network import BoundNetwork


class Fixed(nn.Module):
    """Two exits that give every image the same logits."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor(logits)) for logits in (first, second))

    def forward(self, x):
        return [logits.expand(len(x), -1) for logits in (self.first, self.second)]


def images(count):
    return torch.zeros(count, 1, 4, 4)


def test_by_hand():
    """Probabilities 6/12 … for the first exit; the second ranks the classes the other way round."""
    logs = torch.tensor([6.0, 2, 1, 1, 1, 1]).log().tolist()
    bound = BoundNetwork(Fixed(logs, [0.0, 1, 2, 3, 4, 5]), CPU)
    labels = torch.tensor([0, 5, 0])
    outputs = collect_outputs(bound, [(images(2), labels[:2]), (images(1), labels[2:])])
    assert outputs.confidence[0] == pytest.approx([0.5, 0.5, 0.5])
    last = np.exp(5) / np.exp(np.arange(6)).sum()
    assert outputs.confidence[1] == pytest.approx([last] * 3)
    assert outputs.prediction.tolist() == [[0, 0, 0], [5, 5, 5]]
    assert outputs.labels.tolist() == [0, 5, 0]
    assert outputs.hit.tolist() == [[True, False, True], [False, True, False]]
    assert outputs.top1 == pytest.approx((2 / 3, 1 / 3))
    assert outputs.top5_hit[1].tolist() == [False, True, False]
    assert outputs.top5[1] == pytest.approx(1 / 3)
    entropy = -sum(p * math.log(p) for p in (6 / 12, 2 / 12, *[1 / 12] * 4))
    assert outputs.score("margin")[0] == pytest.approx([4 / 12] * 3)
    assert outputs.score("entropy")[0] == pytest.approx([1 - entropy / math.log(6)] * 3)
    assert np.array_equal(outputs.others["calibrated"], outputs.score("confidence"))
    bound, batches = bind(), random_batches(4)  # three classes
    of_three = collect_outputs(bound, batches)
    assert of_three.top5 == (1.0, 1.0, 1.0)
    assert of_three.top1 == pytest.approx(evaluate(bound, batches).accuracy)
    confidence, prediction = read_logits(torch.tensor([[1e4, 0.0], [-1e4, -1e4]]))  # no overflow
    assert (confidence.tolist(), prediction.tolist()) == ([1.0, 0.5], [0, 0])


def test_patience_counts_exits_that_agree():
    prediction = np.array([[1, 2, 3], [1, 1, 3], [2, 1, 3]])
    outputs = ExitOutputs(np.ones((3, 3)), prediction, np.ones((3, 3), np.bool_), np.ones(3, np.int64))
    assert outputs.score("patience").tolist() == [[1, 1, 1], [2, 1, 2], [1, 2, 3]]


def test_temperatures_undo_exaggeration():
    """Logits are 3 times, and a half of, the logarithms of the odds at which labels are drawn: 4 to 1."""
    odds = math.log(4)
    bound = BoundNetwork(Fixed([3 * odds, 0.0], [0.5 * odds, 0.0]), CPU)
    batches = [(images(4), torch.tensor([0, 0, 0, 1])), (images(6), torch.tensor([0, 0, 0, 0, 0, 1]))]
    temperatures = fit_temperatures(bound, batches)
    assert temperatures == pytest.approx((3, 0.5), rel=0.016)
    test = collect_outputs(bound, batches, temperatures)
    calibration = Calibration.of(test, temperatures)
    before, after = calibration.error
    assert before == pytest.approx([64 / 65 - 0.8, 0.8 - 2 / 3]) and (after < 0.01).all()
    assert calibration.bins[0, 0, -1] == pytest.approx([1, 64 / 65, 0.8])


def test_the_error_of_calibration_by_hand():
    """Two images are sure by 0.95 and 0.99, one of them wrong; two by 0.5, both right; one by 0.1, wrong."""
    confidence = np.array([[0.95, 0.99, 0.5, 0.5, 0.1]])
    prediction = np.array([[1, 0, 1, 1, 0]])
    outputs = ExitOutputs(
        confidence, prediction, prediction > 0, np.ones(5, np.int64), {"calibrated": confidence}
    )
    expected = 2 / 5 * (0.97 - 0.5) + 2 / 5 * 0.5 + 1 / 5 * 0.1
    assert Calibration.of(outputs, (1.0,)).error == pytest.approx(np.full((2, 1), expected))


def test_score_by_hand():
    """The first exit always says class 0, the second, with all its might, class 2."""
    logits = [math.log(2.0), 0.0, 0.0], [0.0, 0.0, math.log(6.0)]
    batches = [(images(4), torch.tensor([0, 0, 2, 1])), (images(1), torch.tensor([2]))]
    score = evaluate(BoundNetwork(Fixed(*logits), CPU), batches)
    assert score.accuracy == pytest.approx((2 / 5, 2 / 5))
    first = (2 * math.log(2) + 3 * math.log(4)) / 5
    second = (3 * math.log(8) + 2 * math.log(8 / 6)) / 5
    assert score.loss == pytest.approx((first, second))


def test_evaluation_mode_and_no_trace():
    bound = BoundNetwork(seeded(with_dropout).train(), CPU)
    before = bound.state().sha256()
    assert evaluate(bound, random_batches(2)) == evaluate(bound, random_batches(2))  # no dropout
    one, two = (collect_outputs(bound, random_batches(2)) for _ in range(2))
    assert np.array_equal(one.confidence, two.confidence)
    assert not bound.network.training
    assert before == bound.state().sha256()
    assert not bound.grad.any()


def test_what_is_no_output_is_refused():
    with pytest.raises(DataError, match="no images"):
        collect_outputs(bind(), [])
    bound = BoundNetwork(Fixed([0.0, 1.0], [float("nan"), 1.0]), CPU)
    with pytest.raises(NonFiniteError, match="exit 2 "):
        collect_outputs(bound, [(images(2), torch.zeros(2, dtype=torch.int64))])
