"""Which trial is best, and the table, figure and files that show all of them."""

import csv
import io
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sweep_parts import FIELDS, end, plan, record, row

from raygf.config.fields import from_dict
from raygf.config.run import RunConfig, TrackingConfig
from raygf.errors import RunFailed
from raygf.methods.registry import method_names
from raygf.sweeps.plan import SweepFolder
from raygf.sweeps.report import (
    best_row,
    failures,
    objective_figure,
    ranked,
    read_rows,
    result_of,
    sweep_report,
    trials_csv,
    trials_table,
    write_report,
)
from raygf.sweeps.trial import END, FAILURE, RECORD, VALUES

ROWS = [
    row(0, 0.5),
    row(1, 0.8, status="stopped early", test=None, values={"fusion.lr": 1.0, "fusion.segments": "network"}),
    row(2, None),
    row(3, 0.7, values={"fusion.lr": 0.01, "fusion.segments": "channel"}),
]


def test_the_best_is_chosen_by_validation_among_those_that_had_all_of_their_training():
    assert best_row(ROWS, "max") is ROWS[3]  # 0.8 was reached earlier, by one that was stopped
    assert best_row(ROWS, "min") is ROWS[0]
    failed = replace(ROWS[1], status="failed", score=0.99)
    assert best_row([failed, ROWS[0]], "max") is ROWS[0]
    assert best_row([failed, ROWS[1]], "max") is ROWS[1]
    assert best_row([failed, row(1, None)], "max") is best_row([], "max") is None
    assert best_row([replace(ROWS[0], test=(1.0,)), ROWS[3]], "max") is ROWS[3]
    for mode in ("max", "min"):
        assert best_row([row(0), row(1), row(2)], mode).trial == "ab_00000"


def test_csv_has_a_line_a_trial_in_their_order_and_nothing_where_a_field_is_not_set():
    lines = list(csv.DictReader(io.StringIO(trials_csv(ROWS, plan()))))
    assert [line["trial"] for line in lines] == [each.trial for each in ROWS]
    assert [line["status"] for line in lines] == ["finished", "stopped early", "failed", "finished"]
    assert [line["val_accuracy/average"] for line in lines] == ["0.5", "0.8", "", "0.7"]
    assert [line["test_accuracy/average"] for line in lines][1:3] == ["", ""]
    tests = [f"test_accuracy/exit_{number}" for number in (1, 2, 3)]
    assert [float(lines[0][name]) for name in tests] == pytest.approx([0.45, 0.5, 0.55])
    assert (lines[3]["name"], lines[3]["settings"]) == (
        "fusion.lr=0.01 fusion.segments=channel",
        "--fusion.lr 0.01 --fusion.segments channel",
    )
    assert [line["fusion.segments"] for line in lines] == ["tensor", "network", "tensor", "channel"]
    assert lines[2]["cause"] == "the data is missing"
    assert lines[3]["checkpoint"] == ROWS[3].checkpoint and lines[3]["mlflow_run_id"] == "run3"
    rows = [row(0, values={"fusion.lr": 0.1}), row(1, values={"fusion.segments": "tensor"})]
    lines = list(csv.DictReader(io.StringIO(trials_csv(rows, plan()))))
    assert [(line["fusion.lr"], line["fusion.segments"]) for line in lines] == [("0.1", ""), ("", "tensor")]


def test_tables_rank_finished_trials_with_the_test_of_what_is_judged_and_show_others_apart():
    assert [each.trial[-1] for each in ranked(ROWS, "max")] == ["3", "0"]
    assert [each.trial[-1] for each in ranked(ROWS, "min")] == ["0", "3"]
    header, finished, others = trials_table(ROWS, plan())
    assert header == ["Trial", "val_accuracy/average", "test_accuracy/average", "Passes", "Status"]
    assert [line[0] for line in finished] == [ROWS[3].name, ROWS[0].name]
    assert finished[0] == ["fusion.lr=0.01 fusion.segments=channel", "70.00 %", "70.00 %", "160", "finished"]
    stopped = ["fusion.lr=1 fusion.segments=network", "80.00 %", "-", "160", "stopped early"]
    assert others == [stopped, [ROWS[2].name, "-", "-", "160", "failed"]]
    header, finished, _ = trials_table([row(0, 0.5, passes=152.5)], plan(metric="val_loss/exit_3"))
    assert header[2] == "test_accuracy/exit_3" and finished[0][1:4] == ["0.5000", "55.00 %", "152.5"]
    assert failures(ROWS) == ["trial fusion.lr=0.3 fusion.segments=tensor failed: the data is missing"]
    rows = [row(number) for number in range(30)]
    assert trials_table(rows, plan())[1][-1] == ["10 more", *[""] * 4]
    assert len(trials_csv(rows, plan()).splitlines()) == 31


def test_the_figure_has_a_panel_for_every_swept_field_with_accuracies_in_percent():
    figure = objective_figure(ROWS, plan(ranges={"fusion.lr": "log-uniform, 0.01 to 1"}), ROWS[3])
    left, right = (axes for axes in figure.axes if axes.get_visible())
    assert (left.get_xlabel(), right.get_xlabel()) == FIELDS
    assert left.get_xscale() == "log"
    finished, stopped, ring = (part.get_offsets() for part in left.collections)
    np.testing.assert_allclose(finished, [(0.1, 50), (0.01, 70)])
    np.testing.assert_allclose(stopped, [(1.0, 0.03)])  # its place, whatever it had reached
    np.testing.assert_allclose(ring, [(0.01, 70)])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["tensor", "network", "channel"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["trained to its end", "stopped early: not ranked", "best"]
    assert figure.get_suptitle() == "best: fusion.lr=0.01 fusion.segments=channel"
    figure = objective_figure(ROWS, plan(metric="val_loss/exit_2", mode="min"), ROWS[0])
    left = figure.axes[0]
    assert left.get_ylabel() == "validation loss,\nexit 2" and left.get_xscale() == "linear"
    assert left.collections[0].get_offsets()[:, 1].max() == 0.7


def test_names_of_many_methods_do_not_run_into_each_other(tmp_path):
    rows = [row(number, values={"method": name}) for number, name in enumerate(method_names())]
    figure = objective_figure(rows, plan(fields=("method",)), rows[0])
    figure.savefig(tmp_path / "a.png")  # lays it out
    ticks = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(ticks) == len(method_names()) > 20
    assert all(left.x1 < right.x0 for left, right in pairwise(ticks))


@pytest.mark.parametrize("rates", [(0.1,), (True, False), (0.0, 1.0), ((0.5, 0.75), (0.3, 0.6))], ids=str)
def test_any_rows_can_be_drawn(rates, tmp_path):
    rows = [row(number, values={"fusion.lr": rate}) for number, rate in enumerate(rates)]
    rows += [row(8, None), row(9, values={})]
    objective_figure(rows, plan(), rows[0]).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


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


def test_the_last_line_and_the_page_without_the_password():
    made = plan(parent="parent")
    made = replace(made, run=replace(made.run, tracking=TrackingConfig(uri="http://me:secret@server")))
    best = {"best_trial": "ab_00001", "best_config": ROWS[1].values, "best_score": 0.8}
    rest = {"trials": 4, "failed": 1, "mlflow_run_id": "parent", "results": "a.csv"}
    assert result_of(ROWS, made, ROWS[1], "a.csv") == {**best, **rest}
    report = sweep_report(ROWS, made, ROWS[3])
    assert report.tags["best.fusion.lr"] == "0.01" and report.tags["raygf.best_run_id"] == "run3"
    accuracy = {"val_accuracy/average": 0.7, "test_accuracy/average": pytest.approx(0.7)}
    assert report.metrics == {**accuracy, "trials": 4.0, "failed": 1.0}
    assert "`--fusion.lr 0.01 --fusion.segments channel`" in report.markdown
    assert set(report.texts) == {"results.csv", "best_config.yaml"}
    assert "http://me:***@server" in report.texts["best_config.yaml"]


def test_rows_are_read_from_what_tune_has_in_the_order_of_the_trials(tmp_path):
    made = plan(path=str(tmp_path))
    folder = SweepFolder(made.run.storage)
    with folder.held():
        folder.write_trials({"ab_00000": "r0", "ab_00002": "r2"})

    def result(trial, error=None, **metrics):
        checkpoint = SimpleNamespace(path=f"{tmp_path}/sweep/{trial}/checkpoint_000003/")
        found = {"metrics": {"trial_id": trial, **metrics}, "config": {VALUES: {"fusion.lr": 0.1}}}
        return SimpleNamespace(**found, error=error, checkpoint=checkpoint)

    scored = {RECORD: record(4, (0.5, 0.7)), made.metric: 0.6, "time_total_s": 2.5}
    results = [result("ab_00002", **scored, **{END: end()}), result("ab_00001", **{FAILURE: "diverged"})]
    results.append(result("ab_00000", error=RunFailed("lost"), **scored))
    lost, done, diverged = read_rows(results, made, folder)
    told = [(each.run_id, each.status, each.cause, each.score) for each in (lost, diverged)]
    assert told == [("r0", "failed", "lost", 0.6), ("", "failed", "diverged", None)]
    assert (done.status, done.rounds, done.passes, done.seconds) == ("finished", 4, 16, 2.5)
    assert (done.run_id, done.test) == ("r2", (0.6, 0.8))
    assert done.checkpoint == f"{tmp_path}/sweep/ab_00002/checkpoint_000003/checkpoint.npz"
