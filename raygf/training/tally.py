"""How the exits do on the batches of a pass."""

from __future__ import annotations

import torch
from torch import Tensor

from raygf.errors import NonFiniteError
from raygf.records import ExitScore
from raygf.training.peers import ALONE, Peers


class Tally:
    """Losses and hits of batches. They stay on the device until the pass is over, so that no step waits.

    With ``peers`` every worker adds those of its share; the score is that of all workers together.
    """

    def __init__(self, peers: Peers = ALONE) -> None:
        self._peers = peers
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sizes: list[int] = []

    def __len__(self) -> int:
        """Batches so far."""
        return len(self._sizes)

    def add(self, losses: Tensor, hits: Tensor, size: int) -> None:
        """One batch of ``size`` images: the exits' mean losses (n,) and how many each got right (n,)."""
        self._losses.append(losses.detach())
        self._hits.append(hits)
        self._sizes.append(size)

    def score(self) -> ExitScore:
        """Means over the images."""
        return self._scored(self._history())

    def finite_score(self, layer: str, where: str) -> ExitScore:
        """As ``score``; see ``require_finite`` for the arguments and the error."""
        history = self._history()
        require_finite(history, layer, where)
        return self._scored(history)

    def _history(self) -> Tensor:
        """The losses of all batches (steps, n), on the CPU."""
        return self._peers.sum_(torch.stack(self._losses)).cpu()

    def _scored(self, history: Tensor) -> ExitScore:
        return mean_score(history, self._peers.sum_(torch.stack(self._hits)).cpu(), self._sizes)


def mean_score(losses: Tensor, hits: Tensor, sizes: list[int]) -> ExitScore:
    """Means over images of per-batch mean losses and hit counts, both (steps, n) on the CPU."""
    weights = torch.tensor(sizes, dtype=torch.float64)
    loss = (losses.double() * weights[:, None]).sum(0) / weights.sum()
    accuracy = hits.double().sum(0) / weights.sum()
    return ExitScore(tuple(loss.tolist()), tuple(accuracy.tolist()))


def require_finite(history: Tensor, layer: str, where: str) -> None:
    """Raise NonFiniteError unless the losses (steps, n) are finite and ``layer`` is empty.

    Args:
        layer: the weights that are not finite after the last step, for people; see ``not_finite``.
        where: names the training.
    """
    bad = (~torch.isfinite(history)).nonzero()
    if len(bad):
        step, exit = bad[0].tolist()
        raise NonFiniteError(
            f"{where}: the loss of exit {exit + 1} became {history[step, exit]:g} at step {step + 1}; "
            f"{f'not finite after the last step: {layer}; ' if layer else ''}"
            "lower optim.lr or set compute.precision to fp32"
        )
    if layer:
        raise NonFiniteError(
            f"{where}: a weight became infinite or NaN in the last step, {len(history)}: {layer}; "
            "lower optim.lr"
        )
