"""Methods of the user's own: a function's weighting or step method, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from raygf.errors import ConfigError, RaygfError
from raygf.methods.base import Setting, StepMethod
from raygf.methods.weighting import Weighting
from raygf.user_code import import_function, user_error


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
