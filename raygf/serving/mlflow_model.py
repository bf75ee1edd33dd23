"""The adaptive classifier as an MLflow model: images in, class, probability, exit and operations out.

A module that loads MLflow, like ``raygf.tracking``: import it where a model is logged or served.
"""

import ast
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from raygf.data.base import InputSpec, Normaliser
from raygf.evaluation.loading import LoadedRun, model_files
from raygf.serving.adaptive import AdaptiveClassifier
from raygf.tracking.store import answering, connect, set_environment

set_environment()

import mlflow  # noqa: E402
import pandas as pd  # type: ignore[import-untyped]  # noqa: E402
from mlflow.models import ModelSignature  # noqa: E402
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec  # noqa: E402

NAME = "early-exit-classifier"
EXAMPLES = 2
_COLUMNS = {"label": "string", "probability": "double", "exit": "long", "operations": "long"}
_DEFINITION = f"""from mlflow.models import set_model
from {__name__} import EarlyExitModel

set_model(EarlyExitModel())
"""
"""What MLflow stores and runs in place of a pickled model."""
_PACKAGES = {"mlflow", "numpy", "pandas", "pillow", "pyarrow", "safetensors", "torch", "torchvision"}
"""What raygf's own code needs to load a classifier."""
_INSTALLED = {"site-packages", "dist-packages"}


class EarlyExitModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """What MLflow loads and calls: the classifier in the folder that is a model's artifact."""

    def load_context(self, context: Any) -> None:
        """Load network and thresholds."""
        self._classifier = AdaptiveClassifier.load(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per image: label, probability, exit (from 1), operations.

        Args:
            model_input: uint8 (N, C, H, W), as the signature has made it of an array, or of a DataFrame of
                one column with an image in each row.
            params: ``budget``: average operations per image; by default the classifier's default budget.
        """
        budget = (params or {}).get("budget")
        if budget is None:
            budget = self._classifier.default_budget
        answers = self._classifier.predict(model_input, budget=budget)
        names = np.array(self._classifier.task.class_names, dtype=object)
        columns = names[answers.label], answers.probability, answers.exit + 1, answers.operations
        return pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True)))


def log_model(run: LoadedRun, classifier: AdaptiveClassifier, uri: str, run_id: str) -> str:
    """Log ``classifier``, that of ``run``, as a model of the tracked run ``run_id``.

    What is stored are the network's two files and code, raygf's and that of a network of one's own: nothing
    is pickled, and raygf need not be installed where it runs. The model card is its description.

    Args:
        uri: Tracking URI.

    Returns:
        The model's URI, for ``mlflow.pyfunc.load_model`` and ``mlflow models serve``.

    Raises TrackingError: the store can't be used, or does not have the run.
    """
    # With the tables and figures, which a model that is loaded does without.
    from raygf.evaluation.report import write_files
    from raygf.serving.card import model_card

    # Without one it stays so: MLflow also sets the environment's, which would ask for tracking.
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        with answering(uri), tempfile.TemporaryDirectory() as folder:
            files, code = Path(folder) / "model", Path(folder) / "code"
            write_files(files, model_files(run, classifier.table))
            definition = Path(folder) / "definition.py"
            definition.write_text(_DEFINITION)
            packages = _PACKAGES | copy_code(run.config.model.name, code)
            client = connect(uri)
            tracked = client.get_run(run_id)
            model = client.create_logged_model(
                tracked.info.experiment_id,
                NAME,
                source_run_id=run_id,
                tags={"mlflow.note.content": model_card(run, classifier)},
                params=tracked.data.params,
                model_type="classifier",
            )
            images, _ = next(iter(run.batches.evaluate("test")))
            pixels = Normaliser(run.dataset.statistics, run.bound.compute).pixels(images[:EXAMPLES])
            info = mlflow.models.Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                model_id=model.model_id,
                step=run.checkpoint.round,  # so that the model gets the run's metrics of that round
                python_model=str(definition),
                artifacts={"model": str(files)},
                signature=model_signature(classifier),
                input_example=np.ascontiguousarray(pixels.cpu().numpy()),
                code_paths=[str(path) for path in sorted(code.iterdir())],
                # Stated, so that MLflow does not go and find out; without a build's mark ("+cpu").
                pip_requirements=sorted(f"{name}=={version(name).partition('+')[0]}" for name in packages),
            )
    finally:
        mlflow.set_tracking_uri(before)
    return str(info.model_uri)


def model_signature(classifier: AdaptiveClassifier) -> ModelSignature:
    """Images of the network's size in; one row per image out; ``budget`` as parameter."""
    spec: InputSpec = classifier.task.input
    images = TensorSpec(np.dtype(np.uint8), (-1, spec.channels, spec.height, spec.width))
    columns = [ColSpec(kind, name) for name, kind in _COLUMNS.items()]
    budget = ParamSpec("budget", "double", classifier.default_budget)
    return ModelSignature(Schema([images]), Schema(columns), ParamSchema([budget]))


def copy_code(model: str, folder: Path) -> set[str]:
    """Copy raygf's Python files and those of the network ``model`` to ``folder``, as they are imported.

    A network of one's own ("package.module:function") needs its package, and all that its files import, also
    within functions. What is installed in site-packages is not copied: the names of those packages, as pip
    knows them, are returned.
    """
    packages: set[str] = set()
    own = [model.partition(":")[0].partition(".")[0]] if ":" in model else []
    installed = packages_distributions() if own else {}
    seen, todo = {"__main__", *sys.stdlib_module_names}, ["raygf", *own]
    while todo:
        name = todo.pop()
        place = None if name in seen else _find(name)
        seen.add(name)
        if place is None:  # not here either
            continue
        if name != "raygf" and _INSTALLED & {*place.parts}:
            packages.update(installed.get(name, ()))
            continue
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            copy = folder / file.relative_to(place.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            if name != "raygf":
                todo += _imports(file)
    return packages


def _find(name: str) -> Path | None:
    """Folder or file of the top module ``name``."""
    spec = find_spec(name)
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin]
    return Path(places[0]) if places and places[0] else None


def _imports(file: Path) -> set[str]:
    """The top modules that a Python file imports from elsewhere."""
    names: set[str] = set()
    with suppress(SyntaxError, ValueError):  # a template, or a module in binary form
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names}
