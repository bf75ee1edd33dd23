"""What MLflow stores and runs in place of a pickled model. Not to be imported."""

from mlflow.models import set_model

from raygf.serving.mlflow_model import EarlyExitModel

set_model(EarlyExitModel())
