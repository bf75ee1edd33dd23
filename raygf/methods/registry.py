"""The training methods by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from raygf.config import MethodConfig, RunConfig
from raygf.errors import ConfigError
from raygf.fusion.fit import FusionFitter
from raygf.fusion.learned import LearnedFusion
from raygf.fusion.rules import FusionRule
from raygf.fusion.segments import Segments
from raygf.fusion.weighed import WeighedFusion
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
from raygf.methods.boostnet import BoostNetRescaling
from raygf.methods.dfs import DeepFeatureSurgery
from raygf.methods.ge import GradientEquilibrium
from raygf.methods.gramian import GramianMethod
from raygf.methods.own import make_own
from raygf.methods.sgd import JointSGD
from raygf.methods.weighting import Weighting, usable
from raygf.training.bound import BoundNetwork
from raygf.training.losses import make_losses

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
BRANCH_METHODS: dict[str, Callable[[Setting], StepMethod]] = {
    "ge": lambda setting: GradientEquilibrium(setting.network),
    "boostnet": lambda setting: BoostNetRescaling(setting.network),
    "dfs": lambda setting: DeepFeatureSurgery(setting.network, setting.config.dfs_beta),
}
STEP_METHODS = ("sgd", *BRANCH_METHODS, *WEIGHTINGS)
DELTA = "delta-"
ROUND_METHODS = ("metagf", f"{DELTA}mean", *(DELTA + name for name in WEIGHTINGS))


def method_names() -> tuple[str, ...]:
    """All names that ``--method`` takes."""
    return (*ROUND_METHODS, *STEP_METHODS)


def check_method(name: str) -> None:
    """Raise ConfigError unless ``name`` is a training method, or a function of the user's own."""
    if name not in method_names() and ":" not in name:
        allowed = f'{", ".join(method_names())}, or "package.module:function" of your own'
        raise ConfigError(f"method = {name!r}: must be one of {allowed}")


def is_step_method(name: str) -> bool:
    """Whether ``name`` works within a step, and not on the deltas of a round."""
    return name not in ROUND_METHODS and not name.startswith(DELTA)


def make_step_method(name: str, setting: Setting) -> StepMethod:
    """The within-step method ``name``, fresh.

    Raises:
        ConfigError: it needs a package that is not installed, or another kind of network.
    """
    if name == "sgd":
        return JointSGD()
    if name in BRANCH_METHODS:
        return BRANCH_METHODS[name](setting)
    made = make_own(name, setting) if ":" in name else make_weighting(name, setting)
    if isinstance(made, StepMethod):  # a function of the user's own may return either
        return made
    return GramianMethod(made, setting.owned, setting.space)


def make_rule(config: RunConfig, setting: Setting, bound: BoundNetwork, segments: Segments) -> FusionRule:
    """The rule that ``config.method`` fuses deltas by.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    losses_of, exits = make_losses(config.loss), len(setting.owned)
    if config.method == "metagf":
        mask = segments.spread(setting.owned)
        fitter = FusionFitter(bound, segments, mask, config.fusion, losses_of)
        return LearnedFusion(fitter, exits, segments.count, config.fusion.ema)
    weighting = make_weighting(config.method.removeprefix(DELTA), setting)
    return WeighedFusion(weighting, bound, segments, setting.owned, config.fusion.epsilon, losses_of)


def make_weighting(name: str, setting: Setting) -> Weighting:
    """The weighting ``name``, fresh; "mean" weighs all alike, a name with a colon is the user's function.

    Raises:
        ConfigError: it needs a package that is not installed, can't be imported, or is no weighting.
    """
    if ":" in name:
        made = make_own(name, setting)
        if isinstance(made, StepMethod):
            raise ConfigError(f"method = {name!r}: a step method can't weigh deltas; leave out {DELTA!r}")
        return made
    if name == "mean":
        return lambda gramian: torch.ones(len(gramian)) / len(gramian)
    return usable(name, lambda: WEIGHTINGS[name](setting.config), len(setting.owned))
