from __future__ import annotations

import json
import math

import numpy as np
import pytest

from raygf.errors import CheckpointError, ConfigError
from raygf.evaluation.budgeted import ThresholdTable, budgeted_curve, calibrate, exits_taken
from raygf.evaluation.outputs import ExitOutputs

OPERATIONS = (100, 250, 400)


def val(samples: int = 300, seed: int = 0) -> ExitOutputs:
    draws = np.random.default_rng(seed)
    hit = draws.random((3, samples)) < np.array([[0.6], [0.7], [0.8]])
    return ExitOutputs(draws.random((3, samples)), hit.astype(np.int64), hit, np.ones(samples, np.int64))


@pytest.fixture(scope="module")
def table() -> ThresholdTable:
    return calibrate(val(), OPERATIONS)


def spent(thresholds: tuple[float, ...]) -> float:
    taken = exits_taken(val().confidence, np.array(thresholds))
    return float(np.array(OPERATIONS)[taken].mean())


def test_from_the_first_exit_to_the_whole_network(table):
    assert table.operations[0] == 100 and table.operations[-1] == 400
    assert (np.diff(table.operations) >= 0).all()
    assert table.thresholds.shape == (41, 2)
    assert (table.accuracy[0], table.accuracy[-1]) == (val().top1[0], val().top1[2])


def test_costs_are_those_on_the_validation_images(table):
    for row, operations in zip(table.thresholds, table.operations, strict=True):
        assert spent((*row, -math.inf)) == pytest.approx(operations)
    curve = budgeted_curve(val(), val(), OPERATIONS)
    assert sorted(curve.operations) == pytest.approx(table.operations[1:-1])


@pytest.mark.parametrize("budget", [100, 101, 130.5, 200, 300, 399, 400, 401, 1e12, math.inf])
def test_nearest_from_below(table, budget):
    thresholds = table.pick(budget)
    assert len(thresholds) == 3 and thresholds[-1] == -math.inf
    within = table.operations[table.operations <= budget]
    assert spent(thresholds) == pytest.approx(within.max())


def test_a_cost_of_the_table_gets_its_own_row(table):
    for row, operations in list(zip(table.thresholds, table.operations, strict=True))[1:-1]:
        assert spent(table.pick(float(operations))) == pytest.approx(operations)
        assert row.shape == (2,)


def test_below_the_cheapest_mixture_everyone_takes_the_first_exit(table):
    between = (table.operations[0] + table.operations[1]) / 2
    thresholds = table.pick(between)
    assert exits_taken(val().confidence, np.array(thresholds)).tolist() == [0] * 300


@pytest.mark.parametrize("budget", [99.9, 0, -5, math.nan, -math.inf])
def test_a_budget_that_buys_nothing(table, budget):
    with pytest.raises(ConfigError, match="budget = "):
        table.pick(budget)
    with pytest.raises(ConfigError, match="at least 100 operations, those of the first exit"):
        table.pick(99.9)


def test_equal_costs_are_decided_by_accuracy():
    table = ThresholdTable(
        np.array([[0.1], [0.2], [0.3]]), np.array([5.0, 5.0, 5.0]), np.array([0.5, 0.9, 0.7])
    )
    assert table.pick(6)[0] == 0.2


def test_through_json_and_back(table):
    copy = ThresholdTable.from_json(json.loads(json.dumps(table.to_json(), allow_nan=False)))
    for name in ("thresholds", "operations", "accuracy"):
        assert np.array_equal(getattr(copy, name), getattr(table, name))
    assert np.isinf(table.thresholds).any()


@pytest.mark.parametrize(
    "rows", [[], [{}], [1], {"a": 1}, [{"operations": 1, "accuracy": 1, "thresholds": "x"}]], ids=str
)
def test_json_of_something_else(rows):
    with pytest.raises(CheckpointError, match="not a table of thresholds"):
        ThresholdTable.from_json(rows)


def test_one_exit():
    one = val()
    single = ExitOutputs(one.confidence[:1], one.prediction[:1], one.top5_hit[:1], one.labels)
    table = calibrate(single, (100,))
    assert table.pick(100) == (-math.inf,)


def test_as_many_costs_as_exits():
    with pytest.raises(ConfigError, match="2 costs for a network of 3 exits"):
        calibrate(val(), (1, 2))
