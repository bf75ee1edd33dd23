"""A Ray head node of its own, started as people start one, and ``ray job`` against it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from site import getsitepackages

import psutil

_ACTORS = ("ray::DriverActor", "ray::ExitActor")


@dataclass(frozen=True)
class Head:
    """A head node: where jobs go, its folder, and the environment that its programs run in."""

    dashboard: str
    folder: Path
    environment: dict[str, str]

    def actors(self):
        """Titles of raygf's actors that live on it."""
        titles = []
        for process in processes_of(self.folder):
            try:
                titles.append((process.cmdline() or [""])[0])
            except psutil.NoSuchProcess:
                continue
        return [title for title in titles if title.startswith(_ACTORS)]

    def actors_left(self, seconds=10):
        """Titles of raygf's actors that have not ended within ``seconds``."""
        limit = time.monotonic() + seconds
        while (left := self.actors()) and time.monotonic() < limit:
            time.sleep(0.1)
        return left

    def submit(self, working_dir, *command):
        """``ray job submit``, followed to the job's end, with what it has printed."""
        where = ("--address", self.dashboard, "--working-dir", str(working_dir))
        call = [program("ray"), "job", "submit", *where, "--", *command]
        return subprocess.run(call, env=self.environment, capture_output=True, text=True, timeout=200)

    def client(self):
        """For jobs to start and to stop without the program ``ray``, which takes seconds itself."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.dashboard)

    def ended(self, name, seconds=90):
        """The state of the job ``name`` once it is over, with its message and logs."""
        client, limit = self.client(), time.monotonic() + seconds
        while not (job := client.get_job_info(name)).status.is_terminal() and time.monotonic() < limit:
            time.sleep(0.2)
        return job.status, job.message, client.get_job_logs(name)


@contextmanager
def started_head(cpus):
    """A head node with this many CPUs, whose Python has raygf's packages but not raygf."""
    port, dashboard, agent, metrics = free_ports(4)
    with ray_folder() as folder:
        python = python_without_raygf(folder)
        head = Head(f"http://127.0.0.1:{dashboard}", folder, _environment(python))
        call = [
            *(str(python), "-m", "ray.scripts.scripts", "start", "--head", "--port", str(port)),
            *("--temp-dir", str(folder), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)),
            *("--num-cpus", str(cpus), "--object-store-memory", str(200 * 2**20), "--disable-usage-stats"),
        ]
        start = subprocess.run(call, env=head.environment, capture_output=True, text=True, timeout=60)
        assert start.returncode == 0, start.stdout + start.stderr
        yield head


@contextmanager
def ray_folder():
    """A folder for one Ray's files. It ends with its processes: ``ray stop`` would end every Ray there is."""
    folder = Path(tempfile.mkdtemp(prefix="rgf", dir="/tmp"))  # short: paths of sockets must be
    try:
        yield folder
    finally:
        for _ in range(3):
            processes = processes_of(folder)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=10)
        left = processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        assert left == []


def processes_of(folder):
    """Everything that belongs to the Ray in ``folder``: what names it, and the children of that."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(folder) in word for word in process.cmdline()):
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        except psutil.Error:
            continue
    return list(found.values())


def python_without_raygf(folder):
    """A Python with the packages of the one that runs the tests, as a cluster's nodes have it: no raygf."""
    venv.create(folder / "python", with_pip=False)
    (site,) = (folder / "python" / "lib").glob("python*/site-packages")
    # The .pth files in a folder that a .pth file names are not read: an editable install is one.
    (site / "packages.pth").write_text("".join(f"{place}\n" for place in getsitepackages()))
    return folder / "python" / "bin" / "python"


def _environment(python):
    """This process's, with nothing of Ray, MLflow or Python in it, and with ``python`` first in PATH."""
    ours = ("RAY_", "MLFLOW_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = f"{python.parent}:{os.environ['PATH']}"
    return kept | {"RAY_AUTH_MODE": "disabled", "PATH": path, "NO_COLOR": "1"}


def program(name):
    """A program of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def free_ports(count):
    """Ports that nobody listened on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
