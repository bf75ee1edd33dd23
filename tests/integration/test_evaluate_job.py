"""``jobs/evaluate.py`` on small runs of the digits recipe: files, numbers, MLflow, and what can't be done."""

import csv
import dataclasses
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import run_here
from tiny import tiny_run

from raygf.config.recipes import get_recipe
from raygf.config.run import StorageConfig
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from raygf.tracking.tracker import make_tracker

EXITS = {"policies", "calibration"}
PER_RUN = {"accuracy", "conflict", "fusion_weights", "importance", *EXITS}


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    """Folders of three runs: Meta-GF with two seeds, and joint SGD with as many passes."""
    folder = tmp_path_factory.mktemp("past")
    accuracy = {}
    for name, changes in (("ours-0", {}), ("ours-1", {"seed": 1}), ("joint", {"method": "sgd", "rounds": 6})):
        run = replace(tiny_run(2, 2, StorageConfig(str(folder), name)), **changes)
        accuracy[name] = run_here(run)[1].test.accuracy
    (folder / "accuracy.json").write_text(json.dumps(accuracy))
    return folder


def test_all_tables_and_figures(past, run_job, tmp_path):
    runs = [str(past / name) for name in ("ours-0", "ours-1")] + [str(past / "joint" / "round-000006.npz")]
    outcome = run_job(
        "evaluate", "--checkpoint", *runs, "--out", "out", "--labels", "Meta-GF", "x", "joint SGD"
    )
    assert outcome.code == 0, outcome.err
    out = tmp_path / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {
        *("anytime.md", "anytime.csv"),
        *(f"{name}.{kind}" for name in ("budgeted", "convergence", "validation") for kind in ("png", "csv")),
        *(f"Meta-GF-seed-{seed}/{name}.png" for seed in (0, 1) for name in PER_RUN),
        *(f"Meta-GF-seed-{seed}/{name}.csv" for seed in (0, 1) for name in PER_RUN - {"conflict"}),
        *(f"Meta-GF-seed-{s}/conflict_{what}.csv" for s in (0, 1) for what in ("cosines", "shares", "noise")),
        *(f"joint-SGD/{name}.{kind}" for name in ("accuracy", *EXITS) for kind in ("png", "csv")),
        *(f"{run}/policies.md" for run in ("joint-SGD", "Meta-GF-seed-0", "Meta-GF-seed-1")),
    }
    assert {str(tmp_path / path) for path in outcome.result["files"]} == {str(out / name) for name in found}
    for path in out.rglob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert outcome.result["seconds"] < 60
    assert_numbers(outcome, json.loads((past / "accuracy.json").read_text()), out)


def assert_numbers(outcome, accuracy, out):
    """The accuracies are those that the runs themselves ended with."""
    ours = outcome.result["runs"]["Meta-GF"]
    assert (ours["seeds"], ours["rounds"], ours["training_passes"]) == ([0, 1], 2, 6)
    assert ours["test_accuracy"] == [accuracy["ours-0"], accuracy["ours-1"]]
    assert outcome.result["runs"]["joint SGD"]["training_passes"] == 6
    assert outcome.result["runs"]["joint SGD"]["negative_cosines"] == [None]
    assert all(0 < noise["same_exit"] < 1 for noise in ours["negative_cosines"])
    with (out / "anytime.csv").open() as file:
        rows = list(csv.DictReader(file))
    mean = (accuracy["ours-0"][0] + accuracy["ours-1"][0]) / 2
    assert float(rows[0]["top1_mean"]) == pytest.approx(mean)
    shown = f"{100 * accuracy['joint'][1]:.2f}"
    assert shown in outcome.out and shown in (out / "anytime.md").read_text()
    with (out / "convergence.csv").open() as file:
        passes = [(row["run"], row["seed"], row["training_passes"]) for row in csv.DictReader(file)]
    assert passes == [
        *(("Meta-GF", seed, passes) for seed in "01" for passes in "36"),
        *(("joint SGD", "0", passes) for passes in "123456"),
    ]


@pytest.fixture
def tracked(past, tmp_path, tracking_uri):
    """A run in MLflow, and a checkpoint that names it."""
    known = load_checkpoint(str(past / "ours-0" / "round-000002.npz"))
    config = get_recipe("digits")
    config = replace(config, tracking=replace(config.tracking, uri=tracking_uri))
    tracker = make_tracker(config.tracking, tmp_path, print)
    run_id = tracker.start(config, "tracked")
    tracker.fail("FAILED", "ended before its evaluation")
    store = CheckpointStore(str(tmp_path / "runs"), "tracked", 1)
    store.check_writable()
    values = known.meta["config"] | {"tracking": dataclasses.asdict(config.tracking)}
    meta = known.meta | {"run_id": run_id, "config": values}
    return run_id, store.save(Checkpoint(known.round, known.network, known.method, meta))


def test_results_go_to_the_runs_page(tracked, run_job, tracking_uri):
    from mlflow import MlflowClient

    run_id, checkpoint = tracked
    outcome = run_job("evaluate", "--checkpoint", checkpoint, "--out", "out", "--log-model", "True")
    assert outcome.code == 0, outcome.err
    model, note = outcome.notes
    assert note == f"note: Meta-GF: logged to run {run_id} in {tracking_uri}"
    assert re.match(r"note: ours-0: model models:/\S+\. Without a budget, an image may cost \d+ oper", model)
    client = MlflowClient(tracking_uri)
    logged = {item.path for item in client.list_artifacts(run_id, "evaluation")}
    names = [Path(path).name for path in outcome.result["files"]]
    assert logged == {f"evaluation/{name}" for name in names} and len(names) == 23
    text = Path(client.download_artifacts(run_id, "evaluation/anytime.md")).read_text()
    assert text == Path("out/anytime.md").read_text()
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"  # evaluating a run does not change how it ended
    assert 0 < run.data.metrics["test_top5_accuracy/exit_2"] <= 1


def test_untracked_runs_are_noted_and_nothing_is_logged_if_not_wanted(tracked, past, run_job, tracking_uri):
    from mlflow import MlflowClient

    outcome = run_job("evaluate", "--checkpoint", str(past / "joint"), "--log-model", "True")
    assert outcome.code == 0
    assert outcome.notes == [
        "note: joint: was not tracked, nothing logged",
        "note: joint-SGD: was not tracked, nothing logged",
    ]
    quiet = ("--log-to-mlflow", "False", "--importance", "False", "--noise", "False")
    outcome = run_job("evaluate", "--checkpoint", tracked[1], *quiet)
    assert (outcome.code, outcome.notes) == (0, [])
    assert MlflowClient(tracking_uri).list_artifacts(tracked[0], "evaluation") == []
    assert not list(Path("results").rglob("importance.*")) + list(Path("results").rglob("*noise*"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda db, empty: db.unlink(), "there is no tracking database"),
        (lambda db, empty: db.write_bytes(b"not a database" * 99), "file is not a database"),
        (lambda db, empty: shutil.copy(empty, db), "is not in "),
    ],
    ids=["gone", "damaged", "without the run"],
)
def test_a_store_that_lacks_the_run_costs_a_line(tracked, run_job, empty_tracking, tmp_path, damage, says):
    damage(tmp_path / "mlflow.db", empty_tracking)
    quick = ("--importance", "False", "--noise", "False")
    outcome = run_job("evaluate", "--checkpoint", tracked[1], *quick)
    (line,) = outcome.notes
    assert line.startswith("note: Meta-GF: not logged to MLflow: ") and says in line
    assert outcome.result["runs"]


def test_the_toy_problem(run_job, tmp_path):
    outcome = run_job("toy", "--out", "drawn", "--steps", "20")
    assert outcome.code == 0, outcome.err
    names = {"toy_trajectories.png", "toy_losses.png", "toy_trajectories.csv", "eq7.md", "eq7.csv"}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == names
    assert (tmp_path / "drawn" / "eq7.md").read_text().strip() in outcome.out
    assert set(outcome.result["final_losses"]) == {"joint SGD", "PCGrad", "Meta-GF"}
    assert outcome.result["steps"] == 20
