"""The training methods by name."""

from __future__ import annotations

from collections.abc import Callable

from raygf.config import MethodConfig
from raygf.errors import ConfigError
from raygf.methods import (
    alignedmtl,
    cagrad,
    config_conflict_free,
    fairgrad,
    gradvac,
    imtlg,
    mgda,
    nashmtl,
    pcgrad,
    upgrad,
)
from raygf.methods.base import Setting, StepMethod
from raygf.methods.ge import GradientEquilibrium
from raygf.methods.gramian import GramianMethod
from raygf.methods.sgd import JointSGD
from raygf.methods.weighting import Weighting, usable

WEIGHTINGS: dict[str, Callable[[MethodConfig], Weighting]] = {
    "pcgrad": pcgrad.weighting,
    "cagrad": cagrad.weighting,
    "mgda": mgda.weighting,
    "upgrad": upgrad.weighting,
    "imtlg": imtlg.weighting,
    "alignedmtl": alignedmtl.weighting,
    "nashmtl": nashmtl.weighting,
    "fairgrad": fairgrad.weighting,
    "gradvac": gradvac.weighting,
    "config": config_conflict_free.weighting,
}
STEP_METHODS = ("sgd", "ge", *WEIGHTINGS)
ROUND_METHODS = ("metagf",)


def method_names() -> tuple[str, ...]:
    """All names that ``--method`` takes."""
    return (*ROUND_METHODS, *STEP_METHODS)


def check_method(name: str) -> None:
    """Raise ConfigError unless ``name`` is a training method."""
    if name not in method_names():
        raise ConfigError(f"method = {name!r}: must be one of {', '.join(method_names())}")


def make_step_method(name: str, setting: Setting) -> StepMethod:
    """The within-step method ``name``, fresh.

    Raises:
        ConfigError: it needs a package that is not installed, or another kind of network.
    """
    if name == "sgd":
        return JointSGD()
    if name == "ge":
        return GradientEquilibrium(setting.network)
    return GramianMethod(make_weighting(name, setting), setting.owned, setting.space)


def make_weighting(name: str, setting: Setting) -> Weighting:
    """The weighting ``name``, fresh.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    return usable(name, lambda: WEIGHTINGS[name](setting.config), len(setting.owned))
