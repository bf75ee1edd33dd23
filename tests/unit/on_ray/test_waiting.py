"""When people are told that something is waited for, and when it is given up; with a clock of its own."""

from __future__ import annotations

import pytest

from raygf.on_ray.placement import START_S, Late, Waiting


class Cluster:
    """Time, room, and what was said."""

    def __init__(self, monkeypatch, wait_s: float) -> None:
        self.now, self.room, self.said = 1000.0, True, []
        monkeypatch.setattr("raygf.on_ray.placement.time.monotonic", lambda: self.now)
        self.waiting = Waiting("the driver (1 CPUs)", wait_s, lambda: self.room, self.said.append)
        self.started = self.now

    def pass_(self, seconds: float) -> Late | None:
        """Ask every second for so long; what was answered last."""
        late = None
        for _ in range(round(seconds)):
            self.now += 1
            late = self.waiting.late(self.started)
            if late:
                return late
        return late


@pytest.fixture
def cluster(monkeypatch):
    return lambda wait_s=0.0: Cluster(monkeypatch, wait_s)


def test_a_quick_start_is_not_mentioned(cluster):
    it = cluster()
    assert it.pass_(10) is None
    it.waiting.over()
    assert it.said == []


def test_a_slow_start_is_said_once_and_ends_after_the_limit(cluster):
    it = cluster()
    assert it.pass_(START_S) is None
    assert it.said == ["waiting up to 300 s for the start of the driver (1 CPUs)"]
    assert it.pass_(2) == Late(START_S, lacking=False)


def test_without_patience_a_lack_of_nodes_is_an_end_at_once(cluster):
    it = cluster()
    it.room = False
    assert it.pass_(3) == Late(0, lacking=True)
    assert it.now <= it.started + 3


def test_a_lack_of_nodes_is_said_soon_and_waited_out(cluster):
    it = cluster(60.0)
    it.room = False
    assert it.pass_(50) is None
    assert it.said == ["waiting up to 60 s for a node that can hold the driver (1 CPUs)"]
    it.room = True  # a node has come, the process starts
    assert it.pass_(20) is None
    it.waiting.over()
    assert it.said[1:] == ["there is the driver (1 CPUs) after 69 s"]


def test_a_lack_that_lasts_too_long_is_the_end(cluster):
    it = cluster(60.0)
    it.room = False
    assert it.pass_(100) == Late(60.0, lacking=True)
    assert it.now == it.started + 62  # the first look starts the clock


def test_waiting_anew_starts_anew(cluster):
    it = cluster(60.0)
    it.room = False
    it.pass_(50)
    it.waiting.over()
    assert it.pass_(50) is None
    assert len(it.said) == 3
