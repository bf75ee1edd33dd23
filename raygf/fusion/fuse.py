"""Fusing deltas: the weights α (paper, Eq. 10), and W + ε Σ_i α_i Δ_i with its gradient (inside of Eq. 11).

The deltas are n separate vectors of length P, so that on the CPU they may stay where the object store put
them, and nothing of size n × P is ever allocated. The CPU walks block by block (a block fits the cache, every
delta is read once); CUDA walks exit by exit (few kernels, whatever the number of blocks).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from raygf.config.run import Normalisation, RunConfig
from raygf.records import ExitScore
from raygf.training.network import Arrays
from raygf.training.space import Block, Segments


def fusion_weights(eta: Tensor, owned: Tensor, normalise: Normalisation = "softmax") -> Tensor:
    """The weights α (n, S) of n exits in S segments; but for "free", a column that has an owner sums to 1.

    Paper, Eq. 10, restricted to the exits that own the segment:
    ``α_i = m_i e^{η_i} / Σ_j m_j e^{η_j}``; with "sigmoid" σ(η) stands in place of e^η.
    "free": ``α_i = m_i η_i`` (AdaMerging's coefficients, Yang et al., ICLR 2024).

    Args:
        eta: logits (n, S).
        owned: mask m (n, S), bool. A segment that no exit owns gets weight 0 from all.
        normalise: "softmax" (the paper), "sigmoid" or "free".
    """
    if normalise == "free":  # an owner's weight is never exactly 0, which would mean: not owned
        return torch.where(owned, eta + 1e-30 * (eta == 0), 0.0)
    if normalise == "sigmoid":
        eta = F.logsigmoid(eta)  # then σ(η) / Σ σ(η) is its softmax, and safe for any η
    # In an orphaned column all are let in, so that its softmax is finite; the product then clears it.
    allowed = owned | ~owned.any(dim=0)
    return torch.softmax(eta.masked_fill(~allowed, -torch.inf), dim=0) * owned


def fuse(base: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """``base + Σ_i weights_i Δ_i`` (P,), differentiable with respect to ``weights`` only.

    The paper prints ``W − ε Σ_i α_i g_i`` (Eq. 11, Algorithm 1) although its ``g_i = W_i − W_0`` (Eq. 13)
    already points downhill; the update must be *added*, and here it is.

    A weight of exactly 0 marks an exit that does not own the segment: the CPU does not even read its delta
    there, and the weight gets no gradient (through a softmax it would get none either).

    Args:
        base: W (P,).
        deltas: n vectors Δ_i (P,).
        weights: ε·α (n, S).
        segments: the S segments that ``weights`` belongs to.
    """
    fused: Tensor = _Fuse.apply(weights, base, tuple(deltas), segments)  # type: ignore[no-untyped-call]
    return fused


class _Fuse(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weights: Tensor, base: Tensor, deltas: tuple[Tensor, ...], segments: Segments
    ) -> Tensor:
        ctx.deltas, ctx.segments = deltas, segments
        ctx.save_for_backward(weights)
        add = add_by_exit if base.is_cuda else add_by_block
        return add(base, deltas, weights, segments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        dot = dot_by_exit if grad.is_cuda else dot_by_block
        (weights,) = ctx.saved_tensors
        return dot(grad, ctx.deltas, weights, ctx.segments), None, None, None


def add_by_block(base: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """``base + Σ_i weights_i Δ_i`` (P,), block by block."""
    out, firsts = base.clone(), weights[:, segments.edges[0]].tolist()
    for number, block, owners in _owners(weights, segments):
        target = out[block.start : block.stop]
        owning = [deltas[i][block.start : block.stop] for i in owners]
        if block.parts == 1:
            for exit, delta in zip(owners, owning, strict=True):
                target.add_(delta, alpha=firsts[exit][number])
        else:
            part = weights[owners, block.first : block.last]
            target.view(block.parts, 1, -1).baddbmm_(part.T.unsqueeze(1), _cube(owning, block.parts))
    return out


def dot_by_block(vector: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """``Σ_{p in s} vector_p Δ_ip`` for every exit and segment (n, S), 0 where ``weights`` is."""
    out = vector.new_zeros(len(deltas), segments.count)
    exits, numbers, dots = [], [], []
    for _, block, owners in _owners(weights, segments):
        part = vector[block.start : block.stop]
        owning = [deltas[i][block.start : block.stop] for i in owners]
        if block.parts == 1:
            exits += owners
            numbers += [block.first] * len(owners)
            dots += [torch.dot(delta, part) for delta in owning]
        else:
            products = torch.bmm(_cube(owning, block.parts), part.view(block.parts, -1, 1))
            out[owners, block.first : block.last] += products.squeeze(2).T
    if dots:
        out.index_put_((torch.tensor(exits), torch.tensor(numbers)), torch.stack(dots), accumulate=True)
    return out * (weights != 0)


def add_by_exit(base: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """As ``add_by_block``, with two kernels an exit."""
    out, lengths = base.clone(), segments.lengths_on(base.device)
    for delta, row in zip(deltas, weights, strict=True):
        out.addcmul_(delta, row.repeat_interleave(lengths, output_size=base.numel()))
    return out


def dot_by_exit(vector: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """As ``dot_by_block``, with two kernels an exit."""
    if segments.count == 1:
        return torch.stack([torch.dot(vector, delta) for delta in deltas]).unsqueeze(1) * (weights != 0)
    lengths = segments.lengths_on(vector.device)
    sums = [torch.segment_reduce(vector * delta, "sum", lengths=lengths) for delta in deltas]
    return torch.stack(sums) * (weights != 0)


def _owners(weights: Tensor, segments: Segments) -> Iterator[tuple[int, Block, list[int]]]:
    """Every block that has one, with its number and the exits whose weight is not 0 in all of it."""
    used = F.pad((weights != 0).cumsum(dim=1), (1, 0))
    first, last = segments.edges
    table = (used[:, last] > used[:, first]).T.tolist()
    for number, (block, row) in enumerate(zip(segments.blocks, table, strict=True)):
        owners = [exit for exit, owns in enumerate(row) if owns]
        if owners:
            yield number, block, owners


def _cube(rows: Sequence[Tensor], parts: int) -> Tensor:
    """One block of several exits as (parts, exits, length): a copy that is small enough for the cache."""
    return torch.stack(list(rows)).view(len(rows), parts, -1).transpose(0, 1)


@dataclass(frozen=True)
class FusionTask:
    """What a rule fuses in one ``round`` (from 1): ``deltas``, n vectors (P,), into ``base`` W (P,).

    ``lr``: learning rate of what the rule learns. ``where``: names the pass in errors. ``fisher``: n vectors
    (P,) as in ``ExitUpdate``, for the rule that needs them.
    """

    base: Tensor
    deltas: Sequence[Tensor]
    lr: float
    where: str
    round: int = 1
    fisher: Sequence[Tensor] = ()


class Learner:
    """The weights of one pass over the training set, made anew for every pass. These stay what they are."""

    learns = False
    """Whether it takes gradients at all."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def weights(self) -> Tensor:
        """ε·α (n, S) of the next step, without a gradient."""
        return self._weights

    def update(self, gradient: Tensor) -> None:
        """Take the gradient of F with respect to the last ``weights`` (n, S)."""

    def bad_weight(self) -> str:
        """Names the first weight that is not finite; "" if all are."""
        return ""


@dataclass(frozen=True)
class Passed:
    """A pass that is over: its ``learner``, the exits' ``score``, and the network's ``buffers`` after it."""

    learner: Any
    score: ExitScore
    buffers: dict[str, Tensor]


class RunPass(Protocol):
    """Runs one shuffled, augmented pass over the training set with a learner that ``make`` makes.

    The network is in train mode, so that BatchNorm's statistics are gathered. ``base`` (P,): in place of W.

    Raises NonFiniteError: a loss or weight is not finite.
    """

    def __call__(self, make: Callable[[], Learner], base: Tensor | None = None) -> Passed: ...


@dataclass(frozen=True)
class Fused:
    """The outcome of a rule.

    ``alpha`` (n, S): the fusion weights. ``vector`` (P,): W + ε Σ_i α_i Δ_i. ``buffers``: with BatchNorm
    statistics gathered in the pass in train mode; ``score``: of the network in that pass. Where a rule adds
    another sum, α has the exits' shares in it.
    """

    alpha: Tensor
    vector: Tensor
    buffers: dict[str, Tensor]
    score: ExitScore


class FusionRule(ABC):
    """Fuses the exits' deltas once a round; may keep arrays from round to round."""

    def __init__(self, config: RunConfig, segments: Segments, owned: Tensor, device: str) -> None:
        """``owned`` (n, T): which exit depends on which tensor. ``device``: where deltas are."""
        self._config = config.fusion
        self._segments = segments
        self._owned = segments.spread(owned).to(device)  # the mask m (n, S)

    @abstractmethod
    def fuse(self, task: FusionTask, run: RunPass) -> Fused:
        """Weigh the deltas and merge them. Raises NonFiniteError: a loss or weight is not finite."""

    def arrays(self) -> Arrays:
        """What belongs to the checkpoint."""
        return {}

    def restore(self, arrays: Arrays) -> None:  # noqa: B027 - some rules keep nothing
        """Take back what ``arrays`` gave; KeyError if one is missing."""

    def merged(self, task: FusionTask, alpha: Tensor) -> Tensor:
        """``W + ε Σ_i α_i Δ_i`` (P,) for weights α (n, S)."""
        return fuse(task.base, task.deltas, self._config.epsilon * alpha, self._segments)
