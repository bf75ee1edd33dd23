"""Which columns of a Parquet image set hold the images and the labels, and what the classes are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygf.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns to read of one file."""

    image: str
    """Dotted where the encoded file is the field ``bytes`` of a struct."""
    label: str
    class_names: tuple[str, ...]
    """Empty where the schema gives none."""


def find_columns(schema: Any, file: Path) -> Columns:
    """The columns of ``file``, which has the Arrow ``schema``.

    Raises:
        DataError: the file has no such columns, or more than one that could be the label.
    """
    label = _label_column(schema, file)
    return Columns(_image_column(schema, file), label, _class_names(schema, label, file))


def _image_column(schema: Any, file: Path) -> str:
    from pyarrow import types

    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if _is_binary(kind):
                return name
            if types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind):
                return f"{name}.bytes"
            raise DataError(
                f"{file}: column {name!r} is {kind}; expected binary, or a struct with binary 'bytes'"
            )
    raise DataError(
        f"{file}: no column 'image' or 'img'; it has {_listing(schema.names)}: rename the one with the images"
    )


def _label_column(schema: Any, file: Path) -> str:
    from pyarrow import types

    whole = [field.name for field in schema if types.is_integer(field.type)]
    for name in LABEL_COLUMNS:
        if name in whole:
            return name
    if len(whole) == 1:
        return str(whole[0])
    found = "no column of whole numbers" if not whole else f"several that could be it ({_listing(whole)})"
    raise DataError(
        f"{file}: no label column 'label' or 'fine_label', and {found}; it has {_listing(schema.names)}"
    )


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(schema: Any, label: str, file: Path) -> tuple[str, ...]:
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        return tuple(name.strip() for name in _text(metadata[b"class_names"], file).split(","))
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(str(name) for name in features.get(label, {}).get("names", ()))
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{file}: its 'huggingface' metadata can't be understood; write the file anew"
        ) from error


def _text(value: bytes, file: Path) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DataError(f"{file}: its 'class_names' are not UTF-8 text; write the file anew") from None


def _listing(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
