"""Meta-GF's rule: fusion weights that are learned in every round (paper, Algorithm 1, lines 9-10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from raygf.data.base import Batch
from raygf.errors import CheckpointError
from raygf.fusion.fit import FusionFitter, FusionState
from raygf.fusion.rules import Fused
from raygf.fusion.weights import carry
from raygf.training.bound import as_tensor
from raygf.training.state import Arrays


class LearnedFusion:
    """Holds η and Adam's moments; a merge uses the fitted η, the next round starts from its average."""

    def __init__(self, fitter: FusionFitter, exits: int, segments: int, ema: float) -> None:
        self._fitter = fitter
        self._ema = ema
        self._state = FusionState.initial(exits, segments)
        self._fitted: Tensor | None = None

    def fuse(
        self,
        base: Tensor,
        deltas: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batches: Iterable[Batch],
        lr: float,
        where: str,
    ) -> Fused:
        """See ``FusionRule.fuse``; ``lr`` is Adam's."""
        fit = self._fitter.fit(self._state, base, deltas, buffers, batches, lr, where)
        eta = fit.state.eta.to(base.device)
        fused = Fused(
            self._fitter.weights(eta).cpu(), self._fitter.merge(base, deltas, eta), fit.buffers, fit.score
        )
        carried = carry(self._state.eta, fit.state.eta, self._ema)
        self._state = FusionState(carried, fit.state.first, fit.state.second, fit.state.steps)
        self._fitted = fit.state.eta
        return fused

    def arrays(self) -> Arrays:
        """η, Adam's moments and step count.

        ``eta`` is what the next round starts from, ``eta_fitted`` what the last merge used.
        """
        state = self._state
        arrays: Arrays = {
            "eta": state.eta.numpy(),
            "adam_first": state.first.numpy(),
            "adam_second": state.second.numpy(),
            "adam_steps": np.array(state.steps),
        }
        return arrays if self._fitted is None else {**arrays, "eta_fitted": self._fitted.numpy()}

    def restore(self, arrays: Arrays) -> None:
        """See ``FusionRule.restore``."""
        shape = tuple(self._state.eta.shape)
        for name in ("eta", "adam_first", "adam_second", "eta_fitted"):
            known = arrays.get(name)
            if known is not None and (known.shape != shape or known.dtype != np.float32):
                raise CheckpointError(
                    f"the checkpoint's array {name} is {known.dtype} {known.shape}, not float32 {shape}: it "
                    "belongs to another network"
                )
        self._state = FusionState(
            as_tensor(arrays["eta"]).clone(),
            as_tensor(arrays["adam_first"]).clone(),
            as_tensor(arrays["adam_second"]).clone(),
            int(arrays["adam_steps"]),
        )
        self._fitted = as_tensor(arrays["eta_fitted"]).clone() if "eta_fitted" in arrays else None
