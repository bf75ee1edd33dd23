"""Rules without learning: the exits' deltas averaged with equal weights, or weighed by their Gramian."""

import torch
from torch import Tensor, nn

from raygf.config.run import RunConfig
from raygf.errors import NonFiniteError
from raygf.fusion.conflict import shared_gramian, tensor_gramians
from raygf.fusion.fuse import Fused, FusionRule, FusionTask, Learner, RunPass
from raygf.methods.base import Weighting, weigh
from raygf.training.network import Arrays, as_tensor, to_numpy
from raygf.training.space import Segments


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
