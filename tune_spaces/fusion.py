"""Meta-GF's fusion: what gets a weight, how weights are normalised, BatchNorm's statistics."""

from ray import tune

from raygf.config.run import BATCHNORM, SEGMENTS, RunConfig
from raygf.sweeps import Space, require_learned_fusion


def fusion(run: RunConfig) -> Space:
    """Every combination, by the average validation accuracy of the exits."""
    require_learned_fusion(run)
    return Space(
        {
            "fusion.segments": tune.choice(SEGMENTS),
            "fusion.normalise": tune.choice(["softmax", "sigmoid"]),
            "fusion.batchnorm": tune.choice(BATCHNORM),
        },
        metric="val_accuracy/average",
        mode="max",
        search="grid",
    )
