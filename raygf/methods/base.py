"""The interface of within-step methods."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from raygf.bound import BoundNetwork


class StepMethod(Protocol):
    """Turns the exits' losses of one batch into one update direction."""

    def backward(self, losses: Tensor, bound: BoundNetwork) -> None:
        """Leave the direction in ``bound.grad`` (P,), which is zero on entry.

        Args:
            losses: c_i·CE_i of every exit (n,), attached to the graph.
        """
        ...
