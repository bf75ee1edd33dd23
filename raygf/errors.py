"""Errors that a person reads: one line each, and the exit code that a job ends with."""

from __future__ import annotations


class RaygfError(Exception):
    """Base of all errors that raygf raises on purpose; a job prints its text on one line."""

    exit_code = 1


class UserError(RaygfError):
    """Something asked for can't be done as asked: bad flags, data, paths or resources. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration value is not allowed."""


class DataError(UserError):
    """A data set is missing, damaged, or does not fit the configuration."""


class CheckpointError(UserError):
    """A checkpoint can't be read, is damaged, or belongs to another run."""


class StorageError(UserError):
    """A storage path can't be written or read."""


class StorageLost(StorageError):
    """The storage stopped working while the run went on; earlier checkpoints stand. Exit code 1."""

    exit_code = 1


class ResourceError(UserError):
    """The cluster can't give what the configuration asks for."""


class TrackingError(UserError):
    """The tracking server can't be reached when the run starts."""


class NonFiniteError(RaygfError):
    """A loss, gradient or weight became NaN or infinite; the last checkpoint stands."""


class RunFailed(RaygfError):
    """The run ended early for a reason outside this process: a lost driver, a wait that ran out."""


class DriverLost(RunFailed):
    """The driver did not come back. It may be started again, unless ``kind`` says otherwise.

    ``kind``: the name of a ``raygf.retry.Failure``; ``node``: the id of the node that it ran on, if known.
    ``silent``: it only did not answer, so that its node may turn out to be lost.
    """

    def __init__(self, cause: str, kind: str = "LOST", node: str = "", silent: bool = False) -> None:
        super().__init__(cause, kind, node, silent)
        self.cause, self.kind, self.node, self.silent = cause, kind, node, silent

    def __str__(self) -> str:
        return self.cause


class MemoryExhausted(RaygfError):
    """A process ran out of memory, on the host or the GPU; the same work would end the same way."""


class ExitFailed(RaygfError):
    """The training of one exit could not be completed, after all retries.

    The arguments are kept as they are, so that the error survives pickling between processes.
    """

    def __init__(self, exit: int, round: int, node: str, cause: str, knob: str) -> None:
        super().__init__(exit, round, node, cause, knob)
        self.exit, self.round, self.node, self.cause, self.knob = exit, round, node, cause, knob

    def __str__(self) -> str:
        return (
            f"exit {self.exit + 1} could not be trained in round {self.round} on node {self.node}: "
            f"{self.cause}; {self.knob}"
        )
