"""Where to track: the URI that is meant, and how it may be shown."""

from __future__ import annotations

import os
from pathlib import Path

from raygf.config import TrackingConfig
from raygf.masked import without_password as without_password


def resolve_uri(config: TrackingConfig, folder: Path) -> str:
    """Where to track: the flag, else MLFLOW_TRACKING_URI, else ``mlflow.db`` in ``folder``.

    Relative sqlite paths are taken from ``folder`` and made absolute, so that they hold in any process.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or "sqlite:///mlflow.db"
    path, options = sqlite_path(uri)
    if path is None:
        return uri
    return f"sqlite:///{folder.resolve() / path}{options}"


def sqlite_path(uri: str) -> tuple[Path | None, str]:
    """File and ``?options`` of a sqlite URI; no file if it is another kind, or in memory."""
    scheme, _, rest = uri.partition(":///")
    file, mark, options = rest.partition("?")
    if scheme.partition("+")[0] != "sqlite" or file in ("", ":memory:"):
        return None, ""
    return Path(file), mark + options
