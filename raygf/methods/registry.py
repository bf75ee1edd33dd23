"""The training methods by name."""

from __future__ import annotations

from collections.abc import Callable

from raygf.errors import ConfigError
from raygf.methods.base import StepMethod
from raygf.methods.sgd import JointSGD

STEP_METHODS: dict[str, Callable[[], StepMethod]] = {"sgd": JointSGD}
ROUND_METHODS = ("metagf",)


def method_names() -> tuple[str, ...]:
    """All names that ``--method`` takes."""
    return (*ROUND_METHODS, *STEP_METHODS)


def check_method(name: str) -> None:
    """Raise ConfigError unless ``name`` is a training method."""
    if name not in method_names():
        raise ConfigError(f"method = {name!r}: must be one of {', '.join(method_names())}")
