"""The method runs without Ray and MLflow: only the edges of the package load them."""

import json
import subprocess
import sys

MAY_LOAD = ("raygf.on_ray", "raygf.tracking", "raygf.sweeps", "raygf.serving.mlflow_model")
SOME = {"raygf.launch", "raygf.cli", "raygf.rounds.driver", "raygf.fusion.learned", "raygf.serving.adaptive"}

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
first = [names, loaded]
import raygf.tracking.tracker, raygf.on_ray.driver
print(json.dumps([*first, [heavy for heavy in ("ray", "mlflow") if heavy in sys.modules]]))
"""


def test_only_the_edges_load_ray_and_nothing_loads_mlflow_before_a_run_is_tracked():
    done = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names, loaded, at_the_edges = json.loads(done.stdout)
    assert loaded == {}, f"first module that loads it: {loaded}"
    assert set(names) >= SOME
    assert at_the_edges == ["ray"]  # so the walk sees what it looks for


def test_a_run_starts_without_what_only_some_runs_need():
    start = "import sys, raygf.launch, raygf.on_ray.driver, raygf.tracking.tracker"
    names = ("torchvision:resnet18@0.5", "timm:test_vit@0.5")
    program = f"{start}; [*map(raygf.launch.find_builder, {names})]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    loaded = {"torch", "torchvision", "torch._dynamo", "matplotlib"}.intersection(done.stdout.split())
    assert loaded == {"torch"}, done.stderr
