"""Checks of shell commands in files and on pages: programs written in Python parse their own flags."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click
import pytest

import raygf.launch
from raygf.cli import parse_flags
from raygf.config.run import RunConfig
from raygf.errors import RaygfError

REPOSITORY = Path(__file__).parents[2]
OURS = ("deploy/", "jobs/", "cluster.yaml")
FOREIGN = ("aws", "docker", "kubectl", "pip")
"""Programs that can't be asked here; only the files that they are given are looked up."""
BUILT_IN = ("export", "mkdir", "sudo", "ulimit")


def commands(script: str) -> list[list[str]]:
    """The simple commands of a shell script as words, without comments and leading assignments."""
    found: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if set(word) <= set(";|&"):
                found.append([])
            elif found[-1] or "=" not in word.partition("/")[0]:
                found[-1].append(word)
    return [words for words in found if words]


def check(words: Sequence[str]) -> None:
    """Raise an error that says what is wrong with this command."""
    program, *rest = words
    name = PurePosixPath(program).name
    check_files(rest)
    if name == "ray":
        entrypoint = parse_ray(rest).get("entrypoint")
        if entrypoint:
            check(entrypoint)
    elif name == "mlflow":
        parse_mlflow(rest)
    elif name.startswith("python"):
        _check_python(rest)
    elif name == "bash":
        assert rest[0].endswith(".sh"), words
    else:
        assert name in (*FOREIGN, *BUILT_IN), f"{name}: add a check for it"


def check_files(words: Sequence[str]) -> None:
    """Files of the repository that a command names must exist."""
    for word in words:
        path = word.removeprefix("file://")
        if path.startswith(OURS):
            assert (REPOSITORY / path).exists(), f"{path}: no such file"


def parse_ray(words: Sequence[str]) -> dict[str, Any]:
    """The parameters of a ``ray`` command, as Ray reads them."""
    from ray.scripts.scripts import cli

    return _parse_click(cli, words)


def parse_mlflow(words: Sequence[str]) -> dict[str, Any]:
    """The parameters of an ``mlflow`` command, as MLflow reads them."""
    from mlflow.cli import cli

    return _parse_click(cli, words)


def parse_job(name: str, argv: Sequence[str]) -> Any:
    """What the job ``name`` makes of its flags; for a training job the run that it would start."""
    if name == "sweep":
        from raygf.sweep.command import parse_sweep

        return parse_sweep("", argv)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(REPOSITORY / "jobs"), *sys.path])
        if name == "evaluate":
            return parse_flags(importlib.import_module(name).EvaluateConfig, "", argv)
        return _run_of(str(REPOSITORY / "jobs" / f"{name}.py"), argv)


def _run_of(program: str, argv: Sequence[str]) -> RunConfig:
    seen: list[RunConfig] = []

    def instead(config: RunConfig, *more: object, **named: object) -> None:
        seen.append(config)
        raise RaygfError("parsed")

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), pytest.raises(SystemExit):
        patch.setattr(raygf.launch, "run", instead)
        patch.setattr(sys, "argv", [program, *argv])
        runpy.run_path(program, run_name="__main__")
    assert seen, said.getvalue()
    return seen[0]


def _parse_click(command: click.Command, words: Sequence[str]) -> dict[str, Any]:
    rest = list(words)
    while isinstance(command, click.Group):
        name, *rest = rest
        assert name in command.commands, f"{command.name} {name}: no such command"
        command = command.commands[name]
    return command.make_context(command.name, rest).params


def _check_python(rest: Sequence[str]) -> None:
    first, second = rest[:2]
    if first == "-c":
        compile(second, "-c", "exec")
    elif first == "-m":
        assert importlib.util.find_spec(second), second
    else:
        path = PurePosixPath(first)
        assert path.parent.name == "jobs", first
        parse_job(path.stem, rest[1:])
