"""GradVac: Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine", ICLR 2021.

Like PCGrad, but every pair is brought to a cosine that is a moving average of what has been seen (β =
0.5), not just to zero. Equal gradients: the weights sum to n.
"""

from __future__ import annotations

from raygf.config import MethodConfig
from raygf.methods.weighting import Weighting, scale_free


def weighting(config: MethodConfig) -> Weighting:
    """The weighting; it remembers cosines from step to step within a round."""
    from torchjd.aggregation import GradVacWeighting

    return scale_free(GradVacWeighting())
