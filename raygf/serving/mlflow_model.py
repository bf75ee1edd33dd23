"""The adaptive classifier as an MLflow model: images in, class, probability, exit and operations out.

A module that loads MLflow, like ``raygf.tracking``: import it where a model is logged or served.
"""

import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygf.data.base import InputSpec, Normaliser
from raygf.errors import TrackingError
from raygf.evaluation.loading import LoadedRun
from raygf.serving.adaptive import AdaptiveClassifier, Predictions
from raygf.serving.files import load_classifier, save_classifier
from raygf.tracking.store import connect, set_environment, start_error

set_environment()

import mlflow  # noqa: E402
import pandas as pd  # type: ignore[import-untyped]  # noqa: E402
from mlflow.models import ModelSignature  # noqa: E402
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec  # noqa: E402

NAME = "early-exit-classifier"
EXAMPLES = 2
_DEFINITION = Path(__file__).with_name("definition.py")


class EarlyExitModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """What MLflow loads and calls: the classifier of ``load_classifier`` on a model's two artifacts."""

    def load_context(self, context: Any) -> None:
        """Load network and thresholds."""
        self._classifier = load_classifier(context.artifacts["network"], context.artifacts["thresholds"])

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per image: label, probability, exit (from 1), operations.

        Args:
            model_input: uint8 (N, C, H, W), as the signature has made it of an array, or of a DataFrame of
                one column with an image in each row.
            params: ``budget``: average operations per image; by default those of the whole network.
        """
        budget = (params or {}).get("budget")
        if budget is None:
            budget = float(self._classifier.operations[-1])
        return as_frame(self._classifier, self._classifier.predict(model_input, budget=budget))


def as_frame(classifier: AdaptiveClassifier, answers: Predictions) -> pd.DataFrame:
    """``answers`` for people: classes by name, exits from 1."""
    names = np.array(classifier.task.class_names, dtype=object)
    return pd.DataFrame(
        {
            "label": names[answers.label],
            "probability": answers.probability,
            "exit": answers.exit + 1,
            "operations": answers.operations,
        }
    )


def log_model(run: LoadedRun, classifier: AdaptiveClassifier, uri: str, run_id: str, name: str = NAME) -> str:
    """Log ``classifier``, that of ``run``, as the model ``name`` of the tracked run ``run_id``.

    What is stored is raygf's own archive, a JSON file and three lines of code: nothing is pickled.

    Args:
        uri: Tracking URI.

    Returns:
        The model's URI, for ``mlflow.pyfunc.load_model`` and ``mlflow models serve``.

    Raises:
        TrackingError: the store can't be used, or does not have the run.
    """
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with tempfile.TemporaryDirectory() as folder:
            network, thresholds = save_classifier(run, classifier, Path(folder))
            info = mlflow.models.Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                model_id=_create_model(uri, run_id, name),
                step=run.checkpoint.round,  # so that the model gets the run's metrics of that round
                python_model=str(_DEFINITION),
                artifacts={"network": str(network), "thresholds": str(thresholds)},
                signature=model_signature(classifier),
                input_example=example_images(run),
                pip_requirements=_requirements(),
            )
    except Exception as error:
        raise TrackingError(f"model {name}: {start_error(error, uri)}") from error
    finally:
        mlflow.set_tracking_uri(before)
    return str(info.model_uri)


def _create_model(uri: str, run_id: str, name: str) -> str:
    """The id of a new model of the run, in the run's own experiment and with its parameters."""
    client = connect(uri)
    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id, name, source_run_id=run_id, params=run.data.params, model_type="classifier"
    )
    return str(model.model_id)


def model_signature(classifier: AdaptiveClassifier) -> ModelSignature:
    """Images of the network's size in; one row per image out; ``budget`` as parameter."""
    spec: InputSpec = classifier.task.input
    images = TensorSpec(np.dtype(np.uint8), (-1, spec.channels, spec.height, spec.width))
    columns = [("string", "label"), ("double", "probability"), ("long", "exit"), ("long", "operations")]
    budget = ParamSpec("budget", "double", float(classifier.operations[-1]))
    return ModelSignature(
        inputs=Schema([images]),
        outputs=Schema([ColSpec(kind, name) for kind, name in columns]),
        params=ParamSchema([budget]),
    )


def example_images(run: LoadedRun) -> NDArray[np.uint8]:
    """The first test images: uint8 (2, C, H, W)."""
    images, _ = next(iter(run.batches.evaluate("test")))
    pixels = Normaliser(run.dataset.statistics, run.bound.compute).pixels(images[:EXAMPLES])
    return np.ascontiguousarray(pixels.cpu().numpy())


def _requirements() -> list[str]:
    """What the process that loads the model must have; stated, so that MLflow does not go and find out."""
    requirements = []
    for package in ("raygf", "torch"):
        try:
            requirements.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:  # raygf run from a folder that is not installed
            requirements.append(package)
    return requirements
