"""Which trial is best, and the table, figure and files that show all of them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import yaml
from sweep_parts import FIELDS, plan, row

from raygf.config.fields import from_dict
from raygf.config.run import RunConfig, TrackingConfig
from raygf.console import print_table
from raygf.sweep.folder import SweepFolder
from raygf.sweep.report import (
    best_row,
    failures,
    objective_figure,
    ranked,
    result_of,
    short,
    shown,
    sweep_report,
    trials_csv,
    trials_markdown,
    trials_table,
    write_report,
)

ROWS = [
    row(0, 0.5),
    row(1, 0.8, status="stopped early", test=None, values={"fusion.lr": 1.0, "fusion.segments": "network"}),
    row(2, None),
    row(3, 0.7, values={"fusion.lr": 0.01, "fusion.segments": "channel"}),
]


def test_the_best_is_chosen_by_validation_among_those_that_did_not_fail():
    assert best_row(ROWS, "max") is ROWS[1]
    assert best_row(ROWS, "min") is ROWS[0]
    failed = replace(ROWS[1], status="failed", score=0.99)
    assert best_row([failed, ROWS[0]], "max") is ROWS[0]
    assert best_row([failed, row(1, None)], "max") is None
    assert best_row([], "max") is None


def test_test_accuracy_never_chooses():
    for test in (None, 0.0, 1.0):
        assert best_row([replace(ROWS[0], test=test), ROWS[3]], "max") is ROWS[3]


def test_the_first_of_equals_is_best():
    assert best_row([row(0), row(1), row(2)], "max").trial == "ab_00000"
    assert best_row([row(0), row(1), row(2)], "min").trial == "ab_00000"


def test_failures_are_named_with_their_cause():
    assert failures(ROWS) == ["trial ab_00002 failed: the data is missing"]


def test_csv_has_a_line_a_trial_in_their_order():
    lines = list(csv.DictReader(io.StringIO(trials_csv(ROWS, plan()))))
    assert [line["trial"] for line in lines] == [each.trial for each in ROWS]
    assert [line["status"] for line in lines] == ["finished", "stopped early", "failed", "finished"]
    assert [line["val_accuracy/average"] for line in lines] == ["0.5", "0.8", "", "0.7"]
    assert [line["test_accuracy/average"] for line in lines][1:3] == ["", ""]
    assert [line["fusion.segments"] for line in lines] == ["tensor", "network", "tensor", "channel"]
    assert lines[2]["cause"] == "the data is missing"
    assert lines[3]["checkpoint"] == ROWS[3].checkpoint and lines[3]["mlflow_run_id"] == "run3"


def test_fields_that_a_trial_does_not_set_stay_empty():
    rows = [row(0, values={"fusion.lr": 0.1}), row(1, values={"fusion.segments": "tensor"})]
    lines = list(csv.DictReader(io.StringIO(trials_csv(rows, plan()))))
    assert [(line["fusion.lr"], line["fusion.segments"]) for line in lines] == [("0.1", ""), ("", "tensor")]
    lines = trials_markdown(rows, plan()).splitlines()
    assert [line.replace(" ", "").split("|")[1:4] for line in lines[2:]] == [
        ["ab_00000", "0.1", "-"],
        ["ab_00001", "-", "tensor"],
    ]


def test_tables_show_the_best_first_and_the_failed_last():
    assert [each.trial[-1] for each in ranked(ROWS, "max")] == ["1", "3", "0", "2"]
    assert [each.trial[-1] for each in ranked(ROWS, "min")] == ["0", "3", "1", "2"]
    stream = io.StringIO()
    print_table(trials_table(ROWS, plan()), stream)
    lines = [line.split() for line in stream.getvalue().splitlines() if " ab_" in line]
    assert [line[0] for line in lines] == ["ab_00001", "ab_00003", "ab_00000", "ab_00002"]
    assert lines[1] == ["ab_00003", "0.01", "channel", "70.00", "%", "65.00", "%", "160", "finished"]


def test_long_tables_are_cut_on_the_screen_and_whole_in_the_file():
    rows = [row(number) for number in range(30)]
    assert "| 10 more" in trials_markdown(rows, plan())
    assert len(trials_csv(rows, plan()).splitlines()) == 31


def test_names_are_short_where_they_stay_clear():
    assert short("fusion.lr", FIELDS) == "lr"
    assert short("fusion.lr", ("fusion.lr", "optim.lr")) == "fusion.lr"


def points(axes):
    return np.concatenate([part.get_offsets() for part in axes.collections[:-1]])


def test_the_figure_has_a_panel_for_every_swept_field():
    figure = objective_figure(ROWS, plan(), ROWS[1])
    left, right = (axes for axes in figure.axes if axes.get_visible())
    assert (left.get_xlabel(), right.get_xlabel()) == FIELDS
    assert left.get_xscale() == "log"
    np.testing.assert_allclose(sorted(map(tuple, points(left))), [(0.01, 70), (0.1, 50), (1.0, 80)])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["tensor", "network", "channel"]
    np.testing.assert_allclose(left.collections[-1].get_offsets(), [(1.0, 80)])  # the ring around the best
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["trained to its end", "stopped early (accuracy when it was)", "best"]


@pytest.mark.parametrize(
    "rows",
    [
        [row(0)],
        [row(0), row(1, None)],
        [row(0, values={"fusion.lr": True}), row(1, values={"fusion.lr": False})],
        [row(0, values={"fusion.lr": 0.0}), row(1, values={"fusion.lr": 1.0})],
        [row(0, values={"fusion.lr": (0.5, 0.75)}), row(1, values={"fusion.lr": (0.3, 0.6)})],
        [row(0, values={}), row(1)],
    ],
    ids=["one trial", "one and a failed one", "flags", "zero", "lists", "a trial without values"],
)
def test_any_rows_can_be_drawn(rows, tmp_path):
    objective_figure(rows, plan(), rows[0]).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_loss_is_drawn_as_it_is():
    made = plan(metric="val_loss/exit_2", mode="min")
    figure = objective_figure(ROWS, made, ROWS[0])
    assert figure.axes[0].get_ylabel() == "validation loss,\nexit 2"
    assert points(figure.axes[0])[:, 1].max() == 0.8


def test_the_folder_holds_table_best_run_and_figure(tmp_path):
    made = plan(path=str(tmp_path))
    folder = SweepFolder(made.run.storage)
    with folder.held():
        path = write_report(folder, ROWS, made, ROWS[1])
    ours = tmp_path / "sweep" / "raygf"
    assert path == str(ours / "results.csv")
    assert (ours / "results.csv").read_text() == trials_csv(ROWS, made)
    best = from_dict(RunConfig, yaml.safe_load((ours / "best_config.yaml").read_text()))
    assert best == made.trial_run("ab_00001", ROWS[1].values)
    assert (best.fusion.lr, best.fusion.segments) == (1.0, "network")
    assert (ours / "objective.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_shows_a_password(tmp_path):
    made = plan(path=str(tmp_path))
    made = replace(made, run=replace(made.run, tracking=TrackingConfig(uri="http://me:secret@server")))
    assert shown(made.run)["tracking"]["uri"] == "http://me:***@server"
    assert "secret" not in "".join(sweep_report(ROWS, made, ROWS[1]).texts.values())


def test_the_last_line_and_the_page():
    made = plan(parent="parent")
    assert result_of(ROWS, made, ROWS[1], "a.csv") == {
        "best_trial": "ab_00001",
        "best_config": {"fusion.lr": 1.0, "fusion.segments": "network"},
        "best_score": 0.8,
        "trials": 4,
        "failed": 1,
        "mlflow_run_id": "parent",
        "results": "a.csv",
    }
    report = sweep_report(ROWS, made, ROWS[3])
    assert report.tags["best.fusion.lr"] == "0.01" and report.tags["raygf.best_run_id"] == "run3"
    assert report.metrics == {
        "val_accuracy/average": 0.7,
        "test_accuracy/average": pytest.approx(0.65),
        "trials": 4.0,
        "failed": 1.0,
    }
    assert "`--fusion.lr 0.01 --fusion.segments channel`" in report.markdown
    assert set(report.texts) == {"results.csv", "best_config.yaml"}
