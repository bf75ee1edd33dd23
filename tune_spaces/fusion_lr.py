"""Meta-GF's fusion: learning rate around the paper's 0.1, moving average, weight of the other exits."""

from ray import tune

from raygf.config.run import RunConfig
from raygf.sweeps import Space, require_learned_fusion


def fusion_lr(run: RunConfig) -> Space:
    """By the average validation accuracy of the exits."""
    require_learned_fusion(run)
    return Space(
        {
            "fusion.lr": tune.loguniform(0.01, 1.0),
            "fusion.ema": tune.uniform(0.5, 0.99),
            "loss.aux": tune.loguniform(0.01, 1.0),
        },
        metric="val_accuracy/average",
        mode="max",
    )
