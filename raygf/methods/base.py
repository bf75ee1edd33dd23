"""The interface of within-step methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from raygf.config import MethodConfig
from raygf.fusion.flat import FlatSpace
from raygf.training.bound import BoundNetwork


@dataclass(frozen=True)
class Setting:
    """What a method may want to know of the network that it trains.

    ``owned`` (n, T), bool: which of the n exits depends on which tensor of ``space``.
    """

    config: MethodConfig
    network: nn.Module
    owned: Tensor
    space: FlatSpace


class StepMethod(ABC):
    """Turns the exits' losses of one batch into one update direction. Made anew for every round."""

    @abstractmethod
    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """Leave the direction in ``bound.grad`` (P,), which is zero on entry.

        Args:
            losses: c_i·CE_i of every exit (n,), attached to the graph. Summed over ``bound.peers`` they are
                the batch's; so gradients have to be summed before anything is made of them.

        Raises:
            NonFiniteError: a gradient is not finite.
        """

    def close(self) -> None:  # noqa: B027 - most methods leave nothing behind
        """Take back what the method has changed in the network."""
