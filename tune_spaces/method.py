"""Every training method of raygf, each at settings of its own, with equal compute."""

from raygf.config.run import RunConfig
from raygf.sweeps import Space, settings_of_methods


def method(run: RunConfig) -> Space:
    """By the average validation accuracy of the exits."""
    return Space(
        variants=settings_of_methods(run),
        metric="val_accuracy/average",
        mode="max",
        search="grid",
    )
