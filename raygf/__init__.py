"""raygf: train multi-exit networks in parallel on Ray and merge their exits' gradients (Meta-GF).

>>> import raygf
>>> run = raygf.train("digits", rounds=2)
>>> fast = raygf.AdaptiveClassifier.from_run(run)

What is named in ``__all__`` is the public interface; each has an example in its docstring. Nothing is loaded
before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygf.api import Run, evaluate, export, load, recipes, sweep, train
    from raygf.config.run import RunConfig
    from raygf.models.attach import attach_exits
    from raygf.serving.adaptive import AdaptiveClassifier

__version__ = "0.1.0"
__all__ = [
    "AdaptiveClassifier",
    "Run",
    "RunConfig",
    "attach_exits",
    "evaluate",
    "export",
    "load",
    "recipes",
    "sweep",
    "train",
]
_ELSEWHERE = {
    "RunConfig": "raygf.config.run",
    "attach_exits": "raygf.models.attach",
    "AdaptiveClassifier": "raygf.serving.adaptive",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'raygf' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "raygf.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
