"""Adding the evaluation of a past run to its page in MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from raygf.config import TrackingConfig
from raygf.errors import TrackingError
from raygf.tracking.metrics import top5_metrics
from raygf.tracking.mlflow_run import MLflowRun
from raygf.tracking.probes import check_uri
from raygf.tracking.trouble import reason
from raygf.tracking.uris import resolve_uri, sqlite_path, without_password

FOLDER = "evaluation"
"""The run's artifact folder that files go to."""


def log_evaluation(
    config: TrackingConfig,
    folder: Path,
    run_id: str,
    files: Sequence[Path],
    top5: Sequence[float] = (),
    round: int = 0,
) -> str:
    """Keep ``files`` as artifacts of the run ``run_id``, whose status stays as it is.

    Args:
        config: The run's own; a store without a URI is looked for in ``folder``.
        top5: Top-5 test accuracy of every exit (0–1), logged as metrics of ``round``.

    Returns:
        The store's URI, fit to be shown.

    Raises:
        TrackingError: the store can't be reached, or does not have the run.
    """
    uri = resolve_uri(config, folder)
    _require_store(uri)
    run = MLflowRun(uri)
    try:
        run.attach(run_id)
        if top5:
            run.log_metrics(top5_metrics(top5), round, int(time.time() * 1000))
        for file in files:
            run.log_file(FOLDER, file)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"{without_password(uri)}: {reason(error)}") from error
    return without_password(uri)


def _require_store(uri: str) -> None:
    """As ``check_uri``; a database file must be there already: an empty new one would not have the run."""
    path, _ = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(f"there is no tracking database {path}")
    check_uri(uri)
