"""A driver that is started again, from its last checkpoint, when it is lost. Knows nothing of actors."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from raygf.config.run import RunConfig
from raygf.errors import DriverLost, ResourceError, RunFailed
from raygf.on_ray.faults import Failure, may_retry
from raygf.records import Notify, RoundRecord, RunEnd, RunStart
from raygf.rounds.driver import DriverHandle

_MORE = "; allow more restarts in a row with resources.max_driver_restarts"
_AGAIN = "; this would happen again, so it was not started again"
_KNOBS = {Failure.LOST: _MORE, Failure.STUCK: _MORE, Failure.MEMORY: "", Failure.RAISED: _AGAIN}


class RestartedDriver(DriverHandle):
    """Records come once each and in order, however often the driver was started again."""

    def __init__(
        self,
        start: Callable[[RunConfig], DriverHandle],
        config: RunConfig,
        notify: Notify,
    ) -> None:
        """Begin to ``start`` the first driver.

        Args:
            start: starts one, given the run; after the first has been prepared, one that is resumed. Its
                calls may raise DriverLost.
        """
        self._start = start
        self._config = config
        self._notify = notify
        self._losses = 0
        self._notes: list[str] = []
        self._seen = 0
        self._handle = start(config)

    def prepare(self) -> RunStart:
        """As ``Driver.prepare``."""
        while True:
            try:
                start = self._handle.prepare()
                break
            except DriverLost as lost:
                self._replace(lost, "before the first round")
        self._seen = start.round
        storage = replace(self._config.storage, resume=True)
        self._config = replace(self._config, storage=storage)  # from here on what is there is this run's
        return start

    def rounds(self, run_id: str) -> Iterator[RoundRecord]:
        """As ``Driver.rounds``; a record's notes tell of what was lost before it."""
        last = min(self._config.rounds, self._config.stop_after or self._config.rounds)
        while True:
            try:
                for record in self._handle.rounds(run_id):
                    if record.round > self._seen:
                        yield self._handed_out(record)
                return
            except DriverLost as lost:
                where = f"in round {self._seen + 1}" if self._seen < last else "in the test"
                for missed in self._recover(lost, where).recent:
                    if missed.round > self._seen:
                        yield self._handed_out(missed)

    def end(self) -> RunEnd:
        """As ``Driver.end``."""
        return self._handle.end()

    def close(self) -> None:
        """As ``Driver.close``."""
        self._handle.close()

    def _handed_out(self, record: RoundRecord) -> RoundRecord:
        notes, self._notes, self._losses = self._notes, [], 0
        self._seen = record.round
        return replace(record, notes=(*notes, *record.notes))

    def _recover(self, lost: DriverLost, where: str) -> RunStart:
        """Start a driver that stands where the last checkpoint is; returns its start."""
        while True:
            self._replace(lost, where)
            try:
                start = self._handle.prepare()
            except DriverLost as again:
                lost = again
                continue
            except ResourceError as error:
                raise RunFailed(
                    f"the driver was lost {where} ({lost}) and could not be started again: {error}; the "
                    "last checkpoint stands"
                ) from None
            self._notes += start.notes
            return start

    def _replace(self, lost: DriverLost, where: str) -> None:
        """Start another driver; RunFailed if it was lost too often in a row, or would be again."""
        failure, most = Failure[lost.kind], self._config.resources.max_driver_restarts
        self._losses += 1
        if not may_retry(failure, self._losses, most):
            left = "; the last checkpoint stands" if self._seen else ""
            raise RunFailed(f"the driver was lost {where}: {lost}{_KNOBS[failure]}{left}") from None
        with suppress(RunFailed):
            self._handle.close()
        self._notify(f"the driver was lost {where} ({lost}): starting it again, from the last checkpoint")
        self._notes.append(f"driver restarted {where}: {lost}")
        self._handle = self._start(self._config)
