"""Waiting until Ray has started an actor: when to say so, and when to give up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from raygf.saying import Say

START_S = 300.0
"""Seconds in which a process that has room starts: it imports torch, and an exit's maps the data."""
_SAY_AFTER_S = {True: 5.0, False: 30.0}
"""Seconds after which it is said that a node is lacking, or that a process takes long to start."""


@dataclass(frozen=True)
class Late:
    """It took longer than ``limit`` seconds; ``lacking``: no living node has room for it at all."""

    limit: float
    lacking: bool


class Waiting:
    """For one kind of actor. ``late`` is called again and again while there is none, ``over`` when there is.

    Args:
        what: the actor and its size, for people.
        wait_s: seconds to wait for nodes.
        fits: whether a living node could hold one.
    """

    def __init__(self, what: str, wait_s: float, fits: Callable[[], bool], say: Say) -> None:
        self._what, self._wait_s, self._fits, self._say = what, wait_s, fits, say
        self._began: float | None = None
        self._said = False

    def late(self, started: float) -> Late | None:
        """None while there is still hope for the process that was asked for at ``started``."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        lacking = not self._fits()
        limit, since = (self._wait_s, self._began) if lacking else (START_S + self._wait_s, started)
        if now - since > limit:
            return Late(limit, lacking)
        if not self._said and now - self._began > _SAY_AFTER_S[lacking]:
            self._said = True
            kind = "a node that can hold" if lacking else "the start of"
            self._say(f"waiting up to {limit:.0f} s for {kind} {self._what}")
        return None

    def over(self) -> None:
        """There is one."""
        if self._said and self._began is not None:
            self._say(f"there is {self._what} after {time.monotonic() - self._began:.0f} s")
        self._began, self._said = None, False
