"""Trackers beside MLflow: TensorBoard's, and those of one's own. They are three calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import yaml

from raygf.config.fields import to_dict
from raygf.config.run import RunConfig
from raygf.errors import ConfigError, import_function, one_line, user_error, without_passwords
from raygf.records import Notify, RoundRecord, RunEnd, RunStart
from raygf.storage.folder import inside
from raygf.tracking.mlflow_run import BY_PASSES, end_metrics, round_metrics

TENSORBOARD = "tensorboard"
FIELD = "tracking.also"
FLUSH_S = 10
"""Seconds after which TensorBoard sees what was written."""


class Listener(Protocol):
    """What a tracker of one's own has. It is called in the job's process, which waits for it."""

    def on_start(self, config: RunConfig, start: RunStart) -> None:
        """Before the first round; of a resumed run ``start.round`` rounds are done already."""

    def on_round(self, record: RoundRecord) -> None:
        """After every round."""

    def on_end(self, end: RunEnd | None) -> None:
        """After the test; None: the run has failed, or was stopped before it."""


class TensorBoard:
    """The metrics of MLflow, by the same names, in the folder ``tensorboard`` of the run's own folder."""

    def on_start(self, config: RunConfig, start: RunStart) -> None:
        """Open the folder; what an earlier process wrote of later rounds is dropped."""
        from tensorboardX import SummaryWriter

        path = f"{config.storage.name}/{TENSORBOARD}"
        place = inside(config.storage.path, path)
        self._writer = SummaryWriter(place, purge_step=start.round + 1, flush_secs=FLUSH_S)
        text = yaml.safe_dump(without_passwords(to_dict(config)), sort_keys=False)
        self._writer.add_text("config", f"```\n{text}```", start.round)

    def on_round(self, record: RoundRecord) -> None:
        """Add the round's metrics; those by training passes have these as their step."""
        by_passes = round(record.training_passes)
        for name, value in round_metrics(record).items():
            if math.isfinite(value):
                self._writer.add_scalar(
                    name, value, by_passes if name.startswith(BY_PASSES) else record.round
                )

    def on_end(self, end: RunEnd | None) -> None:
        """Add the test's metrics."""
        if end is not None:
            for name, value in end_metrics(end).items():
                self._writer.add_scalar(name, value, end.rounds)
        self._writer.close()


class Listeners:
    """The trackers that ``tracking.also`` names. One that fails is left out from then on, and costs a note.

    Raises ConfigError: there is none of a name, its code fails, or what it returns is not one.
    """

    def __init__(self, names: Sequence[str], notify: Notify) -> None:
        self._notify = notify
        self._listeners = {name: _made(name) for name in names}

    def tell(self, call: Literal["on_start", "on_round", "on_end"], *what: object) -> None:
        """Have ``call`` made with ``what`` on all of them."""
        for name, listener in [*self._listeners.items()]:
            try:
                getattr(listener, call)(*what)
            except (Exception, SystemExit) as error:  # a user's code may raise anything
                self._notify(f"{FIELD} = {name!r}: {call} failed, it is left out: {one_line(error)}")
                del self._listeners[name]


def _made(name: str) -> Listener:
    if name == TENSORBOARD:
        return TensorBoard()
    if ":" not in name:
        raise ConfigError(f'{FIELD} = {name!r}: must be {TENSORBOARD} or "package.module:function"')
    try:
        listener: Listener = import_function(FIELD, name)()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise user_error(FIELD, name, "the function failed", error) from error
    if lacking := [call for call in ("on_start", "on_round", "on_end") if not hasattr(listener, call)]:
        what = f"{type(listener).__name__} has no {', '.join(lacking)}"
        raise ConfigError(f"{FIELD} = {name!r}: what the function returned is no tracker: {what}")
    return listener
