"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from raygf.errors import ConfigError

_KINDS = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""What URIs that pyarrow.fs understands begin with."""


def local_path(field: str, text: str) -> Path:
    """The absolute path that ``text``, the value of ``field``, means on this machine; ~ is a home folder.

    Raises:
        ConfigError: it is a URI, or starts with ~ and the name of a user who is not known here.
    """
    kind, _, rest = text.partition(":")
    if rest.startswith("//"):
        raise ConfigError(f"{field} = {text!r}: must be a path on this machine, not a URI")
    if rest and kind in _KINDS:
        raise ConfigError(f"{field} = {text!r}: a URI begins with {kind}://")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        user = text.split("/")[0]
        raise ConfigError(f"{field} = {text!r}: there is no such user here as {user}") from None


def storage_path(field: str, text: str) -> str:
    """``text`` if it is a URI, else as an absolute path: workers have working directories of their own.

    Raises:
        ConfigError: see ``local_path``.
    """
    return text if "://" in text else str(local_path(field, text))
