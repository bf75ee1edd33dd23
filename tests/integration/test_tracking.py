"""MLflow gets what the records say; trouble is an error before the training and a note after it began."""

import json
import multiprocessing
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from runs import wait_until
from tracked_records import CONFIG, END, START, client_of, record, track

from raygf.config.fields import from_dict
from raygf.config.recipes import get_recipe
from raygf.config.run import OptimConfig, RunConfig, StorageConfig, TrackingConfig
from raygf.errors import TrackingError
from raygf.records import shortened, to_json
from raygf.tracking.tracker import Tracker, make_tracker


def artifacts_of(client, run_id, folder=""):
    return {item.path for item in client.list_artifacts(run_id, folder)}


def read(client, run_id, path):
    return Path(client.download_artifacts(run_id, path)).read_text()


def rounds_of(uri, run_id, metric="lr"):
    return sorted(point.step for point in client_of(uri).get_metric_history(run_id, metric))


pytestmark = pytest.mark.usefixtures("no_mlflow_settings")


@pytest.fixture
def store(tracking_uri):
    return tracking_uri


def test_a_whole_run(store, said, tmp_path, monkeypatch, capfd):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    tracker = Tracker(store, "trial", said.append)
    run_id = tracker.start(CONFIG, "my run", recipe="digits", parent_run_id="p" * 32)
    client = client_of(store)
    assert client.get_run(run_id).info.status == "RUNNING"
    tracker.log_start(START)
    tracker.log_round(record(1))
    tracker.log_round(record(2, (0.8, 0.9)))
    tracker.finish(END)
    assert capfd.readouterr() == ("", "")  # MLflow kept quiet; the reading below may show a progress bar

    info = client.get_run(run_id).info
    assert said == []
    assert (info.status, info.run_name) == ("FINISHED", "my run")
    assert client.get_experiment(info.experiment_id).name == "trial"
    check_params_and_tags(client, run_id)
    check_description(client, run_id, store)
    check_metrics(client, run_id)
    check_artifacts(client, run_id)
    assert list(cwd.iterdir()) == []  # nothing is left lying about


def check_params_and_tags(client, run_id):
    run = client.get_run(run_id)
    params, tags, data = run.data.params, run.data.tags, run.inputs.dataset_inputs
    assert (params["optim.lr"], params["model.msdnet.factors"]) == ("0.05", "[1, 2, 4]")
    assert (params["rounds"], params["train_images"], params["setting"]) == ("3", "900", "cpu")
    assert (tags["method"], tags["model"], tags["data"]) == ("metagf", "msdnet", "digits")
    assert ("recipe" in tags, tags["mlflow.parentRunId"]) == (False, "p" * 32)  # the digits', changed
    assert (params["software.torch"], params["fusion.lr"]) == ("2.14.1", "0.1")
    assert {each.tags[0].value: each.dataset.digest for each in data} == START.digests
    assert (data[0].dataset.name, json.loads(data[0].dataset.profile)["num_rows"]) == ("made up", 900)
    assert tags["weights_sha256"] == END.weights_sha256
    assert tags["checkpoint"] == END.checkpoint
    assert "raygf.version" in tags
    assert tags["raygf.training_passes"] == "6"
    assert "raygf.stopped_at_round" not in tags


def check_description(client, run_id, store):
    description = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert description.startswith("### raygf results: 85.00 % test accuracy on average, 90.00 % at the last ")
    assert "exit; Meta-GF, msdnet on made up, 2 rounds, 6 training passes\n\n| Exit " in description
    assert read(client, run_id, "results.md") in description
    download = f"mlflow artifacts download --run-id {run_id} --dst-path {run_id}"
    assert f"`MLFLOW_TRACKING_URI={store} {download}`" in description


def check_metrics(client, run_id):
    metrics = client.get_run(run_id).data.metrics
    assert not [name for name in metrics if name.startswith(("operations", "parameters"))]
    assert metrics["test_accuracy/exit_1"] == 0.8
    assert metrics["test_accuracy/average"] == pytest.approx(0.85)
    assert metrics["training_passes"] == 6
    for name, steps in (("val_accuracy", (1, 2)), ("accuracy_by_passes", (3, 6))):
        history = client.get_metric_history(run_id, f"{name}/exit_2")
        assert [(point.step, point.value) for point in history] == [*zip(steps, (0.7, 0.9), strict=True)]
    assert "val_loss/exit_2" not in metrics  # NaN


def check_artifacts(client, run_id):
    assert artifacts_of(client, run_id) == {"config.yaml", "results.md", "results.csv", "figures"}
    assert artifacts_of(client, run_id, "figures") == {
        f"figures/{name}.{kind}" for name in ("accuracy", "fusion_weights") for kind in ("png", "csv")
    }
    assert from_dict(RunConfig, yaml.safe_load(read(client, run_id, "config.yaml"))) == CONFIG
    assert "| Exit-2              |          0.800 |" in read(client, run_id, "results.md")
    assert ",4.0,average," in read(client, run_id, "results.csv")
    assert read(client, run_id, "figures/accuracy.csv").splitlines()[2] == "2,0.8,0.9"
    assert read(client, run_id, "figures/fusion_weights.csv").splitlines()[1] == "stem,0.25,0.75"


def test_a_stopped_run_is_resumed_in_place(store, said):
    rounds = record(1, (0.1, 0.2)), record(2, (0.3, 0.4))
    run_id = track(store, said, *rounds, end=replace(END, finished=False))
    client = client_of(store)
    stopped = client.get_run(run_id)
    assert (stopped.info.status, stopped.data.tags["raygf.stopped_at_round"]) == ("FINISHED", "2")

    changed = replace(CONFIG, optim=OptimConfig(lr=0.9))
    tracker = Tracker(store, "trial", said.append)
    assert tracker.start(changed, "run", run_id) == run_id
    resumed = client.get_run(run_id)
    assert resumed.info.status == "RUNNING"
    assert "raygf.stopped_at_round" not in resumed.data.tags
    history = (shortened(to_json(rounds[0])),)
    tracker.log_start(replace(START, round=1, setting="cuda", history=history))
    tracker.log_round(record(2, (0.5, 0.6)))  # the checkpoint was a round behind
    tracker.log_round(record(3, (0.7, 0.8)))
    tracker.finish(replace(END, rounds=3, seconds=6.0))

    run = client.get_run(run_id)
    assert (said, run.info.status) == ([], "FINISHED")
    assert (run.data.params["optim.lr"], run.data.params["setting"]) == ("0.05", "cpu")
    points = ["1,0.1,0.2", "2,0.5,0.6", "3,0.7,0.8"]
    assert read(client, run_id, "figures/accuracy.csv").splitlines()[1:] == points
    assert ",6.0,average," in read(client, run_id, "results.csv")


def test_the_description_keeps_what_people_wrote_and_replaces_the_old_results(store, said):
    client, run_id = client_of(store), track(store, said, end=replace(END, finished=False))
    results = client.get_run(run_id).data.tags["mlflow.note.content"]
    client.set_tag(run_id, "mlflow.note.content", f"A trial with half the images.\n\n{results}")
    track(store, said, run_id=run_id, end=replace(END, rounds=3, training_passes=9))
    tags = client.get_run(run_id).data.tags
    assert (said, tags["raygf.training_passes"]) == ([], "9")
    description = tags["mlflow.note.content"]
    assert description.startswith("A trial with half the images.\n\n### raygf results: 85.00 % test ")
    assert "Meta-GF, msdnet on made up, 3 rounds, 9 training passes\n\n| Exit " in description
    assert description.count("raygf results") == description.count("| Exit ") == 1


def test_joint_sgd_has_no_settings_of_the_fusion_and_load_is_shown_if_asked(store, said, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = Tracker(store, "trial", said.append)
    config = replace(get_recipe("digits-sgd"), seed=7, tracking=TrackingConfig(system_metrics=True))
    run_id, client = tracker.start(config, "run", recipe="digits-sgd"), client_of(store)
    load = "system/cpu_utilization_percentage"
    wait_until(lambda: load in client.get_run(run_id).data.metrics)
    tracker.finish(END)
    run = client.get_run(run_id)
    assert (said, run.info.status, run.data.tags["recipe"]) == ([], "FINISHED", "digits-sgd")
    assert not [name for name in run.data.params if name.startswith("fusion.")]


def test_notes_keep_the_newest_that_fit(store, said):
    notes = [f"round 1, remark {number}: {'x' * 900}" for number in range(9)]
    tag = (
        client_of(store).get_run(track(store, said, record(1, (0.6, 0.7), *notes))).data.tags["raygf.remarks"]
    )
    assert len(tag) <= 5000
    assert [line.split(":")[0] for line in tag.splitlines()] == [f"round 1, remark {n}" for n in range(4, 9)]
    assert said == []


def test_a_failed_run_says_why_and_stays_failed(store, said):
    tracker = Tracker(store, "trial", said.append)
    run_id = tracker.start(CONFIG, "run")
    tracker.log_start(START)
    tracker.log_round(record(1))
    tracker.fail("FAILED", "exit 2 was lost")
    tracker.fail("KILLED", "again")
    tracker.finish(END)
    tracker.log_round(record(2))
    run = client_of(store).get_run(run_id)
    assert said == []
    assert run.info.status == "FAILED"
    assert run.data.tags["raygf.failure"] == "exit 2 was lost"
    assert run.data.metrics["val_accuracy/exit_1"] == 0.6


def test_passwords_stay_out_of_the_store(store, said):
    config = replace(CONFIG, tracking=TrackingConfig(uri="http://me:secret@example.org"))
    tracker = Tracker(store, "trial", said.append)
    run_id = tracker.start(config, "run")
    tracker.fail("KILLED", "")
    client = client_of(store)
    assert client.get_run(run_id).data.params["tracking.uri"] == "http://me:***@example.org"
    assert "secret" not in read(client, run_id, "config.yaml")


def test_a_run_that_is_not_there_and_a_deleted_experiment_are_refused(store, said):
    client = client_of(store)
    with pytest.raises(
        TrackingError, match=r"the run to resume, 0{32}, is not in .*--tracking.uri"
    ) as caught:
        Tracker(store, "trial", said.append).start(CONFIG, "run", "0" * 32)
    assert "\n" not in str(caught.value)
    client.delete_experiment(client.create_experiment("old"))
    with pytest.raises(TrackingError, match=r"tracking.experiment = 'old' is deleted"):
        Tracker(store, "old", said.append).start(CONFIG, "run")


def open_run(uri):
    tracker = Tracker(uri, "trial", print)
    tracker.start(CONFIG, "run")
    tracker.fail("KILLED", "")


def test_processes_may_create_one_database_together(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=open_run, args=(uri,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    client = client_of(uri)
    experiment = client.get_experiment_by_name("trial")
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_a_server_that_accepts_and_never_answers_is_refused(monkeypatch, said):
    monkeypatch.setattr("raygf.tracking.store.PROBE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(TrackingError, match="no answer in time"):
            Tracker(uri, "trial", said.append).start(CONFIG, "run")


def test_tracking_can_be_off(tmp_path, said):
    tracker = make_tracker(TrackingConfig(enabled=False), tmp_path, said.append)
    assert tracker.start(CONFIG, "run") == ""
    tracker.log_start(START)
    tracker.log_round(record(1))
    tracker.finish(END)
    tracker.fail("FAILED", "x")
    assert list(tmp_path.iterdir()) == []


# Trouble during the run -------------------------------------------------------------------------------------


class Flaky:
    """A client that can lose its store."""

    def __init__(self, client):
        self.client, self.broken, self.calls = client, False, 0

    def __getattr__(self, name):
        self.calls += 1
        if self.broken:
            raise OSError(f"[Errno 111] Connection refused (call {self.calls})")
        return getattr(self.client, name)


@pytest.fixture
def flaky(monkeypatch):
    """The trackers' clients, in the order in which they were made."""
    from raygf.tracking import mlflow_run

    made: list[Flaky] = []
    connect = mlflow_run.connect
    monkeypatch.setattr(mlflow_run, "connect", lambda uri: made.append(Flaky(connect(uri))) or made[-1])
    return made


def test_what_was_not_delivered_is_sent_by_a_resume(store, said, flaky, tmp_path):
    """From the checkpoint: of the newest rounds all, of those before what its history has of them."""
    config = TrackingConfig(uri=store, experiment="trial")
    first = make_tracker(config, tmp_path, said.append, StorageConfig("runs", "one"))
    run_id = first.start(CONFIG, "one")
    first.log_start(START)
    first.log_round(record(1))
    wait_until(lambda: not first._delivery.undelivered)
    flaky[0].broken = True
    first.log_round(record(2))
    first.log_round(record(3))
    first.finish(END)
    assert said[-1] == (
        f"tracking: not delivered to {store} (Connection refused): rounds 2-3, results, tags, result table, "
        "accuracy figure, fusion weight figure, final status; sent when the run is resumed: "
        "--storage.name one --storage.resume True"
    )
    assert rounds_of(store, run_id) == [1]

    history = tuple(shortened(to_json(record(number))) for number in (1, 2, 3))
    track(store, said, run_id=run_id, start=replace(START, round=3, history=history, recent=(record(3),)))
    assert rounds_of(store, run_id, "val_accuracy/exit_2") == [1, 2, 3]
    assert rounds_of(store, run_id) == [1, 3]  # a shortened entry has no learning rate
    assert rounds_of(store, run_id, "accuracy_by_passes/exit_1") == [3, 6, 9]
    run = client_of(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["weights_sha256"] == END.weights_sha256
