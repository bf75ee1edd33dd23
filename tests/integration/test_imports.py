"""The method runs without Ray and MLflow: only the edges of the package load them."""

from __future__ import annotations

import json
import subprocess
import sys

MAY_LOAD = ("raygf.on_ray", "raygf.tracking", "raygf.serving.mlflow_model", "raygf.sweep")
MUST_BE_FOUND = {
    *("raygf.rounds.driver", "raygf.launch", "raygf.cli", "raygf.config.recipes", "raygf.storage.checkpoint"),
    *(
        "raygf.training.exit_trainer",
        "raygf.training.exit_trainer",
        "raygf.models.msdnet",
        "raygf.fusion.learned",
    ),
    *(
        "raygf.methods.registry",
        "raygf.evaluation.outputs",
        "raygf.evaluation.figures",
        "raygf.data.small_sets",
    ),
}

WALK = f"""
import importlib, json, pkgutil, sys
import raygf

names, loaded = ["raygf"], {{}}
names += [module.name for module in pkgutil.walk_packages(raygf.__path__, "raygf.")]
names = [name for name in names if not name.startswith({MAY_LOAD!r})]
for name in names:
    importlib.import_module(name)
    for heavy in ("ray", "mlflow"):
        if heavy in sys.modules and heavy not in loaded:
            loaded[heavy] = name
print(json.dumps([names, loaded]))
"""


def test_no_module_but_the_edges_loads_ray_or_mlflow() -> None:
    done = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names, loaded = json.loads(done.stdout)
    assert loaded == {}, f"first module that loads it: {loaded}"
    assert set(names) >= MUST_BE_FOUND
    assert not [name for name in names if name.startswith(MAY_LOAD)]


def test_edges_load_ray_but_not_mlflow_and_the_other_way_round() -> None:
    """The walk above can see it: the modules that it leaves out do load what they are left out for."""
    program = (
        "import sys, raygf.on_ray.driver, raygf.on_ray.cluster; assert 'ray' in sys.modules; "
        "assert 'mlflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
