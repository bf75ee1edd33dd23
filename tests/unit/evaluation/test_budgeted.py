"""Budgeted batch evaluation against its definition, by hand and image by image; thresholds for a budget."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raygf.errors import ConfigError
from raygf.evaluation.budgeted import (
    STEPS,
    ThresholdTable,
    band,
    budgeted_curve,
    calibrate,
    exit_quotas,
    exits_taken,
    find_thresholds,
    resampled_means,
)
from raygf.evaluation.outputs import ExitOutputs

INF = math.inf
OPERATIONS = (10, 30, 70)

# Eight validation images, three exits. Row k: confidences at exit k.
VAL = np.array(
    [
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
        [0.95, 0.1, 0.2, 0.9, 0.3, 0.8, 0.6, 0.7],
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    ]
)


def outputs(confidence, hit=None):
    """Outputs with these confidences (n, N), right where ``hit`` (n, N) says so."""
    right = np.asarray(np.ones(confidence.shape) if hit is None else hit, np.bool_)
    labels = np.ones(confidence.shape[1], np.int64)
    return ExitOutputs(np.asarray(confidence, np.float64), right.astype(np.int64), right, labels)


def literal_quotas(step, exits, samples):
    p = Fraction(step, 20)
    total = sum(p**k for k in range(1, exits + 1))
    return [math.floor(samples * p**k / total) for k in range(1, exits + 1)]


def literal_thresholds(confidence, quotas):
    """Sample by sample, as the definition is written."""
    there = list(range(confidence.shape[1]))
    thresholds = []
    for row, quota in zip(confidence[:-1], quotas, strict=False):
        ranked = sorted((row[sample] for sample in there), reverse=True)
        threshold = ranked[quota - 1] if 0 < quota <= len(ranked) else INF
        there = [sample for sample in there if row[sample] < threshold]
        thresholds.append(threshold)
    return [*thresholds, -INF]


def literal_test(confidence, hit, thresholds, operations):
    """Accuracy and average cost."""
    right = spent = 0
    for sample, confidences in enumerate(confidence.T):
        exit = next(k for k, c in enumerate(confidences) if c >= thresholds[k])
        right += bool(hit[exit][sample])
        spent += operations[exit]
    return right / (sample + 1), spent / (sample + 1)


@pytest.mark.parametrize(("exits", "samples"), [(1, 7), (2, 5000), (3, 7_000_000), (7, 5000)])
def test_quotas_are_those_of_the_definition(exits, samples):
    """With three exits and multiples of 7 some come out even: rounding must not take an image from them."""
    expected = [literal_quotas(step, exits, samples) for step in STEPS]
    assert exit_quotas(exits, samples).tolist() == expected


def test_worked_example_with_one_half():
    """p = 1/2, quotas 4, 2, 1: images 0 to 3 leave at exit 1, then 5 (0.8) and 7 (0.7)."""
    assert exit_quotas(3, 8)[9].tolist() == [4, 2, 1]
    curve = budgeted_curve(outputs(VAL), outputs(VAL), OPERATIONS)
    assert curve.p[9] == 0.5
    assert curve.thresholds[9].tolist() == [0.6, 0.7, -INF]
    assert curve.share[9].tolist() == [4 / 8, 2 / 8, 2 / 8]
    assert curve.operations[9] == (4 * 10 + 2 * 30 + 2 * 70) / 8
    # On other images these thresholds let them leave at the exits 0, 1, 1, 2.
    test = np.array([[0.6, 0.59, 0.1, 0.0], [0.0, 0.7, 0.99, 0.69], [0.1, 0.1, 0.1, 0.1]])
    hit = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]])
    curve = budgeted_curve(outputs(VAL), outputs(test, hit), OPERATIONS, 5)
    assert set((4 * curve.resampled).ravel()) <= {0, 1, 2, 3, 4} and curve.resampled.shape == (5, 39)
    assert curve.accuracy[9] == 2 / 4
    assert curve.share[9].tolist() == [1 / 4, 2 / 4, 1 / 4]
    assert curve.operations[9] == (10 + 30 + 30 + 70) / 4


GONE_AND_COUNTED = np.array([[0.9, 0.1, 0.2], [0.6, 0.6, 0.5], [0.5] * 3])
"""Images 0 and 1 are equal at exit 2; 0 has left, so 1 is the first that counts, wherever 0 is ranked."""
ALL_LEAVE = np.array([[0.4] * 8, *VAL[1:]])
"""All eight are equally sure at exit 1 and leave; none is left for exit 2."""
TIED = np.array([[0.7, 0.7, 0.7, 0.1], [0.9, 0.9, 0.9, 0.2], [0.5] * 4])
"""A quota of 1, but three share the highest confidence; the second quota is of those still there."""


@pytest.mark.parametrize(
    ("confidence", "quotas", "thresholds", "taken"),
    [
        (TIED, [1, 1, 1], [0.7, 0.2], [0, 0, 0, 1]),
        (GONE_AND_COUNTED, [1, 1, 1], [0.9, 0.6], [0, 1, 2]),
        (GONE_AND_COUNTED[:, [1, 0, 2]], [1, 1, 1], [0.9, 0.6], [1, 0, 2]),
        (GONE_AND_COUNTED[:, ::-1], [1, 1, 1], [0.9, 0.6], [2, 1, 0]),
        (VAL, [0, 3, 5], [INF, 0.8], [1, 2, 2, 1, 2, 1, 2, 2]),
        (ALL_LEAVE, [2, 2, 2], [0.4, INF], [0] * 8),
        (ALL_LEAVE, [0, 8, 0], [INF, 0.1], [1] * 8),
        (ALL_LEAVE, [0, 9, 0], [INF, INF], [2] * 8),
    ],
)
def test_thresholds_by_hand(confidence, quotas, thresholds, taken):
    (row,) = find_thresholds(confidence, np.array([quotas]))
    assert row.tolist() == [*thresholds, -INF]
    assert exits_taken(confidence, row).tolist() == taken


def test_thresholds_never_see_the_test_images():
    one = budgeted_curve(outputs(VAL), outputs(VAL), OPERATIONS)
    other = budgeted_curve(outputs(VAL), outputs(np.random.default_rng(0).random((3, 50))), OPERATIONS)
    assert np.array_equal(one.thresholds, other.thresholds)
    assert not np.array_equal(one.share, other.share)


# Few distinct values, so that ties are the rule.
CONFIDENCES = st.integers(1, 4).flatmap(
    lambda exits: st.lists(
        st.lists(st.integers(0, 6).map(lambda n: n / 7), min_size=exits, max_size=exits),
        min_size=1,
        max_size=25,
    )
)


@settings(deadline=None, max_examples=60)
@given(CONFIDENCES, CONFIDENCES, st.randoms())
@example(*np.random.default_rng(3).random((2, 97, 5)).tolist(), Random(3))  # without ties
def test_equals_the_literal_loop(val_rows, test_rows, draws):
    val = np.array(val_rows).T
    test = np.array([(row * 4)[: len(val)] for row in test_rows]).T
    hit = np.array([[draws.random() < 0.5 for _ in row] for row in test])
    operations = tuple(range(3, 3 + 5 * len(val), 5))
    curve = budgeted_curve(outputs(val), outputs(test, hit), operations)
    for index, step in enumerate(STEPS):
        thresholds = literal_thresholds(val, literal_quotas(step, *val.shape))
        assert curve.thresholds[index].tolist() == thresholds
        accuracy, cost = literal_test(test, hit, thresholds, operations)
        assert curve.accuracy[index] == pytest.approx(accuracy)
        assert curve.operations[index] == pytest.approx(cost)


def test_policies_leave_by_their_own_scores():
    margins = outputs(VAL).confidence[::-1]
    data = replace(outputs(VAL), others={"margin": margins})
    curve = budgeted_curve(data, data, OPERATIONS, policy="margin")
    assert np.array_equal(curve.thresholds, find_thresholds(margins, exit_quotas(3, 8)))
    # Of four images two agree at the exits 1 and 2, one at 2 and 3.
    agreeing = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    curve = budgeted_curve(data, outputs(np.ones((3, 4)), agreeing), OPERATIONS, policy="patience")
    assert curve.p.tolist() == [1, 2, 3]
    assert curve.share.tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert curve.accuracy.tolist() == [0.5, 0.75, 0.5]


COSTS = (100, 250, 400)


DRAWS = np.random.default_rng(0).random((2, 3, 300))
VALIDATED = outputs(DRAWS[0], DRAWS[1] < np.array([[0.6], [0.7], [0.8]]))
"""Three exits of random confidence, the deeper the better."""


@pytest.fixture(scope="module")
def table():
    return calibrate(VALIDATED, COSTS)


def spent(thresholds):
    taken = exits_taken(VALIDATED.confidence, np.array(thresholds))
    return float(np.array(COSTS)[taken].mean())


def test_from_the_first_exit_to_the_whole_network_at_the_costs_on_the_validation_images(table):
    assert table.operations[0] == 100 and table.operations[-1] == 400
    assert (np.diff(table.operations) >= 0).all()
    assert table.thresholds.shape == (41, 2)
    assert (table.accuracy[0], table.accuracy[-1]) == (VALIDATED.top1[0], VALIDATED.top1[2])
    for row, operations in zip(table.thresholds, table.operations, strict=True):
        assert spent((*row, -math.inf)) == pytest.approx(operations)
    curve = budgeted_curve(VALIDATED, VALIDATED, COSTS)
    assert sorted(curve.operations) == pytest.approx(table.operations[1:-1])


@pytest.mark.parametrize("budget", [100, 101, 130.5, 200, 300, 399, 400, 401, 1e12, math.inf])
def test_nearest_from_below(table, budget):
    thresholds = table.pick(budget)
    assert len(thresholds) == 3 and thresholds[-1] == -math.inf
    within = table.operations[table.operations <= budget]
    assert spent(thresholds) == pytest.approx(within.max())


@pytest.mark.parametrize("budget", [99.9, 0, -5, math.nan, -math.inf])
def test_a_budget_that_buys_nothing(table, budget):
    finite = "at least 100 operations, those of the first exit" if math.isfinite(budget) else ""
    with pytest.raises(ConfigError, match=f"budget = .*{finite}"):
        table.pick(budget)


def test_equal_costs_are_decided_by_accuracy():
    table = ThresholdTable(
        np.array([[0.1], [0.2], [0.3]]), np.array([5.0, 5.0, 5.0]), np.array([0.5, 0.9, 0.7])
    )
    assert table.pick(6)[0] == 0.2


@pytest.mark.parametrize(
    ("accuracy", "default"),
    [([0.7, 0.89, 0.895, 0.9], 3.0), ([0.9, 0.8, 0.7, 0.9], 1.0), ([0.5, 0.6, 0.7, 0.9], 4.0)],
)
def test_the_default_budget_is_the_cheapest_that_is_about_as_accurate(accuracy, default):
    table = ThresholdTable(np.zeros((4, 1)), np.arange(1.0, 5), np.array(accuracy))
    assert table.default_budget == default
    assert table.expected_accuracy(default + 0.5) == accuracy[int(default) - 1]


def test_through_json_and_back(table):
    copy = ThresholdTable.from_json(json.loads(json.dumps(table.to_json(), allow_nan=False)))
    for name in ("thresholds", "operations", "accuracy"):
        assert np.array_equal(getattr(copy, name), getattr(table, name))
    for wrong in ({"policy": "luck"}, {"temperatures": [1.0]}):
        with pytest.raises(ValueError, match="do not fit"):
            ThresholdTable.from_json(table.to_json(), **wrong)
    assert np.isinf(table.thresholds).any()


def test_one_exit_takes_all():
    assert calibrate(outputs(VAL[:1]), (100,)).pick(100) == (-math.inf,)


def test_the_band_is_that_of_counts_of_hits_and_the_same_every_time():
    """The mean of N drawn hits is Binomial(N, p) / N: here ± 0.098 around one half in 95 %."""
    hits = np.array([[True, False] * 50, [True] * 100])
    means = resampled_means(hits, 4000)
    low, high = band(means)
    assert (low[0], high[0]) == pytest.approx((0.402, 0.598), abs=0.01) and low[1] == high[1] == 1
    assert np.array_equal(means[:10, :1], resampled_means(hits[:1], 10))  # runs are resampled together
