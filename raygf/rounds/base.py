"""What makes one round: the interface and its outcome."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raygf.records import ExitScore, FusionReport
from raygf.training.network import Arrays, Average, NetworkState, averaged


@dataclass(frozen=True)
class RoundOutcome:
    """The network after a round and its measurements; ``seconds`` by phase.

    ``skipped``: the round came to nothing, and the network is what it was before.
    """

    state: NetworkState
    train: ExitScore
    seconds: dict[str, float]
    fusion: FusionReport | None = None
    notes: tuple[str, ...] = ()
    skipped: bool = False


class RoundMethod(ABC):
    """One round of training; may keep arrays (fusion weights, momentum) that belong to the checkpoint."""

    average: Average
    """Of the network, over steps or rounds: ``optim.ema``."""
    operations: Callable[[Sequence[int], Mapping[str, int], int], int]
    """What the first rounds take: from the operations up to each exit (n,), how many images every split has,
    and the number of rounds."""

    @abstractmethod
    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """Train round ``round`` (from 1) starting from ``state``.

        Raises NonFiniteError: a loss or weight is not finite; ``restore`` takes back what has changed.
        """

    def begin(self, state: NetworkState, round: int) -> None:  # noqa: B027 - not every method can
        """Let others start on what ``run`` will be called with next, and return at once."""

    def evaluated(self, state: NetworkState) -> NetworkState:
        """What is evaluated and handed on of ``state``, a round's outcome: the average, if there is one."""
        return averaged(self.average.arrays(), state)

    @abstractmethod
    def arrays(self) -> Arrays:
        """What must be stored so that the next round continues as if nothing had happened."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Take back what ``arrays`` gave."""

    def close(self) -> None:  # noqa: B027 - not every method holds something
        """Give back processes and memory."""
