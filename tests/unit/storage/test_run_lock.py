"""One run at a time in a folder: who may take it, and that only one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raygf.errors import RunFailed, StorageError
from raygf.records import ignore
from raygf.storage.folder import RunFolder
from raygf.storage.lock import NAME, Held, Owner, Pace, Process, RunLock, Verdict, judge, read_lock

QUICK = Pace(beat=0.05, stale=0.6, settle=0.05, poll=0.01, grace=0.1)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(str(tmp_path), "run")
    made.create()
    return made


@pytest.fixture
def locks(folder):
    """Makes locks of runs of their own, and gives back what they hold."""
    made = []

    def make(owner: Owner | None = None, pace: Pace = QUICK, notify=ignore) -> RunLock:
        made.append(RunLock(folder, owner or Owner.new(), pace, notify))
        return made[-1]

    yield make
    for lock in made:
        lock.release()


@pytest.fixture(scope="module")
def dead() -> Process:
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = replace(Process.this(), pid=child.pid)
    child.wait()
    return process


def elsewhere() -> Process:
    return replace(Process.this(), host="another-machine")


def put(folder: RunFolder, driver: Process, job: Process, token: str = "other") -> None:
    """A lock as another run has left it."""
    folder.write(NAME, Held("its-id", Owner(token, job), driver).json())


def age(tmp_path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(tmp_path / "run" / NAME, (past, past))


def test_this_process_lives_and_one_that_ended_does_not(dead):
    assert Process.this().alive() is True
    assert dead.alive() is False
    assert elsewhere().alive() is None
    assert replace(Process.this(), space="another boot").alive() is None


def test_a_process_with_the_number_of_one_that_ended_is_another():
    mine = Process.this()
    assert replace(mine, started=mine.started - 60).alive() is False
    assert replace(mine, started=mine.started + 0.5).alive() is True


def test_a_process_survives_json():
    mine = Process.this()
    held = Held("i", Owner("t", mine), mine, 3)
    values = json.loads(held.json())
    assert Process.read(values["driver"]) == mine and values["beats"] == 3


HERE, GONE, AWAY = True, False, None


@pytest.mark.parametrize(
    ("driver", "job", "beating", "silent", "verdict"),
    [
        (HERE, HERE, False, 0, Verdict.HELD),
        (HERE, HERE, False, 1e6, Verdict.HELD),  # alive, though its storage may hang
        (GONE, HERE, False, 1e6, Verdict.HELD),  # its job starts another driver
        (AWAY, HERE, False, 1e6, Verdict.HELD),
        (GONE, GONE, False, 0, Verdict.FREE),
        (HERE, GONE, True, 0, Verdict.UNSURE),  # Ray will end it in a moment
        (AWAY, GONE, True, 0, Verdict.UNSURE),
        (AWAY, GONE, False, 1e6, Verdict.FREE),
        (HERE, AWAY, False, 0, Verdict.HELD),
        (AWAY, AWAY, True, 0, Verdict.HELD),
        (AWAY, AWAY, False, 59, Verdict.UNSURE),
        (AWAY, AWAY, False, 61, Verdict.FREE),
        (GONE, AWAY, False, 0, Verdict.UNSURE),  # the job may be starting another driver
        (GONE, AWAY, False, 61, Verdict.FREE),
    ],
)
def test_verdicts(monkeypatch, driver, job, beating, silent, verdict):
    lives = {1: driver, 2: job}
    monkeypatch.setattr(Process, "alive", lambda self: lives[self.pid])
    held = Held("i", Owner("other", Process("h", "", 2, 0)), Process("h", "", 1, 0))
    assert judge("mine", held, beating, silent, Pace()) is verdict
    assert judge("other", held, beating, silent, Pace()) is Verdict.FREE  # its own lost driver's


def test_the_second_is_refused_at_once_and_changes_nothing(locks, folder):
    first = locks()
    assert first.acquire() == ()
    before = read_lock(folder).id
    with pytest.raises(StorageError, match=rf"in use by another run \(process {os.getpid()} on ") as caught:
        locks().acquire()
    assert "--storage.name" in str(caught.value) and caught.value.exit_code == 2
    assert read_lock(folder).id == before
    first.check()


def test_a_released_folder_is_as_it_was(locks, folder):
    lock = locks()
    lock.acquire()
    assert folder.names() == [NAME]
    lock.release()
    assert folder.names() == []
    assert locks().acquire() == ()


def test_what_a_dead_run_has_left_is_taken_over_at_once(locks, folder, dead):
    put(folder, dead, dead)
    lock = locks()
    (note,) = lock.acquire()
    assert f"process {dead.pid} on " in note and "has ended" in note
    lock.check()


def test_the_same_run_takes_over_from_its_own_driver_without_a_word(locks, folder, dead):
    owner = Owner.new()
    put(folder, dead, owner.job, owner.token)
    lock = locks(owner)
    assert lock.acquire() == ()
    lock.check()


def test_silence_elsewhere_is_waited_for(locks, folder):
    put(folder, elsewhere(), elsewhere())
    said = []
    (note,) = locks(notify=said.append).acquire()
    assert "another-machine" in note
    (text,) = said
    assert "another-machine: waiting to see whether it still lives" in text


def test_silence_before_the_start_counts(tmp_path, locks, folder):
    """By the storage's clock: a lock that is a week old is not watched for another minute."""
    put(folder, elsewhere(), elsewhere())
    age(tmp_path, 3600)
    lock = locks(pace=replace(QUICK, stale=600))
    lock.acquire()
    lock.check()


def test_signs_of_life_elsewhere_are_a_refusal(locks, folder):
    """Noticed after one beat, not after the whole time of silence."""
    held = Held("its-id", Owner("other", elsewhere()), elsewhere())
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(0.02):
            number += 1
            folder.write(NAME, replace(held, beats=number).json())

    folder.write(NAME, held.json())
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StorageError, match="another-machine"):
            locks(pace=replace(QUICK, stale=600)).acquire()
    finally:
        over.set()
        thread.join()
    assert read_lock(folder).id == "its-id"


def test_a_driver_whose_job_died_is_waited_for(locks, folder, dead):
    """Its process lives a little longer than the job that was killed."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    try:
        started = Process.this()
        driver = replace(started, pid=child.pid, started=time.time())
        put(folder, driver, dead)
        locks(pace=replace(QUICK, stale=60)).acquire()
        assert child.poll() is not None
    finally:
        child.wait()


def test_a_job_that_dies_while_it_is_looked_at_is_no_longer_in_the_way(locks, folder):
    """As when somebody kills a job and starts it again in one breath."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    job = replace(Process.this(), pid=child.pid, started=time.time())
    put(folder, job, job)
    killer = threading.Timer(0.2, child.kill)
    killer.start()
    locks(pace=replace(QUICK, grace=20)).acquire()
    killer.join()
    assert child.wait() != 0


def test_who_was_silent_and_lost_the_folder_stops_before_it_writes(locks, folder, dead):
    late, other = locks(pace=replace(QUICK, beat=60)), locks()
    late.acquire()
    put(folder, dead, dead)  # as if it had been found dead
    other.acquire()
    with pytest.raises(RunFailed, match="was taken over by another run") as caught:
        late.check()
    assert caught.value.exit_code == 1
    late.release()
    other.check()  # and leaves the other's lock alone


def test_a_lock_deleted_by_hand_comes_back(locks, folder):
    lock = locks()
    lock.acquire()
    folder.delete(NAME)
    lock.check()
    deadline = time.monotonic() + 20
    while NAME not in folder.names():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.check()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}', b"\xff\xfe"])
def test_a_lock_that_says_nothing_is_taken_after_a_moment(locks, folder, content):
    folder.write(NAME, content)
    lock = locks()
    assert lock.acquire() == ()
    lock.check()


def test_of_many_at_once_one_wins(folder):
    """On a local file system by creating the file, elsewhere by looking again; dead owners do not help."""
    for local in (True, False):
        barrier, results = threading.Barrier(8), []
        made = [RunLock(folder, Owner.new(), replace(QUICK, settle=1.5)) for _ in range(8)]

        def race(lock, barrier=barrier, results=results) -> None:
            barrier.wait()
            try:
                lock.acquire()
                results.append(lock)
            except StorageError:
                pass

        folder.local = local
        threads = [threading.Thread(target=race, args=(lock,)) for lock in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = results
        winner.check()
        winner.release()
        assert folder.names() == []


def test_a_folder_that_can_not_be_read_is_one_clear_line(tmp_path, locks, folder):
    (tmp_path / "run" / NAME).mkdir()
    with pytest.raises(StorageError, match=r"^storage\.path: can't use ") as caught:
        locks().acquire()
    assert "\n" not in str(caught.value)
