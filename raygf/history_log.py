"""The history of a run while it grows: as the text that every checkpoint holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raygf.history import skipped_in_a_row


class JsonText(str):
    """JSON that is a text already: ``write_archive`` puts it into its own as it is."""


class HistoryLog:
    """The entries of all rounds so far (see ``raygf.history``).

    Each is put into text once. That takes a fifth of the memory of its numbers, and a checkpoint's text is
    made by joining: else what a round adds and the work of writing it would both grow with the rounds.
    """

    def __init__(self, entries: Sequence[dict[str, Any]] = ()) -> None:
        self._texts = [json.dumps(entry) for entry in entries]
        self.skipped = skipped_in_a_row(list(entries))
        """Rounds at the end that were skipped."""

    def append(self, entry: dict[str, Any]) -> None:
        """Add the newest round's."""
        self._texts.append(json.dumps(entry))
        self.skipped = self.skipped + 1 if entry.get("skipped") else 0

    def followed_by(self, entry: dict[str, Any]) -> JsonText:
        """All entries and ``entry`` as a JSON list."""
        return JsonText(f"[{', '.join([*self._texts, json.dumps(entry)])}]")
