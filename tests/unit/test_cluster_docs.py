"""docs/cluster.md: its commands are understood by their programs, its figures are those of the code."""

from __future__ import annotations

import re
from math import ceil

import click
import pytest
from command_lines import REPOSITORY, check, commands

from raygf.compute import Compute
from raygf.config.recipes import get_recipe
from raygf.data.base import InputSpec
from raygf.errors import RaygfError
from raygf.models.build import build_model
from raygf.training.network import BoundNetwork

PAGE = (REPOSITORY / "docs" / "cluster.md").read_text()
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [words for script in SCRIPTS for words in commands(script)]
README = (REPOSITORY / "README.md").read_text()
(_FUSION,) = re.findall(r"\| ([\d.]+) \| `benchmarks/fusion_step\.py`", README)
FUSION_PASS = float(_FUSION)
"""Training epochs."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command(words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize(
    "line, kind",
    [
        ("ray start --hed", click.UsageError),
        ("ray jobs submit -- python jobs/digits.py", AssertionError),
        ("ray job submit --working_dir . -- python jobs/digits.py", click.UsageError),
        ("ray job submit -- python jobs/digits.py --round 3", AssertionError),
        ("ray job submit -- python jobs/number.py", AssertionError),
        ("python jobs/evaluate.py --checkpoints x", RaygfError),
        ("mlflow server --served-artifacts", click.UsageError),
        ("ray up deploy/cluster.yaml", AssertionError),
        ("helm install raygf", AssertionError),
    ],
)
def test_the_check_finds_what_is_wrong(line: str, kind: type[Exception]) -> None:
    (words,) = commands(line)
    with pytest.raises(kind):
        check(words)


def test_every_stage_has_its_commands() -> None:
    shown = [" ".join(words) for words in COMMANDS]
    for start in ("ray up", "ray job submit", "ray job logs", "ray job stop", "ray down", "kubectl apply"):
        assert any(line.startswith(start) for line in shown), start
    for job in ("digits", "imagenet", "sweep", "evaluate"):
        assert any(f"python jobs/{job}.py" in line for line in shown), job


def test_links_and_files_are_there() -> None:
    for link in re.findall(r"\]\((\.\./[^)#]+)", PAGE):
        assert (REPOSITORY / "docs" / link).exists(), link
    for test in re.findall(r"\btest_\w+\.py", PAGE):
        assert list((REPOSITORY / "tests").rglob(test)), test


def rows(title: str) -> list[list[str]]:
    """The rows of the table whose head line has ``title``."""
    table = rf"^\|[^\n]*{re.escape(title)}[^\n]*\n\|[-| ]+\|\n((?:\|[^\n]*\n)+)"
    (found,) = re.findall(table, PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


def test_times_of_a_round_follow_from_the_formula() -> None:
    table = rows("time of a round")
    assert [(gpus, actors) for gpus, _, actors, *_ in table] == [*zip("65321", "55321", strict=True)]
    for gpus, _, actors, time, reserved in table:
        expected = ceil(5 / int(actors)) + FUSION_PASS
        assert time == f"{expected:.2f} t"
        assert reserved == f"{int(gpus) * expected:.1f} t"


@pytest.mark.parametrize(
    "recipe, spec, title",
    [
        ("imagenet-msdnet-metagf", InputSpec(3, 224, 224, 1000), "MSDNet, ImageNet, 5 exits"),
        ("cifar100-msdnet-metagf", InputSpec(3, 32, 32, 100), "MSDNet, CIFAR-100, 7 exits"),
    ],
)
def test_bytes_of_a_round_follow_from_the_network(recipe: str, spec: InputSpec, title: str) -> None:
    config = get_recipe(recipe)
    network = build_model(config.model, spec, config.seed)
    state = BoundNetwork(network, Compute("cpu", "fp32", "channels_last")).state()
    buffers = sum(array.nbytes for array in state.buffers.values())
    each = state.vector.nbytes + buffers
    assert each == 4 * state.vector.size + buffers
    exits = config.model.msdnet.exits
    sent = f"{2 * exits * each / 1e9:.2f} GB"
    expected = [title, f"{state.vector.size:,}", f"{buffers:,}", f"{each:,}", sent]
    assert [row for row in rows("4P + b") if row[0] == title] == [expected]
