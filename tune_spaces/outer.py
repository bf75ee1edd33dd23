"""Meta-GF's outer step, the steps of a round, what fusion weights are fitted on."""

from ray import tune

from raygf.config.run import RunConfig
from raygf.sweeps import Space, require_learned_fusion

MOMENTUM = {"fusion.outer_momentum": tune.uniform(0.5, 0.95)}
STEPS = (
    {"fusion.outer": "none"},
    {"fusion.outer": "momentum", "fusion.outer_lr": tune.loguniform(0.1, 1.0), **MOMENTUM},
    {"fusion.outer": "nesterov", "fusion.outer_lr": tune.loguniform(0.1, 1.0), **MOMENTUM},
    {"fusion.outer": "adam", "fusion.outer_lr": tune.loguniform(1e-3, 0.1), **MOMENTUM},
)
WEIGHTS = (
    {"fusion.normalise": "softmax"},
    {"fusion.normalise": "free", "fusion.lr": tune.loguniform(1e-3, 0.1)},
)


def outer(run: RunConfig) -> Space:
    """Every outer step with both kinds of weights, by the average validation accuracy of the exits.

    Weights that are fitted on validation images can't be compared by them, so that objective is left out.
    """
    require_learned_fusion(run)
    return Space(
        {
            "round_steps": tune.choice([None, 16, 64]),
            "fusion.objective": tune.choice(["train", "entropy"]),
            "fusion.batchnorm": "recalibrated",
        },
        variants=[{**step, **weights} for step in STEPS for weights in WEIGHTS],
        metric="val_accuracy/average",
        mode="max",
    )
