"""What the tests of all folders share: one small Ray cluster, one MLflow database, ways to run a job.

And what is shown at the end of all tests.
"""

import contextlib
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from ray_head import free_ports, started_head
from runs import LOCAL, REPOSITORY, UNTRACKED, Outcome, end_processes
from tiny import tiny_run

from raygf.config.run import DataConfig, ResourceConfig, StorageConfig, TrackingConfig
from raygf.launch import Result

_HASHES: dict[tuple[str, ...], str] = {}


def pytest_terminal_summary(terminalreporter):
    """The losses of all pairs of a network and a method that were trained (see integration/test_pairs.py)."""
    reports = terminalreporter.stats.get("passed", [])
    found = [value for report in reports for name, value in report.user_properties if name == "pair"]
    if found:
        from pair_bench import Pair, loss_table

        terminalreporter.section("networks x methods: training loss in round 1 → round 2")
        terminalreporter.write(loss_table([Pair(**value) for value in found]))


@dataclass(frozen=True)
class TrackedRun:
    """A finished run and the MLflow store that has it."""

    uri: str
    database: Path
    result: Result


@pytest.fixture
def small_config(tmp_path):
    """The recipe "digits" made small, three rounds, without tracking: a tenth of a second a round."""
    return tiny_run(3, 3, StorageConfig(str(tmp_path / "runs"), "small"), ResourceConfig())


@pytest.fixture(scope="session")
def empty_tracking(tmp_path_factory):
    """An MLflow database with its tables, which take seconds to create."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(empty_tracking, tmp_path):
    """A tracking database of the test's own."""
    copy = tmp_path / "mlflow.db"
    shutil.copy(empty_tracking, copy)
    return f"sqlite:///{copy}"


@pytest.fixture
def no_mlflow_settings(monkeypatch):
    """As on a machine where nobody has set anything, and as before once the test is over."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def said():
    """Notes that a tracker has given, one a line."""
    return []


@pytest.fixture(scope="session")
def tracked_run(empty_tracking, tmp_path_factory):
    """Three rounds of a small network, in this process, tracked in a database of their own."""
    from raygf.launch import run

    folder = tmp_path_factory.mktemp("tracked")
    database = Path(shutil.copy(empty_tracking, folder / "mlflow.db"))
    storage, local = StorageConfig(str(folder / "runs"), "small"), ResourceConfig(executor="local")
    config = replace(
        tiny_run(3, 3, storage, local),
        data=DataConfig(source="digits", val=100, train_limit=192, pad=1, flip=False),
        tracking=TrackingConfig(uri=f"sqlite:///{database}"),
    )
    return TrackedRun(f"sqlite:///{database}", database, run(config, "digits"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """The shared Ray ends before the unit tests, which don't use it: idle it takes a twentieth of a core."""
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and (nextitem is None or "unit" in nextitem.path.parts):
        ray.shutdown()


@pytest.fixture
def cluster():
    """This process in a Ray cluster of four CPUs that the tests share; returns its address."""
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="module")
def head():
    """A head node with three CPUs for jobs that are submitted; this process is not in its cluster.

    It ends with the file's tests, since an idle Ray takes a twentieth of a processor.
    """
    with started_head(cpus=3) as started:
        yield started


@pytest.fixture
def closed_port():
    """A port where nobody listens."""
    (port,) = free_ports(1)
    return port


@pytest.fixture
def run_job(capsys, monkeypatch, tmp_path):
    """Runs a job in this process, in a folder of the test's own: ``run_job("digits", "--rounds", "2")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command line adds the working directory
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(name, *argv):
        program = str(REPOSITORY / "jobs" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [program, *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(program, run_name="__main__")
        assert end.value.code is None or isinstance(end.value.code, int)
        return Outcome(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def straight_hash(run_job):
    """The weights after an undisturbed run of the job "digits" with these flags, in one process."""

    def straight(*flags):
        if flags not in _HASHES:
            storage = ("--storage.path", "straight", "--storage.name", str(len(_HASHES)))
            outcome = run_job("digits", *flags, *LOCAL, *UNTRACKED, *storage)
            _HASHES[flags] = outcome.result["weights_sha256"]
        return _HASHES[flags]

    return straight


@pytest.fixture
def start_job(tmp_path):
    """Starts a job as a program with a process group of its own, and ends what is left of it."""
    started: list[psutil.Process] = []

    def start(name, *argv):
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *argv],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "COLUMNS")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(psutil.Process(process.pid))
        return process

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            end_processes([process, *process.children(recursive=True)])


@pytest.fixture
def call_job(start_job):
    """Runs a job as a program."""

    def call(name, *argv, seconds=120):
        process = start_job(name, *argv)
        out, err = process.communicate(timeout=seconds)
        return Outcome(process.returncode, out, err)

    return call
