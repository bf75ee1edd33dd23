"""What went wrong with a store, in one line that a person can act on."""

from __future__ import annotations

import re

from raygf.errors import TrackingError
from raygf.tracking.uris import without_password


def reason(error: BaseException) -> str:
    """One short line: what went wrong at the bottom of the libraries' stacked messages."""
    text = str(error).strip() or type(error).__name__
    if found := re.search(r"\[Errno -?\d+\] ([^'\"()\]]+)", text):
        return found[1].strip()
    if re.search(r"timed? ?out", text, re.IGNORECASE):
        return "no answer in time"
    return without_password(text.splitlines()[0])[:200]


def start_error(error: Exception, uri: str) -> TrackingError:
    """``error``, which came while a run was opened at ``uri``, for the user."""
    return TrackingError(f"can't track to {without_password(uri)}: {reason(error)}{_hint(str(error))}")


def _hint(text: str) -> str:
    if re.search(r"\b403\b", text):
        return " (an MLflow server behind a DNS name needs --allowed-hosts)"
    if re.search(r"No module named '(psycopg|pymysql|MySQLdb|pyodbc)", text):
        return " (install the database's Python driver)"
    if re.search(r"\b401\b", text):
        return " (set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)"
    return ""
