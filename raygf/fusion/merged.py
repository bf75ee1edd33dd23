"""Rules without learning: deltas weighed by exits, or merged by elements (TIES, DARE, Fisher, isotropic …).

Those by elements get the tensors that several exits own. One that a single exit owns, such as its head, takes
that exit's delta as it is: nothing disagrees with it, and to trim, drop or level it would only damage it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raygf.compute import call_own, generator
from raygf.config.run import RunConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.fusion.conflict import shared_gramian, tensor_gramians
from raygf.fusion.fuse import Fused, FusionRule, FusionTask, Learner, RunPass
from raygf.methods.base import Weighting, weigh
from raygf.methods.registry import own_function
from raygf.training.network import Arrays, as_tensor, to_numpy
from raygf.training.space import Segments, Slot


class WeighedFusion(FusionRule):
    """``α_i^s = m_i^s w_i / Σ_j m_j^s w_j`` with one ``w_i`` an exit.

    ``w`` comes from a weighting of the Gramian of the deltas over the tensors that exits share. Dividing by
    the owners' sum makes the step a mean of deltas, as in Meta-GF: equal deltas give that delta, whatever
    the weighting's own scale. Where the owners' weights add up to nothing positive, it is their mean.
    """

    def __init__(
        self, config: RunConfig, segments: Segments, owned: Tensor, device: str, weighting: Weighting
    ) -> None:
        super().__init__(config, segments, owned, device)
        self._tensor_owners = owned
        self._weighting = weighting

    def fuse(self, task: FusionTask, run: RunPass) -> Fused:
        """Weigh and merge; the pass over the training set only gathers BatchNorm statistics."""
        grams = tensor_gramians(task.deltas, self._segments.space)
        try:
            weights = weigh(self._weighting, shared_gramian(grams, self._tensor_owners).float())
        except NonFiniteError as error:
            raise NonFiniteError(f"{task.where}: {error}; lower optim.lr") from None
        alpha = owner_shares(weights, self._owned.cpu())
        on_device = alpha.to(task.base.device)
        passed = run(lambda: Learner(self._config.epsilon * on_device))
        return Fused(alpha, self.merged(task, on_device), passed.buffers, passed.score)

    def arrays(self) -> Arrays:
        """What a weighting remembers of earlier rounds, as GradVac does."""
        return {f"weighting_{name}": to_numpy(buffer) for name, buffer in self._memory()}

    def restore(self, arrays: Arrays) -> None:
        if any(name.startswith("weighting_") for name in arrays):
            self._weighting(torch.eye(len(self._owned)))  # from here on it has buffers
            for name, buffer in self._memory():
                buffer.copy_(as_tensor(arrays[f"weighting_{name}"]))

    def _memory(self) -> list[tuple[str, Tensor]]:
        weighting = self._weighting
        return list(weighting.named_buffers()) if isinstance(weighting, nn.Module) else []


def owner_shares(weights: Tensor, owned: Tensor) -> Tensor:
    """One weight an exit (n,) → fusion weights (n, S) that sum to 1 over the owners of every segment.

    Args:
        weights: w (n,), of any sign.
        owned: mask (n, S), bool; a segment without an owner gets weight 0 from all.
    """
    raw = weights[:, None] * owned
    total = raw.sum(dim=0)
    alone = owned.sum(dim=0) == 1
    usable = (total > 1e-3 * weights.abs().max()) & ~alone
    mean = owned / owned.sum(dim=0).clamp_min(1)
    return torch.where(usable, raw / torch.where(usable, total, 1.0), mean.to(weights))


@dataclass(frozen=True)
class Shared:
    """The tensor ``slot``, and the ``exits`` (from 0) that own it, k of them."""

    slot: Slot
    exits: list[int]

    def rows(self, vectors: Sequence[Tensor]) -> Tensor:
        """What the owners' vectors, of one (P,) an exit, have of it (k, *shape)."""
        rows = [vectors[exit][self.slot.start : self.slot.stop] for exit in self.exits]
        return torch.stack(rows).view(-1, *self.slot.shape)


Merge = Callable[[Shared, Tensor], tuple[Tensor, Tensor]]
"""From a tensor and its owners' deltas (k, *shape) to the merged one (shape), and their elements' factors."""


def weighed(rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum of ``rows`` times ``weights`` (both (k, *shape), by default 1/k), and the weights."""
    weights = torch.full_like(rows, 1 / len(rows)) if weights is None else weights
    return (weights * rows).sum(dim=0), weights


def ties(config: RunConfig, task: FusionTask, shared: Sequence[Shared]) -> Merge:
    """TIES-Merging: Yadav, Tam, Choshen, Raffel, Bansal, NeurIPS 2023 (Algorithm 1).

    Trim: of every exit's delta, over all tensors that it shares, the ``ties_keep`` largest by magnitude stay,
    the others become 0. Elect: ``γ = sgn(Σ_i Δ̂_i)`` for every element. Merge: the mean of those ``Δ̂_i`` whose
    sign is γ; 0 where all were trimmed, or both signs weigh the same.
    """
    limits = {}
    for exit in {exit for tensor in shared for exit in tensor.exits}:
        slots = [tensor.slot for tensor in shared if exit in tensor.exits]
        sizes = torch.cat([task.deltas[exit][slot.start : slot.stop].abs() for slot in slots])
        kept = max(1, round(config.methods.ties_keep * len(sizes)))
        limits[exit] = float(sizes.kthvalue(len(sizes) - kept + 1).values)

    def merge(tensor: Shared, rows: Tensor) -> tuple[Tensor, Tensor]:
        limit = rows.new_tensor([limits[exit] for exit in tensor.exits])
        kept = rows * (rows.abs() >= limit.view(-1, *[1] * (rows.dim() - 1)))
        agree = (kept.sign() == kept.sum(dim=0).sign()) & (kept != 0)
        return weighed(rows, agree / agree.sum(dim=0).clamp_min(1))

    return merge


def dare(config: RunConfig, task: FusionTask, shared: Sequence[Shared]) -> Merge:
    """DARE: Yu, Yu, Yu, Huang, Li, "Language Models are Super Mario", ICML 2024.

    Every element of every delta is kept with the probability 1 − p = ``dare_keep``, and divided by it, or
    dropped; then the mean. Drawn by (seed, round, exit).
    """
    keep = config.methods.dare_keep
    streams = [generator(config.seed, "dare", task.round, exit) for exit in range(len(task.deltas))]

    def merge(tensor: Shared, rows: Tensor) -> tuple[Tensor, Tensor]:
        drawn = [torch.rand(tensor.slot.shape, generator=streams[exit]) for exit in tensor.exits]
        return weighed(rows, (torch.stack(drawn) < keep).to(rows) / (keep * len(rows)))

    return merge


def fisher(config: RunConfig, task: FusionTask, shared: Sequence[Shared]) -> Merge:
    """Fisher merging: Matena, Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022 (Eq. 4).

    ``Σ_i F_i Δ_i / Σ_i F_i`` for every element; the mean where no exit had a gradient. F_i, the diagonal of
    the Fisher information, is here the mean square of the batches' gradients in the exit's training. (Their
    sum, in fact: all exits take as many steps.)
    """

    def merge(tensor: Shared, rows: Tensor) -> tuple[Tensor, Tensor]:
        squares = tensor.rows(task.fisher)
        total = squares.sum(dim=0)
        return weighed(rows, torch.where(total > 0, squares / total, 1 / len(rows)))

    return merge


def iso(config: RunConfig, task: FusionTask, shared: Sequence[Shared]) -> Merge:
    """Iso-C: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
    Subspaces", ICML 2025.

    The mean of the deltas; in a matrix ``U Σ Vᵀ`` all singular values become their mean: ``σ̄ U Vᵀ``. Those
    that are 0 but for rounding stay so and don't count: their directions are chance. A convolution's kernel
    is a matrix (out, in · k · k); vectors are left alone. (The paper takes the sum, and scales it.)
    """

    def merge(tensor: Shared, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, weights = weighed(rows)
        if mean.dim() < 2:
            return mean, weights
        left, values, right = torch.linalg.svd(mean.flatten(1), full_matrices=False)
        least = values[0] * max(left.shape[0], right.shape[1]) * torch.finfo(values.dtype).eps
        rank = int((values > least).sum())
        level = values[:rank].sum() / max(1, rank)
        return (left[:, :rank] @ right[:rank] * level).view_as(mean), weights

    return merge


def own(config: RunConfig, task: FusionTask, shared: Sequence[Shared]) -> Merge:
    """The user's function, from a dict of the owners' deltas (k, *shape) to one of merged deltas (shape).

    The exits' weights in these are not known: 1/k. Raises ConfigError: it fails, or returns something else.
    """
    given = {tensor.slot.name: tensor.rows(task.deltas) for tensor in shared}
    made: Any = call_own("method", config.method, given, function=own_function(config.method))

    def merge(tensor: Shared, rows: Tensor) -> tuple[Tensor, Tensor]:
        found: Any = made.get(tensor.slot.name) if isinstance(made, dict) else made
        got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.40}"
        wanted = f"a tensor {tensor.slot.shape}"
        if got != wanted or not torch.isfinite(found).all():
            raise ConfigError(
                f"method = {str(config.method)!r}: the function must return a dict with {wanted} of finite "
                f"numbers for {tensor.slot.name}, not {got}{' with others' if got == wanted else ''}"
            )
        return found.to(rows), weighed(rows)[1]

    return merge


RULES = {"delta-ties": ties, "delta-dare": dare, "delta-fisher": fisher, "delta-iso": iso}


class MergedFusion(FusionRule):
    """``W + ε Δ``, Δ merged by elements; α is each exit's share in the factors of a segment's elements."""

    def __init__(self, config: RunConfig, segments: Segments, owned: Tensor, device: str) -> None:
        """Raises ConfigError: the user's function fails when it is tried on random numbers."""
        super().__init__(config, segments, owned, device)
        self._run, self._make = config, RULES.get(config.method, own)
        exits = [column.nonzero().flatten().tolist() for column in owned.T]
        self._tensors = list(map(Shared, segments.space.slots, exits))
        if self._make is own:
            random = torch.randn(len(owned), segments.space.size, generator=generator(config.seed, "trial"))
            self.merge(FusionTask(random[0].to(device), [*random.to(device)], 0.0, "trial"))

    def fuse(self, task: FusionTask, run: RunPass) -> Fused:
        """Merge; the pass over the training set only gathers BatchNorm statistics."""
        update, alpha = self.merge(task)
        vector = task.base + self._config.epsilon * update
        passed = run(lambda: Learner(torch.zeros_like(alpha).to(vector.device)), vector)
        return Fused(alpha, vector, passed.buffers, passed.score)

    def merge(self, task: FusionTask) -> tuple[Tensor, Tensor]:
        """Δ (P,), and α (n, S), which sums to 1 over the owners of every segment."""
        merge = self._make(self._run, task, [tensor for tensor in self._tensors if len(tensor.exits) > 1])
        update, sums = torch.zeros_like(task.base), torch.zeros(self._owned.shape)
        for tensor, part in zip(self._tensors, self._segments.of_slots, strict=True):
            if count := len(tensor.exits):
                rows = tensor.rows(task.deltas)
                merged, weights = merge(tensor, rows) if count > 1 else weighed(rows)
                update[tensor.slot.start : tensor.slot.stop] = merged.flatten()
                sums[tensor.exits, part] += weights.view(count, part.stop - part.start, -1).sum(dim=2).cpu()
        total, equal = sums.sum(dim=0), owner_shares(torch.ones(len(sums)), self._owned.cpu())
        return update, torch.where(total > 0, sums / total, equal)
