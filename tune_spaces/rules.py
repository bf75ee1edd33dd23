"""Rules that merge without learning, each with its main setting, beside the plain mean (13 trials)."""

from ray import tune

from raygf.config.run import RunConfig
from raygf.sweeps import Space


def rules(run: RunConfig) -> Space:
    """Every rule at every value, by the average validation accuracy of the exits."""
    return Space(
        variants=[
            {"method": "delta-mean"},
            {"method": "delta-ties", "methods.ties_keep": tune.choice([0.1, 0.2, 0.5, 1.0])},
            {"method": "delta-dare", "methods.dare_keep": tune.choice([0.1, 0.2, 0.5, 0.8])},
            {"method": "delta-fisher"},
            {"method": "delta-iso", "fusion.epsilon": tune.choice([0.5, 1.0, 1.5])},
        ],
        metric="val_accuracy/average",
        mode="max",
        search="grid",
    )
