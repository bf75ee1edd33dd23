from __future__ import annotations

import pytest
from sweep_parts import record

from raygf.errors import ConfigError
from raygf.sweep.plan import check_metric, metrics_of, shown_score
from raygf.tracking.mlflow_run import round_metrics


def test_metrics_are_those_that_mlflow_shows():
    made = record(3, accuracy=(0.5, 0.75))
    assert metrics_of(made) == {
        "val_accuracy/average": 0.625,
        "val_accuracy/exit_1": 0.5,
        "val_accuracy/exit_2": 0.75,
        "val_loss/average": 1.0,
        "val_loss/exit_1": 1.5,
        "val_loss/exit_2": 0.5,
        "training_passes": 12.0,
    }
    logged = round_metrics(made)
    assert all(logged[name] == value for name, value in metrics_of(made).items())


def test_a_round_without_validation_can_not_be_compared():
    with pytest.raises(ConfigError, match=r"^data\.val = 0: "):
        metrics_of(record(val=None))


@pytest.mark.parametrize("metric", ["val_accuracy/average", "val_accuracy/exit_2", "val_loss/average"])
def test_validation_numbers_can_be_optimised(metric):
    check_metric(metric, "max", exits=2)
    assert metric in metrics_of(record())


@pytest.mark.parametrize(
    "metric",
    ["test_accuracy/average", "train_loss/average", "val_accuracy", "val_accuracy/exit_0", "", "loss"],
)
def test_nothing_else_can(metric):
    with pytest.raises(ConfigError, match="metric = "):
        check_metric(metric, "max")


def test_an_exit_that_is_not_there_and_an_unknown_mode():
    check_metric("val_accuracy/exit_7", "max")
    with pytest.raises(ConfigError, match="the network has 3 exits"):
        check_metric("val_accuracy/exit_7", "max", exits=3)
    with pytest.raises(ConfigError, match="mode = 'best': must be max or min"):
        check_metric("val_accuracy/average", "best")


def test_scores_as_people_read_them():
    assert shown_score("val_accuracy/average", 0.91237) == "91.24 %"
    assert shown_score("val_loss/exit_1", 0.51237) == "0.5124"
