"""The example of docs/method.md, as it stands there."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raygf.config.recipes import get_recipe
from raygf.config.run import ModelConfig, ResourceConfig, StorageConfig, TrackingConfig
from raygf.launch import run

PAGE = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's Python block as the module ``mine``."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)  # another test's
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("method", ["mine:by_length", "delta-mine:by_length", "metagf"])
def test_a_network_and_a_method_of_ones_own(mine, tmp_path, method):
    recipe = get_recipe("digits")
    result = run(
        replace(
            recipe,
            method=method,
            rounds=12,
            model=ModelConfig("mine:two_exits"),
            resources=ResourceConfig(executor="local"),
            storage=StorageConfig(str(tmp_path)),
            tracking=TrackingConfig(enabled=False),
        )
    )
    assert len(result.test_accuracy) == 2
    assert result.test_accuracy[-1] > 0.2  # chance is 0.1
    assert result.training_passes == (12 if method.startswith("mine") else 36)


def test_the_page_shows_these_commands():
    text = PAGE.read_text()
    for method in ("mine:by_length", "delta-mine:by_length"):
        assert f"jobs/digits.py --model.name mine:two_exits --method {method}" in text
