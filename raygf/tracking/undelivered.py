"""What MLflow did not take until the run's end: kept in a file, and sent first when the run is resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from raygf.config import StorageConfig
from raygf.errors import StorageError
from raygf.masked import without_password
from raygf.storage.run_folder import RunFolder
from raygf.tracking.mlflow_run import MLflowRun

NAME = "undelivered.jsonl"
_CALLS = ("log_metrics", "log_params", "set_tags", "remark")


@dataclass(frozen=True)
class Call:
    """A call of one of MLflowRun's methods with JSON values: it can be made later, by another process."""

    method: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self, run: MLflowRun) -> None:
        """Make it."""
        getattr(run, self.method)(**self.arguments)


class Labelled(Protocol):
    """What is to be kept; see ``Parcel``."""

    @property
    def label(self) -> str:
        """What people call it."""
        ...

    @property
    def call(self) -> Call | None:
        """How to send it later; None if that makes no sense or can't be written down."""
        ...


class Undelivered:
    """The file of the run that ``storage`` names: in the run's folder, or here if that can't be written.

    Args:
        here: this process's folder.
    """

    def __init__(self, storage: StorageConfig, here: Path) -> None:
        self._storage = storage
        self._here = here / f"{storage.name}-{NAME}"
        self._taken = False

    def take(self, run_id: str) -> list[tuple[str, Call]]:
        """What earlier processes could not send for ``run_id``: labels and calls. Stays until ``keep``."""
        lines = [line for text in (self._read_folder(), self._read_here()) for line in text.splitlines()]
        found = []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                call = Call(str(entry["method"]), dict(entry["arguments"]))
                if entry["run_id"] == run_id and call.method in _CALLS:
                    found.append((str(entry["label"]), call))
        self._taken = bool(lines)
        return found

    def keep(self, run_id: str, parcels: Sequence[Labelled]) -> str:
        """Keep what can be sent later, and nothing else; says where, for people, with the way to send it."""
        entries = [(parcel.label, parcel.call) for parcel in parcels if parcel.call is not None]
        values = [
            {"run_id": run_id, "label": label, "method": call.method, "arguments": call.arguments}
            for label, call in entries
        ]
        if not values:
            self._forget()
            return ""
        place = self._write("".join(json.dumps(value) + "\n" for value in values))
        name = self._storage.name
        return (
            f"kept in {place}, sent when the run is gone on with: --storage.name {name} --storage.resume True"
        )

    def _write(self, text: str) -> str:
        try:
            folder = RunFolder(self._storage.path, self._storage.name)
            folder.write(NAME, text.encode())
            return without_password(folder.path(NAME))
        except (OSError, StorageError):
            self._here.write_text(text)
            return str(self._here)

    def _read_folder(self) -> str:
        with suppress(OSError, StorageError, UnicodeDecodeError):
            return RunFolder(self._storage.path, self._storage.name).read(NAME).decode()
        return ""

    def _read_here(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return self._here.read_text()
        return ""

    def _forget(self) -> None:
        """Delete the files, if there were any."""
        if not self._taken:
            return
        self._here.unlink(missing_ok=True)
        with suppress(OSError, StorageError):
            RunFolder(self._storage.path, self._storage.name).delete(NAME)
