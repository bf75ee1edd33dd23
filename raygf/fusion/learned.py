"""Meta-GF's rule: fusion weights that are learned in every round (paper, Algorithm 1, lines 9-11)."""

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

from raygf.config.run import RunConfig
from raygf.errors import CheckpointError
from raygf.fusion.fuse import Fused, FusionRule, FusionTask, Learner, Passed, RunPass, fusion_weights
from raygf.training.network import Arrays, as_tensor
from raygf.training.space import Segments


class LearnedFusion(FusionRule):
    """Holds the logits η (n, S) of the fusion weights, and Adam's moments of them.

    A merge uses the fitted η, the next round starts from its moving average; the moments are carried.
    """

    def __init__(self, config: RunConfig, segments: Segments, owned: Tensor, device: str) -> None:
        super().__init__(config, segments, owned, device)
        self.eta = torch.ones(self._owned.shape)  # 1 everywhere, as in the paper
        if self._config.normalise == "free":
            self.eta = fusion_weights(self.eta, self._owned.cpu())  # the plain mean
        self.fitted = self.eta
        self.first, self.second = torch.zeros_like(self.eta), torch.zeros_like(self.eta)
        self.steps = 0

    def fuse(self, task: FusionTask, run: RunPass) -> Fused:
        """Fit η, merge with the fitted η (Algorithm 1, lines 10-11), carry its average to the next round."""
        before = self.eta
        passed = self.fit(task, run)
        alpha = self.weights(self.eta.to(task.base.device))
        fused = Fused(alpha.cpu(), self.merged(task, alpha), passed.buffers, passed.score)
        self.fitted, self.eta = self.eta, carry(before, self.eta, self._config.ema)
        return fused

    def fit(self, task: FusionTask, run: RunPass) -> Passed:
        """Minimise ``F(W + ε Σ_i α_i Δ_i)`` over η (paper, Eq. 11; Algorithm 1, line 9): one pass of Adam.

        ``F = Σ_i c_i CE_i``, what joint SGD minimises, in train mode. Only η has a gradient.
        """
        passed = run(lambda: self.fit_of(task.lr, task.base.device))
        fit = passed.learner
        self.eta, self.first, self.second = (t.detach().cpu() for t in (fit.eta, fit.first, fit.second))
        self.steps = int(fit.steps)
        return passed

    def fit_of(self, lr: float, device: torch.device) -> Learner:
        """What is learned in one pass, from η and moments as they are now."""
        return _Fit(self, lr, device)

    def weights(self, eta: Tensor) -> Tensor:
        """α (n, S) of ``eta`` (n, S): paper, Eq. 10."""
        return fusion_weights(eta, self._owned, self._config.normalise)

    def arrays(self) -> Arrays:
        """η, Adam's moments and step count.

        ``eta`` is what the next round starts from, ``eta_fitted`` what the last merge used.
        """
        return {
            "eta": self.eta.numpy(),
            "adam_first": self.first.numpy(),
            "adam_second": self.second.numpy(),
            "adam_steps": np.array(self.steps),
            "eta_fitted": self.fitted.numpy(),
        }

    def restore(self, arrays: Arrays) -> None:
        names = ("eta", "adam_first", "adam_second", "eta_fitted")
        if odd := [name for name in names if arrays[name].shape != tuple(self.eta.shape)]:
            raise CheckpointError(f"the checkpoint's array {odd[0]} is of another network, by its shape")
        self.eta, self.first, self.second, self.fitted = (as_tensor(arrays[name]).clone() for name in names)
        self.steps = int(arrays["adam_steps"])


class _Fit(Learner):
    """One pass of Adam on a copy of the rule's η and moments."""

    learns = True

    def __init__(self, rule: LearnedFusion, lr: float, device: torch.device) -> None:
        self._rule, self._lr = rule, lr
        state = (rule.eta, rule.first, rule.second)
        self.eta, self.first, self.second = (tensor.to(device, copy=True) for tensor in state)
        self.eta.requires_grad_()
        self.steps = torch.tensor(float(rule.steps))

    def weights(self) -> Tensor:
        self._weights = self._rule._config.epsilon * self._rule.weights(self.eta)
        return self._weights.detach()

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """One step of the function behind ``torch.optim.Adam``, as in ``FlatOptimizer``."""
        adam(
            [self.eta],
            [*torch.autograd.grad(self._weights, self.eta, gradient)],
            [self.first],
            [self.second],
            [],
            [self.steps],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def bad_weight(self) -> str:
        bad = (~torch.isfinite(self.eta.detach().cpu())).nonzero()
        if not len(bad):
            return ""
        exit, segment = bad[0].tolist()
        return f"the fusion weight of exit {exit + 1} in {self._rule._segments.name(segment)}"


def carry(old: Tensor, fitted: Tensor, ema: float) -> Tensor:
    """The η that the next round starts from: ``ema·η_old + (1 − ema)·η_fitted``."""
    return (ema * old + (1 - ema) * fitted).detach()
