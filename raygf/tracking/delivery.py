"""Delivery in the background: in order, tried again, one note per cause, never waited for too long."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raygf.errors import TrackingError, Worker, without_password
from raygf.records import Notify
from raygf.tracking.store import answering, check_uri, reason


@dataclass(frozen=True, eq=False)
class Parcel:
    """Something to deliver. ``label``: what a person would call it; ``send``: delivers it, or raises."""

    label: str
    send: Callable[[], None]


class Delivery:
    """Sends parcels to the store at ``uri``. What is posted before ``open`` or after ``close`` is dropped.

    Args:
        notify: Called with one line when something could not be delivered; maybe from another thread.
        hint: How to have sent later what was not delivered at the end, for people.
    """

    def __init__(self, uri: str, notify: Notify, hint: str = "") -> None:
        self._uri, self._store = uri, without_password(uri)
        self._notify, self._hint = notify, hint
        self._worker: Worker
        self._open = False
        # Two threads change this list, by single operations in place, which need no lock.
        self._waiting: list[Parcel] = []
        self._causes_told: set[str] = set()
        self._last_trouble = ""

    @property
    def undelivered(self) -> list[str]:
        """Labels of what has not arrived yet, oldest first."""
        return [parcel.label for parcel in list(self._waiting)]

    def open(self, call: Callable[[], None], limit_s: float) -> None:
        """Have ``call`` made first, and wait for it.

        Raises TrackingError: the store can't be used, or ``call`` fails or takes longer than ``limit_s``.
        """
        with answering(self._uri):
            self._worker = Worker("raygf-tracking")
            try:
                self._worker.submit(call).result(limit_s)
                self._open = True
            except TimeoutError as error:
                raise TrackingError(f"{self._store} took more than {limit_s:.0f} s to open a run") from error
            finally:
                if not self._open:
                    self._worker.stop()

    def post(self, parcel: Parcel) -> None:
        """Send ``parcel`` after what waits already; returns at once."""
        if self._open:
            self._waiting.append(parcel)
            self._worker.submit(self._deliver)

    def close(self, parcels: Sequence[Parcel], limit_s: float, *, urgent: bool = False) -> None:
        """Send the last ``parcels`` and all that waits, within ``limit_s``; then tell what did not arrive.

        ``urgent`` parcels go before those that wait, others after them.
        """
        if not self._open:
            return
        self._open = False
        place = 0 if urgent else len(self._waiting)
        self._waiting[place:place] = parcels
        try:
            self._worker.submit(self._deliver_rest).result(limit_s)
            cause = self._last_trouble
        except TimeoutError:
            cause = f"no answer within {limit_s:.0f} s"
        self._worker.stop()
        if self._waiting:
            text = listed(self.undelivered) + (f"; {self._hint}" if self._hint else "")
            self._notify(f"tracking: not delivered to {self._store} ({cause}): {text}")

    def _deliver(self) -> None:
        """Send what waits, oldest first, up to two failures in a row.

        One failure may be that parcel's own; after the second the store is taken to be gone until next time.
        """
        failures = 0
        for parcel in list(self._waiting):
            if failures == 2 or not self._open:
                return
            failures = 0 if self._send(parcel) else failures + 1

    def _deliver_rest(self) -> None:
        """Try everything once, unless the store is gone: then each try would only cost its time limit."""
        try:
            check_uri(self._uri)
        except Exception as error:
            self._last_trouble = reason(error.__cause__ or error)
            return
        for parcel in list(self._waiting):
            self._send(parcel)

    def _send(self, parcel: Parcel) -> bool:
        """Whether it arrived. Each cause of trouble is told once; at the end there is a summary instead."""
        try:
            parcel.send()
        except Exception as error:
            self._last_trouble = trouble = reason(error)
            cause = re.sub(r"\d+", "#", trouble)
            if self._open and cause not in self._causes_told:
                self._causes_told.add(cause)
                self._notify(
                    f"tracking: could not send {parcel.label} to MLflow ({trouble}); training goes on"
                )
            return False
        self._waiting.remove(parcel)
        return True


def listed(labels: Sequence[str]) -> str:
    """``labels`` with the first and the last of the rounds in front: ``rounds 3-8, results``."""
    rounds = [label.removeprefix("round ") for label in labels if label.startswith("round ")]
    others = [label for label in labels if not label.startswith("round ")]
    first_and_last = dict.fromkeys((*rounds[:1], *rounds[-1:]))
    span = [f"round{'s' * (len(rounds) > 1)} {'-'.join(first_and_last)}"] if rounds else []
    return ", ".join([*span, *others])
