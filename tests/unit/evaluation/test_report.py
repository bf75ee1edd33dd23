"""Which files come of which runs, under which names."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from past_runs import IMPORTANCE, curve, entry, results

from raygf.errors import StorageError
from raygf.evaluation.noise import OrderNoise
from raygf.evaluation.outputs import BINS, Calibration
from raygf.evaluation.report import (
    anytime_tables,
    comparison_files,
    run_files,
    run_folders,
    what_is_missing,
    write_files,
)
from raygf.evaluation.results import group_runs


def test_seeds_share_a_column_and_costs_a_table():
    runs = [results("metagf", 1, (0.5, 0.7)), results("sgd"), results("metagf", 0, (0.3, 0.9))]
    wider = results("pcgrad", 5, (0.1, 0.2), operations=(1_000_000, 9_000_000), name="wide")
    tables = anytime_tables(group_runs([*runs, wider], ["ours", "SGD", "ours", "wide"]))
    assert [[column.title for column in table.columns] for table in tables] == [["ours", "SGD"], ["wide"]]
    ours = tables[0].columns[0]
    assert ours.top1 == [(0.3, 0.9), (0.5, 0.7)] and ours.top5 is None  # by ascending seed
    # In 2 rounds of 2 exits and the fusion, or of the network.
    assert [column.training_passes for column in tables[0].columns] == [6, 2]
    assert ours.seconds == [5.0, 5.0]  # 2.5 s a round
    assert tables[1].operations == (1_000_000, 9_000_000)
    (five,) = anytime_tables(group_runs([replace(results(), top5=(0.9, 0.95))]))
    assert five.columns[0].top5 == [(0.9, 0.95)]


def test_files_of_a_comparison():
    files = comparison_files(group_runs([results("metagf"), results("sgd")]))
    figures = (
        f"{name}.{kind}" for name in ("convergence", "validation", "budgeted") for kind in ("png", "csv")
    )
    assert set(files) == {"anytime.md", "anytime.csv", *figures}
    assert all(isinstance(content, Figure) == name.endswith(".png") for name, content in files.items())
    assert "Meta-GF top-1 (%)" in files["anytime.md"] and "joint SGD top-1 (%)" in files["anytime.md"]


def test_files_of_a_run_are_those_of_what_it_has():
    fused = [entry(1, 0.5, 0.5), entry(2, 0.5, 0.75)]
    full = results("metagf", importance=IMPORTANCE, noise=OrderNoise(2, 0.5, 0.5, 0.25), history=fused)
    assert set(run_files(full)) == {
        *("accuracy.png", "accuracy.csv", "conflict.png", "conflict_cosines.csv", "conflict_shares.csv"),
        *("conflict_noise.csv", "importance.png", "importance.csv"),
    }
    calibration = Calibration((2.0, 1.0), np.full((2, 2, BINS, 3), 1 / BINS))
    leaving = results(policies={"confidence": curve(), "margin": curve(0.25)}, calibration=calibration)
    more = {f"{name}.{kind}" for name in ("policies", "calibration") for kind in ("png", "csv")}
    files = run_files(leaving)
    assert set(files) == {"accuracy.png", "accuracy.csv", "policies.md", *more}
    # At 40, 60 and 80 % of the operations; three quarters are reached from below.
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in files["policies.md"].splitlines()]
    assert rows[3] == ["margin", "-", "25.00% at 40%", "37.50% at 60%", "50.00% at 80%"]
    assert len(files["calibration.csv"].splitlines()) == 1 + 2 * 2 * BINS
    assert what_is_missing(results()) == []
    bare = results(history=[], curve=None)
    assert set(comparison_files(group_runs([bare]))) == {"anytime.md", "anytime.csv"}
    assert run_files(bare) == {}
    history, validation = what_is_missing(bare)
    assert "no history" in history and "no validation images" in validation


def test_folders_are_labels_fit_for_file_systems():
    runs = [results("metagf", 0), results("metagf", 1), results("sgd"), results("sgd", rounds=3)]
    folders = run_folders(group_runs(runs, ["our: method", "x", "../up", "..?up"]))
    assert list(folders) == ["our-method-seed-0", "our-method-seed-1", "up", "up_"]
    assert folders["our-method-seed-1"].config.seed == 1


def test_files_are_written_where_they_say(tmp_path):
    figure = Figure(figsize=(1, 1))
    paths = write_files(tmp_path / "new" / "folder", {"a.txt": "µ", "b/c.png": figure})
    assert paths == [tmp_path / "new/folder/a.txt", tmp_path / "new/folder/b/c.png"]
    assert paths[0].read_text(encoding="utf-8") == "µ"
    assert paths[1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't write to"):
        write_files(tmp_path / "file", {"a.txt": ""})
