"""The file system that a path is on: this machine's, or one that pyarrow.fs reaches."""

from __future__ import annotations

import os

from pyarrow import fs

from raygf.errors import StorageError
from raygf.limited import within
from raygf.masked import without_password
from raygf.paths import local_path

ANSWER_S = 60.0
"""Seconds that a storage may take to answer at first; left to itself, Google's tries for many minutes."""


def file_system(path: str, field: str = "storage.path") -> tuple[fs.FileSystem, str]:
    """The file system that ``path`` (local or a URI), the value of ``field``, is on, and its name there.

    Raises:
        UserError: there is no such file system, it does not answer, or the path names nothing in it.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(local_path(field, path))
    shown = without_password(path)
    try:
        system, root = within(ANSWER_S, lambda: fs.FileSystem.from_uri(path))
    except (OSError, ValueError) as error:
        raise StorageError(f"{field} = {shown!r}: {brief(error)}") from None
    if not root.strip("/") and not isinstance(system, fs.LocalFileSystem):
        raise StorageError(f"{field} = {shown!r}: names no bucket")
    return system, root


def inside(uri: str, name: str) -> str:
    """The URI of ``name`` in the folder ``uri``, whose options stay at the end."""
    place, mark, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def brief(error: BaseException) -> str:
    """The first line of what a file system says, without secrets and the details that Arrow adds."""
    first = str(error).split("\n")[0].split(". Detail:")[0]
    number = error.errno if isinstance(error, OSError) else None
    why = os.strerror(number) if number else ""  # which Arrow has among the details
    shown = without_password(first) or type(error).__name__
    return shown if why.lower() in shown.lower() else f"{shown}: {why}"
