"""Running jobs and runs in tests, and looking after their processes."""

import contextlib
import csv
import json
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import MODEL, WEIGHTS
from raygf.storage.run_storage import CONFIG, METRICS, SUMMARY
from raygf.training.exit_trainer import LocalExecutor

REPOSITORY = Path(__file__).parents[2]
SMALL = (
    *("--data.train-limit", "48", "--data.val", "50", "--model.msdnet.base", "1"),
    *("--model.msdnet.step", "1", "--model.msdnet.channels", "8"),
)
"""A tenth of a second a round."""
LOCAL = ("--resources.executor", "local")
UNTRACKED = ("--tracking.enabled", "False")
RESUME = ("--storage.resume", "True")

_ACTORS = (
    *("ray::DriverActor", "ray::ExitActor", "ray::RayTrainWorker", "ray::TrainHost"),
    *("ray::ImplicitFunc", "ray::run_trial"),
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    out: str
    err: str

    @property
    def result(self):
        """The last line on standard output."""
        assert self.code == 0, self.err
        return dict(json.loads(self.out.splitlines()[-1]))

    @property
    def rounds(self):
        """The rounds shown, as "2/9"."""
        return [line.split()[1] for line in self.err.splitlines() if line.startswith("round ")]

    @property
    def notes(self):
        """The notes shown."""
        return [line for line in self.err.splitlines() if line.startswith("note:")]


def one_error(outcome, says="", code=2):
    """The error: it comes last, once, without a traceback; no round was done, there is no result.

    It has the pieces of ``says``, which are separated by " … ".
    """
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == lines[-1], outcome.err
    assert not any(line.startswith(("round ", "Traceback")) for line in lines), outcome.err
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    for words in says.split(" … "):
        assert words in errors[0]
    return errors[0]


def checkpoints_left(folder):
    """The checkpoints of a run that has ended; beside them there is what it leaves for people, no more."""
    names = sorted(path.name for path in Path(folder).iterdir())
    checkpoints = [name for name in names if name.startswith("round-")]
    assert {*names} - {*checkpoints} == {CONFIG, METRICS, SUMMARY, MODEL, WEIGHTS}
    return checkpoints


def local_driver(config):
    """A driver that trains in this process."""
    return Driver(config, lambda run, dataset, exits: LocalExecutor(run, dataset))


def run_here(config, run_id=""):
    """The records and the end of a run in this process, without Ray."""
    driver = local_driver(config)
    driver.prepare()
    records = list(driver.rounds(run_id))
    end = driver.end()
    driver.close()
    return records, end


def with_resources(config, **fields):
    """``config`` with other resources."""
    return replace(config, resources=replace(config.resources, **fields))


def raygf_actors(kind="", of=None):
    """The processes of raygf's actors and trials among the descendants of ``of``, by default of this process.

    ``kind`` is a part of their title: "DriverActor", "ExitActor", "RayTrainWorker", "TrainHost".
    """
    found = []
    for process in (of or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            if title.startswith(_ACTORS) and kind in title:
                found.append(process)
    return found


def wait_until(condition, seconds=90, what="it"):
    """Return once ``condition`` holds.

    Raises:
        AssertionError: it does not within ``seconds``.
    """
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)


def wait_for_answer(url, process, log):
    """Return once the server ``process`` answers; ``log`` has what it says."""

    def answers():
        assert process.poll() is None, f"the server has ended: {log.read_text()[-2000:]}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    wait_until(answers, what=f"an answer at {url}")


def end_processes(processes):
    """End exactly these processes."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@dataclass(frozen=True)
class Tracked:
    """A run in MLflow."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    rounds: list[int]


def tracked_runs(uri):
    """All runs of the experiment "raygf"; deleted ones don't count."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raygf")
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        info, data = run.info, run.data
        history = client.get_metric_history(info.run_id, "val_accuracy/average")
        rounds = sorted({point.step for point in history})
        found.append(
            Tracked(info.run_id, info.run_name, info.status, data.tags, data.params, data.metrics, rounds)
        )
    return found


def tracked_sweep(uri):
    """The only sweep's run in MLflow, and those of its trials by the names of their folders."""
    runs = tracked_runs(uri)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.tags]
    children = [run for run in runs if run.tags.get("mlflow.parentRunId") == parent.id]
    assert len(children) == len(runs) - 1
    trials = {child.params["storage.name"]: child for child in children}
    assert len(trials) == len(children), "a trial has two runs"
    return parent, trials


def table(path):
    """A sweep's results by trial."""
    with Path(path).open() as stream:
        return {line["trial"]: line for line in csv.DictReader(stream)}
