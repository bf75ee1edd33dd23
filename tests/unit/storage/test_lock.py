"""One run at a time in a folder: who may take it, and that only one does."""

import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from raygf.errors import RunFailed, StorageError
from raygf.storage import lock as lock_module
from raygf.storage.folder import RunFolder
from raygf.storage.lock import (
    MOMENT_S,
    NAME,
    STALE_S,
    Held,
    Owner,
    Process,
    RunLock,
    needed_silence_s,
    read_lock,
)

HERE, GONE, AWAY = True, False, None


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds become hundredths."""
    for name in ("BEAT_S", "STALE_S", "POLL_S"):
        monkeypatch.setattr(lock_module, name, getattr(lock_module, name) / 100)
    monkeypatch.setattr(lock_module, "MOMENT_S", MOMENT_S / 5)


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(str(tmp_path), "run")
    made.create()
    return made


@pytest.fixture
def locks(folder):
    """Makes locks of runs of their own, and gives back what they hold."""
    made = []

    def make(owner=None):
        made.append(RunLock(folder, owner or Owner.new()))
        return made[-1]

    yield make
    for lock in made:
        lock.release()


@pytest.fixture(scope="module")
def dead():
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = replace(Process.this(), pid=child.pid)
    child.wait()
    return process


@pytest.fixture
def child():
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as running:
        yield running
        running.kill()


def elsewhere():
    return replace(Process.this(), host="another-machine")


def process_of(child):
    return replace(Process.this(), pid=child.pid, started=time.time())


def put(folder, driver, job, token="other", age_s=0):
    """A lock as another run has left it."""
    folder.write(NAME, Held("its-id", Owner(token, job), driver).json())
    past = time.time() - age_s
    os.utime(folder.path(NAME), (past, past))


def test_a_process_lives_until_it_ends_and_is_not_the_next_one_of_its_number(dead):
    mine = Process.this()
    assert mine.alive() is replace(mine, started=mine.started + 0.5).alive() is True
    assert dead.alive() is replace(mine, started=mine.started - 60).alive() is False
    assert elsewhere().alive() is None


@pytest.mark.parametrize(
    ("driver", "job", "seconds"),
    [
        (HERE, HERE, math.inf),
        (GONE, HERE, math.inf),  # its job starts another driver
        (AWAY, HERE, math.inf),
        (HERE, GONE, math.inf),  # until Ray has ended it
        (GONE, GONE, 0),
        (AWAY, GONE, STALE_S),
        (AWAY, AWAY, STALE_S),
        (GONE, AWAY, STALE_S),  # the job may be starting another driver
    ],
)
def test_who_lives_decides_how_long_silence_has_to_last(monkeypatch, driver, job, seconds):
    lives = {1: driver, 2: job}
    monkeypatch.setattr(Process, "alive", lambda self: lives[self.pid])
    monkeypatch.setattr(lock_module, "STALE_S", STALE_S)
    held = Held("i", Owner("other", Process("h", 2, 0)), Process("h", 1, 0))
    assert needed_silence_s(held, "mine") == seconds
    assert needed_silence_s(held, "other") == 0  # its own lost driver's


def test_the_second_run_is_refused_and_changes_nothing(locks, folder):
    first = locks()
    assert first.acquire() == ()
    before = read_lock(folder)
    with pytest.raises(StorageError, match=rf"in use by another run \(process {os.getpid()} on ") as caught:
        locks().acquire()
    assert "--storage.name" in str(caught.value) and "try again" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert read_lock(folder) == before
    first.check()


def test_a_released_folder_is_as_it_was(locks, folder):
    lock = locks()
    lock.acquire()
    assert folder.names() == [NAME]
    lock.release()
    lock.release()
    assert folder.names() == []
    assert locks().acquire() == ()


def test_a_dead_run_is_taken_over_from(locks, folder, dead):
    put(folder, dead, dead)
    lock = locks()
    (note,) = lock.acquire()
    assert f"process {dead.pid} on " in note and "has ended" in note
    lock.check()
    assert locks(lock._mine.owner).acquire() == ()  # another driver of the same run needs no note


def test_an_owner_elsewhere_is_refused_with_the_time_to_try_again(locks, folder, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE_S", 60)
    put(folder, elsewhere(), elsewhere(), age_s=20)
    with pytest.raises(StorageError, match=r"another-machine\): .* try again in (\d+) s\)") as caught:
        locks().acquire()
    assert 35 <= int(str(caught.value).split("try again in ")[1].split()[0]) <= 40
    assert read_lock(folder).id == "its-id"


def test_an_owner_elsewhere_is_taken_over_from_after_its_silence(locks, folder):
    """Told by the storage's clock, so that nobody has to watch it."""
    put(folder, elsewhere(), elsewhere(), age_s=3600)
    lock = locks()
    (note,) = lock.acquire()
    assert "another-machine" in note
    lock.check()


def test_signs_of_life_renew_the_file(locks, folder):
    """Also one that somebody has deleted."""
    lock = locks()
    lock.acquire()
    folder.delete(NAME)
    deadline = time.monotonic() + 20
    while NAME not in folder.names():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.check()


def test_the_driver_of_a_dead_job_is_waited_for(locks, folder, dead, child, monkeypatch):
    """Ray ends it a little later, here after more than a moment."""
    monkeypatch.setattr(lock_module, "STALE_S", 60)
    put(folder, process_of(child), dead)
    killer = threading.Timer(0.6, child.kill)
    killer.start()
    locks().acquire()
    killer.join()


def test_who_lost_the_folder_stops_before_it_writes_and_leaves_the_lock_alone(
    locks, folder, dead, monkeypatch
):
    late, other = locks(), locks()
    monkeypatch.setattr(lock_module, "BEAT_S", 60)
    late.acquire()
    put(folder, dead, dead)  # as if it had been found dead
    other.acquire()
    with pytest.raises(RunFailed, match="was taken over by another run") as caught:
        late.check()
    assert caught.value.exit_code == 1
    monkeypatch.setattr(lock_module, "BEAT_S", 0.1)
    late.release()
    other.check()
    assert NAME in folder.names()


@pytest.mark.parametrize("content", [b"", b'{"id": 1}', b"\xff\xfe"])
def test_a_file_that_is_no_lock_is_taken_after_a_moment(locks, folder, content):
    folder.write(NAME, content)
    lock = locks()
    assert lock.acquire() == ()
    lock.check()


def test_where_files_can_not_be_created_exclusively_who_lost_stops_before_it_writes(
    locks, folder, monkeypatch
):
    """Both saw the folder free at the same moment."""
    folder.local = False
    monkeypatch.setattr(folder, "names", list)
    first, second = locks(), locks()
    first.acquire()
    second.acquire()
    with pytest.raises(RunFailed, match="was taken over by another run"):
        first.check()
    second.check()


def test_a_folder_that_can_not_be_read_is_one_clear_line(locks, folder, tmp_path):
    (tmp_path / "run" / NAME).mkdir()
    with pytest.raises(StorageError, match=r"^storage\.path: can't use ") as caught:
        locks().acquire()
    assert "\n" not in str(caught.value)
