"""Fixtures of the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes one Parquet image file into the test's folder and returns its path."""

    def write(
        name: str,
        files: list[Any],
        labels: list[Any],
        image: str = "image",
        label: str = "label",
        names: str | None = None,
        features: dict[str, list[str]] | None = None,
        plain: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> Path:
        images = (
            pa.array(files, pa.binary())
            if plain
            else pa.array(
                [{"bytes": file, "path": f"{row}.png"} for row, file in enumerate(files)],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            )
        )
        columns = {image: images, label: labels, **(extra or {})}
        if isinstance(labels, list) and not labels:
            columns[label] = pa.array([], pa.int64())
        metadata = {}
        if names is not None:
            metadata["class_names"] = names
        if features is not None:
            classes = {key: {"names": value, "_type": "ClassLabel"} for key, value in features.items()}
            metadata["huggingface"] = json.dumps(
                {"info": {"features": {image: {"_type": "Image"}, **classes}}}
            )
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=2)
        return path

    return write
