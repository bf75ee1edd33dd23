"""The example of docs/sweeps.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raygf.methods.registry import method_names
from raygf.sweep.command import parse_sweep
from raygf.sweep.prepare import check_flags, check_search, check_space
from raygf.sweep.space import describe_spaces, known_spaces, load_space, random

PAGE = Path(__file__).parents[3] / "docs" / "sweeps.md"
TEXT = PAGE.read_text()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page's Python block where the page says."""
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "small_batches.py").write_text(block)
    monkeypatch.chdir(tmp_path)


def test_the_example_is_a_space_that_can_be_swept(written):
    command = parse_sweep("", ["--space", "small_batches", "--trials", "12"])
    check_flags(command)
    alternatives = check_space(load_space("small_batches", command.run), command)
    trials = random(alternatives, 12, 0)
    assert {trial["batch_size"] for trial in trials} == {8, 16, 32}
    assert sum(trial["loss.distill"] for trial in trials) == 6
    assert all(0.01 <= trial["optim.lr"] <= 0.1 for trial in trials)
    check_search("random")
    assert "  small_batches  Batch size and learning rate together" in describe_spaces()


def test_the_page_names_every_space_and_no_other():
    named = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert named == {name for name in known_spaces() if name != "small_batches"}
    assert "160 for `digits`" in TEXT and len(method_names()) > 20


@pytest.mark.parametrize("line", re.findall(r"^python jobs/sweep\.py (.*)$", TEXT, re.MULTILINE))
def test_the_commands_can_be_parsed(line):
    parse_sweep("", line.split())
