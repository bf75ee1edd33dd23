"""The growing history as text: what is read back is what plain JSON would have given."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from raygf.records import HistoryLog
from raygf.storage.checkpoint import Checkpoint, read_archive, write_archive
from raygf.training.network import NetworkState

ENTRIES = [
    {"round": 1, "train": {"loss": [0.5, None]}, "seconds": {"train": 1e-9}},
    {"round": 2, "skipped": True, "note": 'ä "quoted" \\ line\n'},
    {"round": 3, "skipped": True},
]


def entry(round: int, **more: Any) -> dict[str, Any]:
    return {"round": round, **more}


@pytest.mark.parametrize("known", [0, 1, 3])
def test_the_text_is_the_list(known: int) -> None:
    log = HistoryLog(ENTRIES[:known])
    for one in ENTRIES[known:]:
        log.append(one)
    assert json.loads(log.followed_by(entry(4))) == [*ENTRIES, entry(4)]
    assert json.loads(log.followed_by(entry(5))) == [*ENTRIES, entry(5)]  # nothing was added


def test_of_nothing() -> None:
    assert json.loads(HistoryLog().followed_by(entry(1))) == [entry(1)]


def test_skipped_rounds_at_the_end() -> None:
    log = HistoryLog(ENTRIES)
    assert log.skipped == 2
    log.append(entry(4, skipped=True))
    assert log.skipped == 3
    log.append(entry(5))
    assert log.skipped == 0
    assert HistoryLog(ENTRIES[:1]).skipped == HistoryLog().skipped == 0


def test_an_archive_holds_it_as_any_other_value() -> None:
    meta = {"run_id": "ä", "history": HistoryLog(ENTRIES).followed_by(entry(4)), "config": {"a": [1, None]}}
    stream = io.BytesIO()
    write_archive(stream, Checkpoint(4, NetworkState(np.zeros(2, np.float32), {}), {}, meta))
    again = read_archive(stream).meta
    assert again["history"] == [*ENTRIES, entry(4)]
    assert (again["run_id"], again["config"]) == ("ä", {"a": [1, None]})
