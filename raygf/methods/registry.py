"""The training methods by name, those of the user's own included."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raygf.compute import call_own
from raygf.config.fields import refuse
from raygf.config.recipes import METHODS as PAPERS
from raygf.config.run import RunConfig
from raygf.data.base import images_of_rounds
from raygf.errors import ConfigError, import_function
from raygf.methods import torchjd
from raygf.methods.base import GramianMethod, JointSGD, Setting, StepMethod, Weighting
from raygf.methods.branches import BoostNetRescaling, DeepFeatureSurgery, GradientEquilibrium

Make = Callable[[Setting], StepMethod | Weighting]
"""Makes a method anew; a function of the user's own ("package.module:function") is one of these, too."""

WEIGHTINGS: dict[str, Make] = {
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
METHODS: dict[str, Make] = {
    "sgd": JointSGD,
    "ge": GradientEquilibrium,
    "boostnet": BoostNetRescaling,
    "dfs": DeepFeatureSurgery,
    **WEIGHTINGS,
}
DELTA = "delta-"
"""Before the name of a weighting: it weighs the deltas of a round, not the gradients of a step."""
OWN = "fusion:"
"""Before the name of a function of the user's own: it merges the deltas of a round."""
STEP_METHODS = tuple(METHODS)
MERGED = tuple(DELTA + name for name in ("ties", "dare", "fisher", "iso"))  # in raygf.fusion.merged
ROUND_METHODS = ("metagf", f"{DELTA}mean", *MERGED, *(DELTA + name for name in WEIGHTINGS))
_TITLES = {
    **PAPERS,
    f"{DELTA}mean": "mean of the deltas",
    f"{DELTA}ties": "TIES-Merging",
    f"{DELTA}dare": "DARE",
    f"{DELTA}fisher": "Fisher merging",
    f"{DELTA}iso": "isotropic merging",
    "boostnet": "BoostNet",
    "dfs": "Deep Feature Surgery",
    "mgda": "MGDA",
    "upgrad": "UPGrad",
    "imtlg": "IMTL-G",
    "alignedmtl": "Aligned-MTL",
    "nashmtl": "Nash-MTL",
    "fairgrad": "FairGrad",
    "gradvac": "GradVac",
    "config": "ConFIG",
}


def method_title(name: str) -> str:
    """What figures and tables call the method ``name``: "Meta-GF", "joint SGD", "PCGrad on deltas"."""
    if name.startswith(DELTA) and name not in _TITLES:
        return f"{method_title(name.removeprefix(DELTA))} on deltas"
    return _TITLES.get(name, name)


def method_names() -> tuple[str, ...]:
    """All names that ``--method`` takes."""
    return (*ROUND_METHODS, *STEP_METHODS)


def check_method(name: str) -> None:
    """Raise ConfigError unless ``name`` is a training method, or a function of the user's own."""
    if name not in method_names() and ":" not in name:
        allowed = f'one of {", ".join(method_names())}, or "package.module:function" of your own'
        raise refuse("method", name, allowed, method_names())
    if ":" in name:
        own_function(name)


def own_function(name: str) -> Callable[..., Any]:
    """The user's function that the method ``name`` stands for; ConfigError if it can't be imported."""
    prefix = next((prefix for prefix in (DELTA, OWN) if name.startswith(prefix)), "")
    return import_function("method", name.removeprefix(prefix) if prefix else name)


def is_step_method(name: str) -> bool:
    """Whether ``name`` works within a step, and not on the deltas of a round."""
    return name not in ROUND_METHODS and not name.startswith((DELTA, OWN))


def training_operations(
    config: RunConfig, costs: Sequence[int], images: Mapping[str, int], rounds: int = 1
) -> int:
    """What the first ``rounds`` of ``config`` take, forward and backward.

    ``costs``: F (n,), of the forward pass up to each exit. ``images``: of every split. A step of the user's
    own counts as joint SGD's; ``RoundMethod.operations`` knows better.
    """
    trained = images_of_rounds(config, rounds, images["train"])
    if is_step_method(config.method):
        return trained * (GramianMethod if config.method in WEIGHTINGS else JointSGD).operations(costs)
    fusion, there = config.fusion, images[config.fusion.split]
    passed = images_of_rounds(config, rounds, there, fusion.split)
    if fusion.images:
        passed = rounds * min(fusion.images, there)
    # Without learning the pass only goes forward; so does that after an outer step.
    fit = JointSGD.operations(costs) if config.method == "metagf" else costs[-1]
    again = costs[-1] if fusion.outer != "none" else 0
    run = costs if config.loss.aux_exits != "all" else [costs[-1]] * len(costs)
    return trained * sum(JointSGD.operations([cost]) for cost in run) + passed * (fit + again)


def make_step_method(name: str, setting: Setting) -> StepMethod:
    """The within-step method ``name``, fresh.

    Raises ConfigError: it needs a package that is not installed, or another kind of network; or it is a
    function that can't be imported, fails, or returns something else.
    """
    made = _make(name, setting)
    return made if isinstance(made, StepMethod) else GramianMethod(made, setting)


def make_weighting(name: str, setting: Setting) -> Weighting:
    """The weighting ``name``, fresh; "mean" weighs all alike, a name with a colon is the user's function.

    Raises ConfigError: see ``make_step_method``; or it is a step method.
    """
    if name == "mean":
        return lambda gramian: torch.ones(len(gramian)) / len(gramian)
    made = _make(name, setting)
    if isinstance(made, StepMethod):
        raise ConfigError(f"method = {name!r}: a step method can't weigh deltas; leave out {DELTA!r}")
    return made


_SOLVERS = "pip install 'torchjd[cagrad,fairgrad,quadprog-projector]'"


def _make(name: str, setting: Setting) -> StepMethod | Weighting:
    """The method ``name``, fresh; a weighting is tried once on a harmless Gramian."""
    make = partial(_own, name) if ":" in name else METHODS[name]
    try:
        made = make(setting)
        if isinstance(made, StepMethod):
            return made
        made(torch.eye(max(2, len(setting.owned))) + 0.5)
        return make(setting)  # a weighting may remember what it has seen
    except ImportError:
        raise ConfigError(f"method = {name!r} needs solvers that are not installed: {_SOLVERS}") from None


def _own(name: str, setting: Setting) -> StepMethod | Weighting:
    """What the user's function ``name`` makes; errors of it, and of a weighting that it returns, name it."""
    made = call_own("method", name, setting)
    if isinstance(made, StepMethod):
        return made
    if not callable(made):
        kinds = "a weighting, itself a function, or a StepMethod"
        raise ConfigError(f"method = {name!r}: the function must return {kinds}, not {type(made).__name__}")

    def weigh(gramian: Tensor) -> Tensor:
        weights = call_own("method", name, gramian, function=made, failed="the weighting failed")
        if not isinstance(weights, Tensor) or weights.shape != gramian.shape[:1]:
            given = f"a tensor {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"{weights!r:.40}"
            raise ConfigError(
                f"method = {name!r}: the weighting must return one weight per exit, a tensor "
                f"({len(gramian)},), not {given}"
            )
        return weights

    return weigh
