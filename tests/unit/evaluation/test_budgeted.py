from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygf.evaluation.budgeted import (
    STEPS,
    budgeted_curve,
    exit_quotas,
    exits_taken,
    find_thresholds,
    measure_curve,
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


def outputs(confidence: np.ndarray, hit: np.ndarray | None = None) -> ExitOutputs:
    """Outputs with these confidences (n, N), right where ``hit`` (n, N) says so."""
    right = np.ones(confidence.shape, np.bool_) if hit is None else np.asarray(hit, np.bool_)
    labels = np.ones(confidence.shape[1], np.int64)
    return ExitOutputs(np.asarray(confidence, np.float64), right.astype(np.int64), right, labels)


def literal_quotas(step: int, exits: int, samples: int) -> list[int]:
    p = Fraction(step, 20)
    total = sum(p**k for k in range(1, exits + 1))
    return [math.floor(samples * p**k / total) for k in range(1, exits + 1)]


def literal_thresholds(confidence: np.ndarray, quotas: list[int]) -> list[float]:
    """Sample by sample, as the definition is written."""
    exits, samples = confidence.shape
    gone = [False] * samples
    thresholds = []
    for exit in range(exits - 1):
        ranked = sorted(range(samples), key=lambda sample: -confidence[exit][sample])
        counted, threshold = 0, INF
        for sample in ranked:
            if quotas[exit] == 0:
                break
            if not gone[sample]:
                counted += 1
                if counted == quotas[exit]:
                    threshold = confidence[exit][sample]
                    break
        for sample in range(samples):
            if confidence[exit][sample] >= threshold:
                gone[sample] = True
        thresholds.append(threshold)
    return [*thresholds, -INF]


def literal_test(
    confidence: np.ndarray, hit: np.ndarray, thresholds: list[float], operations: tuple[int, ...]
) -> tuple[float, float]:
    """Accuracy and average cost."""
    exits, samples = confidence.shape
    right = spent = 0
    for sample in range(samples):
        exit = next(k for k in range(exits) if confidence[k][sample] >= thresholds[k])
        right += bool(hit[exit][sample])
        spent += operations[exit]
    return right / samples, spent / samples


def test_quotas_by_hand():
    quotas = exit_quotas(3, 8)
    assert quotas.shape == (39, 3)
    assert quotas[19].tolist() == [2, 2, 2]  # p = 1: a third of 8 each
    # p = 1/2: shares 4/7, 2/7, 1/7.
    assert quotas[9].tolist() == [4, 2, 1]
    # p = 1/20: shares 400/421, 20/421, 1/421.
    assert quotas[0].tolist() == [7, 0, 0]


def test_quotas_that_come_out_even_lose_nothing_to_rounding():
    for samples in (7, 70, 7_000_000):
        assert exit_quotas(3, samples)[9].tolist() == [samples * 4 // 7, samples * 2 // 7, samples // 7]


@pytest.mark.parametrize("exits", [1, 2, 7])
def test_quotas_are_those_of_the_definition(exits):
    expected = [literal_quotas(step, exits, 5000) for step in STEPS]
    assert exit_quotas(exits, 5000).tolist() == expected


def test_worked_example():
    """Quotas 2, 2: the surest two leave at exit 1 (images 0 and 1), T = 0.8. At exit 2 images 0 and 1 are not
    counted; the surest of the others are 3 (0.9) and 5 (0.8): T = 0.8. The other four reach the end."""
    (row,) = find_thresholds(VAL, np.array([[2, 2, 2]]))
    assert row.tolist() == [0.8, 0.8, -INF]
    assert exits_taken(VAL, row).tolist() == [0, 0, 2, 1, 2, 1, 2, 2]


def test_worked_example_with_one_half():
    """p = 1/2, quotas 4, 2, 1: images 0 to 3 leave at exit 1, then 5 (0.8) and 7 (0.7)."""
    quotas = exit_quotas(3, 8)
    curve = budgeted_curve(outputs(VAL), outputs(VAL), OPERATIONS)
    assert curve.p[9] == 0.5 and quotas[9].tolist() == [4, 2, 1]
    assert curve.thresholds[9].tolist() == [0.6, 0.7, -INF]
    assert curve.share[9].tolist() == [4 / 8, 2 / 8, 2 / 8]
    assert curve.operations[9] == (4 * 10 + 2 * 30 + 2 * 70) / 8


def test_worked_example_accuracy():
    """On other images, with the thresholds 0.6 and 0.7 of p = 1/2: exits 0, 1, 1, 2."""
    test = np.array([[0.6, 0.59, 0.1, 0.0], [0.0, 0.7, 0.99, 0.69], [0.1, 0.1, 0.1, 0.1]])
    hit = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]])
    curve = budgeted_curve(outputs(VAL), outputs(test, hit), OPERATIONS)
    assert curve.accuracy[9] == 2 / 4
    assert curve.share[9].tolist() == [1 / 4, 2 / 4, 1 / 4]
    assert curve.operations[9] == (10 + 30 + 30 + 70) / 4


def test_ties_leave_together():
    """A quota of 1, but three share the highest confidence; then the second quota is of those still there."""
    confidence = np.array([[0.7, 0.7, 0.7, 0.1], [0.9, 0.9, 0.9, 0.2], [0.5] * 4])
    (row,) = find_thresholds(confidence, np.array([[1, 1, 1]]))
    assert row.tolist() == [0.7, 0.2, -INF]
    assert exits_taken(confidence, row).tolist() == [0, 0, 0, 1]


def test_a_tie_of_gone_and_counted_images():
    """Images 0 and 1 are equal at exit 2; 0 has left, so 1 is the first that counts, wherever 0 is ranked."""
    confidence = np.array([[0.9, 0.1, 0.2], [0.6, 0.6, 0.5], [0.5] * 3])
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        (row,) = find_thresholds(confidence[:, order], np.array([[1, 1, 1]]))
        assert row.tolist() == [0.9, 0.6, -INF]


def test_quota_of_zero():
    (row,) = find_thresholds(VAL, np.array([[0, 3, 5]]))
    assert row.tolist() == [INF, 0.8, -INF]
    assert 0 not in exits_taken(VAL, row)


def test_fewer_left_than_the_quota():
    """All eight are equally sure at exit 1 and leave; none is left for exit 2."""
    confidence = VAL.copy()
    confidence[0] = 0.4
    rows = find_thresholds(confidence, np.array([[2, 2, 2], [0, 8, 0], [0, 9, 0]]))
    assert rows.tolist() == [[0.4, INF, -INF], [INF, 0.1, -INF], [INF, INF, -INF]]


def test_one_exit():
    curve = budgeted_curve(outputs(VAL[:1]), outputs(VAL[:1]), (10,))
    assert (curve.thresholds == -INF).all() and (curve.operations == 10).all()


def test_thresholds_never_see_the_test_images():
    one = budgeted_curve(outputs(VAL), outputs(VAL), OPERATIONS)
    other = budgeted_curve(outputs(VAL), outputs(np.random.default_rng(0).random((3, 50))), OPERATIONS)
    assert np.array_equal(one.thresholds, other.thresholds)
    assert not np.array_equal(one.share, other.share)
    moved = budgeted_curve(outputs(VAL[:, ::-1] ** 2), outputs(VAL), OPERATIONS)
    assert not np.array_equal(one.thresholds, moved.thresholds)


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


def test_equals_the_literal_loop_without_ties():
    draws = np.random.default_rng(3)
    val, test = draws.random((5, 211)), draws.random((5, 97))
    hit = draws.random((5, 97)) < 0.6
    operations = (3, 5, 9, 20, 21)
    curve = budgeted_curve(outputs(val), outputs(test, hit), operations)
    for index, step in enumerate(STEPS):
        quotas = literal_quotas(step, *val.shape)
        thresholds = literal_thresholds(val, quotas)
        assert curve.thresholds[index].tolist() == thresholds
        assert (curve.accuracy[index], curve.operations[index]) == pytest.approx(
            literal_test(test, hit, thresholds, operations)
        )
        # Without ties, exactly the quota leaves.
        left = np.bincount(exits_taken(val, curve.thresholds[index]), minlength=5)
        assert left[:4].tolist() == quotas[:4]


def test_more_is_spent_as_p_grows():
    draws = np.random.default_rng(1)
    data = outputs(draws.random((4, 400)))
    curve = budgeted_curve(data, data, (1, 2, 3, 4))
    assert (np.diff(curve.operations) >= 0).all()
    assert curve.operations[0] < 1.1 and curve.operations[-1] > 3.0
    assert curve.share.sum(axis=1) == pytest.approx(np.ones(39))


def test_permuting_the_images_changes_nothing():
    draws = np.random.default_rng(2)
    confidence, hit = draws.random((3, 60)), draws.random((3, 60)) < 0.5
    order = draws.permutation(60)
    one = budgeted_curve(outputs(confidence, hit), outputs(confidence, hit), OPERATIONS)
    shuffled = outputs(confidence[:, order], hit[:, order])
    two = budgeted_curve(shuffled, shuffled, OPERATIONS)
    assert np.array_equal(one.thresholds, two.thresholds)
    assert one.accuracy == pytest.approx(two.accuracy)


def test_measure_is_at_the_exit_taken():
    """Right at exit 2 only: accuracy is the share that leaves there."""
    hit = np.array([[0] * 8, [1] * 8, [0] * 8])
    table = find_thresholds(VAL, exit_quotas(3, 8))
    curve = measure_curve(outputs(VAL, hit), table, OPERATIONS)
    assert curve.accuracy.tolist() == curve.share[:, 1].tolist()
