"""The training methods by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raygf.config.run import MethodConfig
from raygf.errors import ConfigError, RaygfError, import_function, user_error
from raygf.methods import torchjd
from raygf.methods.base import GramianMethod, JointSGD, Setting, StepMethod, Weighting, usable
from raygf.methods.dfs import DeepFeatureSurgery
from raygf.methods.ge import BoostNetRescaling, GradientEquilibrium


def make_own(name: str, setting: Setting) -> Weighting | StepMethod:
    """What the function ``name`` ("package.module:function") returns, fresh; a weighting is tried once.

    Raises:
        ConfigError: the function can't be imported or fails, or returns something else.
    """
    made = _call(name, setting)
    if isinstance(made, StepMethod):
        return made
    _checked(name, made)(torch.eye(max(2, len(setting.owned))) + 0.5)
    return _checked(name, _call(name, setting))  # a weighting may remember what it has seen


def _call(name: str, setting: Setting) -> object:
    function = import_function("method", name)
    try:
        return function(setting)
    except RaygfError:
        raise
    except (Exception, SystemExit) as error:
        raise user_error("method", name, "the function failed", error) from error


def _checked(name: str, weighting: object) -> Weighting:
    if not callable(weighting):
        kind = type(weighting).__name__
        raise ConfigError(
            f"method = {name!r}: the function must return a weighting, itself a function, or a StepMethod, "
            f"not {kind}"
        )

    def weigh(gramian: Tensor) -> Tensor:
        try:
            weights: object = weighting(gramian)
        except RaygfError:
            raise
        except Exception as error:
            raise user_error("method", name, "the weighting failed", error) from error
        if not isinstance(weights, Tensor) or weights.shape != gramian.shape[:1]:
            given = f"a tensor {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"{weights!r:.40}"
            raise ConfigError(
                f"method = {name!r}: the weighting must return one weight per exit, a tensor "
                f"({len(gramian)},), not {given}"
            )
        return weights

    return weigh


WEIGHTINGS: dict[str, Callable[[MethodConfig], Weighting]] = {
    "pcgrad": torchjd.pcgrad,
    "cagrad": torchjd.cagrad,
    "mgda": torchjd.mgda,
    "upgrad": torchjd.upgrad,
    "imtlg": torchjd.imtlg,
    "alignedmtl": torchjd.alignedmtl,
    "nashmtl": torchjd.nashmtl,
    "fairgrad": torchjd.fairgrad,
    "gradvac": torchjd.gradvac,
    "config": torchjd.conflict_free,
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
