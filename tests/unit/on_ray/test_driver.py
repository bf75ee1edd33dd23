"""The mail of a run and its handle, without actors."""

import gc
import threading
import weakref
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from raygf.config.run import ResourceConfig, RunConfig
from raygf.errors import DataError, DriverLost, RunFailed
from raygf.on_ray import driver as module
from raygf.on_ray.driver import Mailbox, Over, ProcessHandle, Started, drive, driver_lost
from raygf.records import ExitScore, RoundRecord, RunEnd, RunStart

SCORE = ExitScore((1.0,), (0.5,))
START = RunStart(0, 2, 1, 1, 1, (1,), (1,), ("t",), "cpu")
END = RunEnd(3, 1, SCORE, "ab", "c", True)


def record(round):
    return RoundRecord(round, 3, round, 0.1, 0.1, SCORE, None, {"train": 1.0}, f"c{round}")


class Rubbish:
    """Refers to itself, so that only the garbage collector ends it."""

    def __init__(self):
        self.itself = self


class Leaving:
    """A driver whose rounds leave rubbish."""

    def __init__(self):
        self.left: list[weakref.ref[Rubbish]] = []

    def prepare(self):
        return START

    def rounds(self, run_id):
        assert run_id == "id"
        for round in (1, 2, 3):
            self.left.append(weakref.ref(Rubbish()))
            yield record(round)

    def end(self):
        return END

    def close(self): ...


def test_what_a_round_leaves_is_gone_when_its_record_is_sent():
    driver, sent = Leaving(), []

    def send(message):
        sent.append(message)
        assert [left() for left in driver.left] == [None] * len(driver.left)

    gc.disable()
    try:
        drive(driver, send, lambda: "id")
    finally:
        gc.enable()
        gc.unfreeze()
    assert sent == [START, record(1), record(2), record(3), END]


def test_a_record_is_handed_over_when_it_has_been_received():
    """So that the driver is one round ahead of its reader at most."""
    mailbox, after = Mailbox(), []

    def hand_over():
        for message in (START, record(1), record(2)):
            mailbox.hand_over(message)
            after.append(message)

    thread = threading.Thread(target=hand_over)
    thread.start()
    assert mailbox.receive(10) == [START]
    assert mailbox.receive(10) == [record(1)]
    assert record(2) not in after
    assert mailbox.receive(10) == [record(2)]
    thread.join()
    assert after == [START, record(1), record(2)]
    assert mailbox.receive(0.01) == []


class Call:
    """A method of an actor, called at once."""

    def __init__(self, method):
        self.remote = method


class Handle(ProcessHandle):
    """Of a run whose messages are all there; the run itself ends with ``outcome``."""

    who = "the driver"
    knob = "resources.driver_cpus"

    def __init__(self, messages, outcome=None, workers=None):
        mailbox: Any = Mailbox()
        for message in messages:
            mailbox.send(message)
        mailbox.receive, mailbox.go = Call(mailbox.receive), Call(mailbox.go)
        self.said: list[str] = []
        config = RunConfig(rounds=3, resources=ResourceConfig(workers=workers))
        super().__init__(config, self.said.append, mailbox, outcome, "it")

    def close(self): ...

    def _fits(self):
        return True

    def _round_limit(self):
        return 5.0


@pytest.fixture(autouse=True)
def no_actors(monkeypatch):
    """References are values, and errors are raised when they are fetched."""

    def fetch(value, limit):
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(module, "fetch", fetch)


def test_messages_become_what_the_driver_gives():
    handle = Handle([Started(), "note 1", START, record(1), "note 2", record(2), record(3), END, Over()])
    assert handle.prepare() == START
    assert list(handle.rounds("id")) == [record(1), record(2), record(3)]
    assert (handle.end(), handle.said) == (END, ["note 1", "note 2"])


def test_all_workers_are_waited_for():
    workers = [Started(actor=name) for name in "abc"]
    handle = Handle([*workers, START], workers=3)
    assert handle.prepare() == START
    assert handle._started == workers


@pytest.mark.parametrize("messages", [[DataError("none")], [Over()]])
def test_errors_come_as_themselves(messages):
    with pytest.raises(DataError, match="none"):
        Handle([Started(), *messages], outcome=DataError("none")).prepare()


def test_a_run_that_ends_without_a_word_has_failed():
    handle = Handle([Started(), START, record(1), Over()])
    handle.prepare()
    with pytest.raises(RunFailed, match="the driver ended before the run; the last checkpoint stands"):
        list(handle.rounds("id"))


def test_a_dead_actor_is_a_lost_driver(monkeypatch):
    handle = Handle([Started(), START])
    handle.prepare()
    monkeypatch.setattr(handle._mailbox.receive, "remote", lambda limit: ActorDiedError())
    with pytest.raises(DriverLost) as caught:
        list(handle.rounds("id"))
    assert caught.value.kind == "LOST"


def test_a_round_without_an_end_is_stuck(monkeypatch):
    handle = Handle([Started(), START])
    handle.prepare()
    monkeypatch.setattr(Handle, "_round_limit", lambda self: 0.01)
    monkeypatch.setattr(handle._mailbox.receive, "remote", lambda limit: [])
    with pytest.raises(DriverLost, match=r"no round ended within 0 s; raise resources\.exit_") as caught:
        list(handle.rounds("id"))
    assert caught.value.kind == "STUCK"


def test_the_loss_says_what_is_known():
    silent = driver_lost(ActorUnavailableError("RPC error: closed rpc_code: 14", None), "worker 1: ")
    assert silent.kind == "LOST"
    assert str(silent).startswith("worker 1: ActorUnavailableError: ") and "RPC error: closed" in str(silent)
    memory = driver_lost(OutOfMemoryError("low"))
    assert memory.kind == "MEMORY" and "it was not started again: " in str(memory)
