"""Order, second tries, notes and time limits, without a store."""

import threading
import time

import pytest

from raygf.errors import TrackingError
from raygf.tracking.delivery import Delivery, Parcel, listed


class Store:
    """Takes parcels while it is ``up``, and remembers what was tried and what arrived."""

    def __init__(self):
        self.up = True
        self.bad: set[str] = set()
        self.tried: list[str] = []
        self.arrived: list[str] = []
        self.said: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def check(self):
        if not self.up:
            raise TrackingError("the store is gone")

    def parcel(self, label):
        return Parcel(label, lambda: self.take(label))

    def take(self, label):
        self.gate.wait(20)
        self.tried.append(label)
        if not self.up or label in self.bad:
            raise OSError(f"[Errno 111] Connection refused (call {len(self.tried)})")
        self.arrived.append(label)


@pytest.fixture
def store(monkeypatch):
    store = Store()
    for module in ("delivery", "store"):
        monkeypatch.setattr(f"raygf.tracking.{module}.check_uri", lambda uri: store.check())
    yield store
    store.gate.set()


@pytest.fixture
def delivery(store):
    delivery = Delivery("sqlite:///x", store.said.append)
    delivery.open(lambda: None, 20)
    yield delivery
    store.gate.set()
    delivery.close([], 20)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post(delivery, store, *labels):
    for label in labels:
        delivery.post(store.parcel(label))


def test_parcels_arrive_in_order_and_are_not_waited_for(store, delivery):
    labels = [f"round {i}" for i in range(50)]
    store.gate.clear()
    post(delivery, store, *labels)
    assert delivery.undelivered == labels  # the sender does not wait
    store.gate.set()
    delivery.close([store.parcel("results")], 20)
    assert store.arrived == [*labels, "results"]
    assert store.said == delivery.undelivered == []


def test_what_failed_is_tried_again_in_order_and_told_once_per_cause(store, delivery):
    store.gate.clear()
    store.up = False
    rounds = [f"round {i}" for i in range(1, 6)]
    post(delivery, store, *rounds)
    store.gate.set()
    until(lambda: len(store.tried) >= 10)
    assert set(store.tried) == {"round 1", "round 2"}  # two failures in a row end a try
    store.up = True
    post(delivery, store, "round 6")
    until(lambda: not delivery.undelivered)
    assert store.arrived == [*rounds, "round 6"]
    assert store.said == ["tracking: could not send round 1 to MLflow (Connection refused); training goes on"]


def test_one_bad_parcel_does_not_hold_up_the_others(store, delivery):
    store.bad = {"round 1"}
    post(delivery, store, "round 1", "round 2", "round 3")
    until(lambda: len(store.arrived) == 2)
    delivery.close([store.parcel("results")], 20)
    assert store.arrived == ["round 2", "round 3", "results"]
    assert store.said[1:] == ["tracking: not delivered to sqlite:///x (Connection refused): round 1"]


def test_urgent_parcels_go_before_what_waits(store, delivery):
    store.up = False
    post(delivery, store, "round 1")
    until(lambda: store.said)
    store.up = True
    delivery.close([store.parcel("final status")], 20, urgent=True)
    assert store.arrived == ["final status", "round 1"]


def test_a_store_that_is_gone_in_the_end_is_not_tried(store, delivery):
    store.up = False
    delivery.close([store.parcel("round 2"), store.parcel("results")], 20)
    assert store.tried == []
    assert store.said == ["tracking: not delivered to sqlite:///x (the store is gone): round 2, results"]


def test_the_end_is_not_waited_for_beyond_the_limit(store, delivery):
    store.gate.clear()
    post(delivery, store, "round 1")
    delivery.close([store.parcel("results")], 0.2)
    assert store.said == ["tracking: not delivered to sqlite:///x (no answer within 0 s): round 1, results"]


def test_before_the_opening_and_after_the_end_nothing_is_sent(store):
    delivery = Delivery("sqlite:///x", store.said.append)
    post(delivery, store, "early")
    delivery.close([store.parcel("results")], 20)
    assert delivery.undelivered == []
    delivery.open(lambda: None, 20)
    delivery.close([], 20)
    post(delivery, store, "late")
    delivery.close([store.parcel("again")], 20)
    assert (store.tried, store.said, delivery.undelivered) == ([], [], [])


def test_an_opening_that_fails_or_takes_too_long_is_an_error(store):
    def fail():
        raise ValueError("broken")

    slow = Delivery("sqlite:///x", store.said.append)
    with pytest.raises(TrackingError, match=r"^can't track to sqlite:///x: broken$"):
        slow.open(fail, 20)
    store.gate.clear()
    with pytest.raises(TrackingError, match="sqlite:///x took more than 0 s to open a run"):
        slow.open(lambda: store.take("opening"), 0.1)
    post(slow, store, "round 1")
    assert slow.undelivered == []
    slow.open(lambda: None, 20)  # it may be tried again
    slow.close([], 20)
    store.up = False
    with pytest.raises(TrackingError, match="the store is gone"):
        slow.open(lambda: None, 20)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], ""),
        (["round 7"], "round 7"),
        (["round 3", "round 4", "round 5", "round 8", "results"], "rounds 3-8, results"),
        (["final status", "round 1", "round 2"], "rounds 1-2, final status"),
        (["round 2", "round 4"], "rounds 2-4"),
    ],
)
def test_rounds_are_drawn_together(labels, text):
    assert listed(labels) == text
