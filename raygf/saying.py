"""Telling people at once, in one line, of trouble that is being dealt with."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def nobody(text: str) -> None:
    """Where nobody listens."""
