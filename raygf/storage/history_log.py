"""The history of a run while it grows: as the text that every checkpoint holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raygf.storage.history import skipped_in_a_row


class JsonText(str):
    """JSON that is a text already: ``write_archive`` puts it into its own as it is."""


class HistoryLog:
    """The entries of all rounds so far (see ``raygf.storage.history``).

    They are one text. It takes a fifth of the memory of the entries' numbers, and one block of it: thousands
    of small ones that stay, among many that come and go, would leave holes in the heap.
    """

    def __init__(self, entries: Sequence[dict[str, Any]] = ()) -> None:
        self._text = ", ".join(json.dumps(entry) for entry in entries)
        self.skipped = skipped_in_a_row(list(entries))
        """Rounds at the end that were skipped."""

    def append(self, entry: dict[str, Any]) -> None:
        """Add the newest round's."""
        self._text = self._with(entry)
        self.skipped = self.skipped + 1 if entry.get("skipped") else 0

    def followed_by(self, entry: dict[str, Any]) -> JsonText:
        """All entries and ``entry`` as a JSON list."""
        return JsonText(f"[{self._with(entry)}]")

    def _with(self, entry: dict[str, Any]) -> str:
        return f"{self._text}, {json.dumps(entry)}" if self._text else json.dumps(entry)
