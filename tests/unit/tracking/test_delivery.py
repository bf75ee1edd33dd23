"""Order, second tries, remarks and time limits, without a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from raygf.errors import TrackingError
from raygf.tracking.delivery import Delivery, Parcel, listed


class Store:
    """Takes parcels while it is ``up``, and remembers what was tried and what arrived."""

    def __init__(self) -> None:
        self.up = True
        self.bad: set[str] = set()
        self.tried: list[str] = []
        self.arrived: list[str] = []
        self.said: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def check(self) -> None:
        if not self.up:
            raise TrackingError("the store is gone")

    def parcel(self, label: str) -> Parcel:
        return Parcel(label, lambda: self.take(label))

    def take(self, label: str) -> None:
        self.gate.wait(20)
        self.tried.append(label)
        if not self.up or label in self.bad:
            raise OSError(f"[Errno 111] Connection refused (call {len(self.tried)})")
        self.arrived.append(label)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.gate.set()


@pytest.fixture
def delivery(store: Store) -> Iterator[Delivery]:
    delivery = Delivery("sqlite:///x", store.check, store.said.append)
    delivery.open(lambda: None, 20)
    yield delivery
    store.gate.set()
    delivery.close([], 20)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post(delivery: Delivery, store: Store, *labels: str) -> None:
    for label in labels:
        delivery.post(store.parcel(label))


def test_parcels_arrive_in_order(store, delivery):
    labels = [f"round {i}" for i in range(50)]
    post(delivery, store, *labels)
    delivery.close([store.parcel("results")], 20)
    assert store.arrived == [*labels, "results"]
    assert store.said == []
    assert delivery.undelivered == []


def test_the_sender_does_not_wait(store, delivery):
    store.gate.clear()
    began = time.monotonic()
    post(delivery, store, *(f"round {i}" for i in range(100)))
    assert time.monotonic() - began < 1
    assert len(delivery.undelivered) == 100


def test_what_failed_is_tried_again_in_order_and_remarked_once_per_cause(store, delivery):
    store.up = False
    post(delivery, store, "round 1")
    until(lambda: store.said)
    post(delivery, store, "round 2")
    until(lambda: "round 2" in store.tried)
    store.up = True
    post(delivery, store, "round 3")
    until(lambda: not delivery.undelivered)
    assert store.arrived == ["round 1", "round 2", "round 3"]
    assert store.said == ["tracking: could not send round 1 to MLflow (Connection refused); training goes on"]


def test_one_bad_parcel_does_not_hold_up_the_others(store, delivery):
    store.bad = {"round 1"}
    post(delivery, store, "round 1", "round 2", "round 3")
    until(lambda: len(store.arrived) == 2)
    delivery.close([store.parcel("results")], 20)
    assert store.arrived == ["round 2", "round 3", "results"]
    assert store.said[1:] == ["tracking: not delivered to sqlite:///x (Connection refused): round 1"]


def test_two_failures_in_a_row_end_a_try(store, delivery):
    store.gate.clear()
    store.up = False
    post(delivery, store, "first", *(f"round {i}" for i in range(5)))
    store.gate.set()
    until(lambda: len(store.tried) >= 10)
    assert set(store.tried) == {"first", "round 0"}


def test_urgent_parcels_go_before_what_waits(store, delivery):
    store.up = False
    post(delivery, store, "round 1")
    until(lambda: store.said)
    store.up = True
    delivery.close([store.parcel("final status")], 20, urgent=True)
    assert store.arrived == ["final status", "round 1"]


def test_a_store_that_is_gone_in_the_end_is_not_tried(store, delivery):
    post(delivery, store, "round 1")
    until(lambda: store.arrived)
    store.up = False
    delivery.close([store.parcel("round 2"), store.parcel("results")], 20)
    assert store.tried == ["round 1"]
    assert store.said == ["tracking: not delivered to sqlite:///x (the store is gone): round 2, results"]


def test_the_end_is_not_waited_for_beyond_the_limit(store, delivery):
    store.gate.clear()
    post(delivery, store, "round 1")
    began = time.monotonic()
    delivery.close([store.parcel("results")], 0.2)
    assert time.monotonic() - began < 2
    assert store.said == ["tracking: not delivered to sqlite:///x (no answer within 0 s): round 1, results"]


def test_before_the_opening_and_after_the_end_nothing_is_sent(store):
    delivery = Delivery("sqlite:///x", store.check, store.said.append)
    post(delivery, store, "early")
    delivery.close([store.parcel("results")], 20)
    assert delivery.undelivered == []
    delivery.open(lambda: None, 20)
    delivery.close([], 20)
    post(delivery, store, "late")
    delivery.close([store.parcel("again")], 20)
    assert (store.tried, store.said, delivery.undelivered) == ([], [], [])


def test_an_opening_that_fails_or_takes_too_long_is_an_error(store):
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Delivery("sqlite:///x", store.check, store.said.append).open(fail, 20)
    store.gate.clear()
    slow = Delivery("sqlite:///x", store.check, store.said.append)
    with pytest.raises(TrackingError, match="sqlite:///x took more than 0 s to open a run"):
        slow.open(lambda: store.take("opening"), 0.1)
    post(slow, store, "round 1")
    assert slow.undelivered == []


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], ""),
        (["results"], "results"),
        (["round 7"], "round 7"),
        (["round 3", "round 4", "round 5", "round 8", "results"], "rounds 3-5, 8, results"),
        (["final status", "round 1", "round 2"], "rounds 1-2, final status"),
        (["round 2", "round 4"], "rounds 2, 4"),
    ],
)
def test_rounds_are_drawn_together(labels, text):
    assert listed(labels) == text
