"""Checks of shell commands in files and on pages: programs written in Python parse their own flags."""

import contextlib
import importlib
import io
import runpy
import shlex
import sys
from pathlib import Path, PurePosixPath

import click
import pytest

from raygf.__main__ import COMMANDS, RecipesConfig, as_flags
from raygf.api import EvaluateConfig, ExportConfig, PredictConfig
from raygf.cli import parse_flags
from raygf.config.run import RunConfig
from raygf.data.prepare import PrepareConfig
from raygf.errors import RaygfError

REPOSITORY = Path(__file__).parents[2]
OURS = ("deploy/", "jobs/", "cluster.yaml")
UNCHECKED = ("aws", "docker", "kubectl", "pip", "export", "kill", "mkdir", "sudo", "ulimit")
"""Programs that can't be asked here; only the files that they are given are looked up."""
ASKED = {"recipes": RecipesConfig, "prepare": PrepareConfig, "evaluate": EvaluateConfig}
ASKED |= {"export": ExportConfig, "predict": PredictConfig}
GROUPS = {"ray": "ray.scripts.scripts", "mlflow": "mlflow.cli"}


def commands(script):
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


def check(words):
    """Raise an error that says what is wrong with this command."""
    program, *rest = words
    name = PurePosixPath(program).name
    for word in rest:
        path = word.removeprefix("file://")
        assert not path.startswith(OURS) or (REPOSITORY / path).exists(), f"{path}: no such file"
    if name in GROUPS:
        if entrypoint := parse_click(name, rest).get("entrypoint"):
            check(entrypoint)
    elif name.startswith("python"):
        check_python(*rest)
    elif name == "raygf":
        check_raygf(*rest)
    elif name == "bash":
        assert rest[0].endswith(".sh"), words
    else:
        assert name in UNCHECKED, f"{name}: add a check for it"


def check_python(first, second="", *rest):
    if first == "-c":
        compile(second, "-c", "exec")
    elif first == "-m":
        assert importlib.util.find_spec(second), second
    else:
        path = PurePosixPath(first)
        assert (
            path.parent.name in ("benchmarks", "jobs")
            and (REPOSITORY / path.parent.name / path.name).exists()
        )
        if path.parent.name == "jobs":
            parse_job(path.stem, (second, *rest) if second else ())


def check_raygf(command, *words):
    assert command in COMMANDS, f"raygf {command}: no such command"
    argv = as_flags(words, *COMMANDS[command][1])
    return parse_job("digits" if command == "train" else command, argv)


def parse_click(program, words):
    """The parameters of a command of Ray or MLflow, as the program itself reads them."""
    command, rest = importlib.import_module(GROUPS[program]).cli, list(words)
    while isinstance(command, click.Group):
        name, *rest = rest
        assert name in command.commands, f"{command.name} {name}: no such command"
        command = command.commands[name]
    return command.make_context(command.name, rest).params


def parse_job(name, argv):
    """What the job ``name`` makes of its flags; for a training job the run that it would start."""
    if name == "sweep":
        from raygf.sweeps.command import parse_sweep

        return parse_sweep("", argv)
    if name in ASKED:
        return parse_flags(ASKED[name], "", argv)
    seen: list[RunConfig] = []

    def instead_of_run(config, *more, **named):
        seen.append(config)
        raise RaygfError("parsed")

    program, error = str(REPOSITORY / "jobs" / f"{name}.py"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error), pytest.raises(SystemExit):
        patch.setattr("raygf.launch.run", instead_of_run)
        patch.setattr(sys, "argv", [program, *argv])
        runpy.run_path(program, run_name="__main__")
    assert seen, error.getvalue()
    return seen[0]
