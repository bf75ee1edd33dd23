"""The pass over images in which fusion weights are fitted, run in shares of every batch."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from raygf.config.run import RunConfig
from raygf.data.base import Batch, BatchSource, Portion, round_batches
from raygf.fusion.fuse import Learner, Passed, fuse
from raygf.training.exit_trainer import PassTask
from raygf.training.losses import ExitLosses, Tally, exit_hits, make_losses
from raygf.training.network import BoundNetwork, NetworkState
from raygf.training.shares import FusionShares, Share, ShareStep, Turns, mean_buffers, shares_of
from raygf.training.space import Segments


def run_pass(shares: FusionShares, make: Callable[[], Learner], where: str) -> Passed:
    """One pass with a learner fresh from ``make``; ``where`` names it in errors.

    What the shares give is added up in their order, so that it does not matter who runs them.

    Raises NonFiniteError: a loss or weight is not finite.
    """
    learner, tally = make(), Tally()
    while steps := shares.step(learner.weights(), learner.learns):
        if learner.learns:
            first, *others = (step.gradient for step in steps if step.gradient is not None)
            learner.update(sum(others, first))
        tally.add_shares([(step.losses, step.hits) for step in steps], steps[0].size)
    score = tally.finite_score(where, learner.bad_weight())
    return Passed(learner, score, mean_buffers(shares.buffers()))


def pass_batches(config: RunConfig, source: BatchSource, round: int) -> Iterable[Batch]:
    """The images of the pass of ``round``: as many as an exit trains on, or ``fusion.images``."""
    images, split = config.fusion.images, config.fusion.split
    if images:
        return source.train(config.seed, "fuse", round, part=Portion(split, images))
    return round_batches(source, config, "fuse", round, split=split)


def exit_entropies(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """Mean entropy of every exit's output, ``H = −Σ_c p_c ln p_c``; the labels are not looked at.

    What AdaMerging minimises over its coefficients (Yang et al., "AdaMerging: Adaptive Model Merging for
    Multi-Task Learning", ICLR 2024), there on test images. ``logits``: n tensors (B, classes).
    """
    logs = [output.float().log_softmax(dim=1) for output in logits]
    return [-(log.exp() * log).sum(dim=1).mean() for log in logs]


class SharesHere:
    """The shares ``ranks`` of every batch of a pass, run in turn on one network.

    The bound network runs at the fused weights: what it held is overwritten.
    """

    def __init__(
        self,
        config: RunConfig,
        bound: BoundNetwork,
        batches: Iterable[Batch],
        state: NetworkState,
        deltas: Sequence[Tensor],
        task: PassTask,
        ranks: Sequence[int],
    ) -> None:
        """
        Args:
            batches: of the pass; see ``pass_batches``.
            state: W (P,), and the buffers that the pass starts from.
            deltas: n vectors Δ_i (P,).
            ranks: some of the ``fusion.shards`` shares, from 0.
        """
        self._config, self._bound = config, bound
        self._segments = Segments(config.fusion.segments, bound.space)
        entropy = config.fusion.objective == "entropy"
        self._losses: ExitLosses = exit_entropies if entropy else make_losses(config.loss)
        self._coefficients = torch.tensor(task.coefficients, device=bound.compute.device)
        self._base, self._deltas = bound.tensor(state.vector if task.base is None else task.base), deltas
        bound.load(state)
        bound.network.train()
        self._ranks = ranks
        self._turns = Turns(bound, ranks, config.fusion.shards, config.seed, "fuse", task.round)
        self._batches = iter(batches)
        self._steps = 0
        self._last: Tensor | None = None

    def step(self, weights: Tensor, learn: bool) -> list[ShareStep]:
        """As ``FusionShares.step``."""
        batch = next(self._batches, None)
        if batch is None:
            return []
        merged = self._move_to(weights, learn)
        divided = shares_of(batch, self._ranks, self._config.fusion.shards)
        steps = [self._share(share, weights, merged, len(batch[1])) for share in divided]
        self._steps += 1
        return steps

    def buffers(self) -> list[dict[str, Tensor]]:
        """As ``FusionShares.buffers``."""
        return self._turns.buffers()

    def _move_to(self, weights: Tensor, learn: bool) -> Tensor | None:
        """Let the network run at ``base + Σ_i weights_i Δ_i``; returned if there is to be a gradient."""
        if not learn and self._last is not None and torch.equal(weights, self._last):
            return None
        merged = fuse(self._base, self._deltas, weights.requires_grad_(learn), self._segments)
        self._bound.vector.copy_(merged.detach())  # faster than views of it in place of the parameters
        self._last = weights
        return merged if learn else None

    def _share(self, share: Share, weights: Tensor, merged: Tensor | None, size: int) -> ShareStep:
        bound = self._bound
        with self._turns.of(share.rank, self._steps), torch.set_grad_enabled(merged is not None):
            logits = bound.forward(share.images)
            losses = torch.stack(self._losses(logits, share.labels)) * share.weight
            gradient = None
            if merged is not None:
                bound.grad.zero_()
                torch.autograd.backward(losses, self._coefficients)
                last = share.rank == self._ranks[-1]
                (gradient,) = torch.autograd.grad(merged, weights, bound.grad, retain_graph=not last)
        hits = exit_hits(logits, share.labels) * (share.weight > 0)
        return ShareStep(gradient, losses.detach(), hits, size)
