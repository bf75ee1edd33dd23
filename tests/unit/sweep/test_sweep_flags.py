"""One command line for the sweep and for the runs in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sweep_parts import plan

from raygf.config.recipes import get_recipe
from raygf.errors import ConfigError
from raygf.sweep.command import parse_resumed, parse_sweep
from raygf.sweep.plan import SweepOptions


def test_without_flags_the_recipe_and_the_defaults():
    command = parse_sweep("", [])
    assert (command.recipe, command.run, command.options) == ("digits", get_recipe("digits"), SweepOptions())
    assert command.given == frozenset()


def test_both_kinds_of_flags():
    argv = "--space method --trials 5 --recipe=digits-sgd --rounds 4 --data.train-limit 48 --max-failures 0"
    command = parse_sweep("", argv.split())
    assert command.recipe == "digits-sgd"
    assert (command.options.space, command.options.trials, command.options.max_failures) == ("method", 5, 0)
    assert (command.run.rounds, command.run.data.train_limit, command.run.method) == (4, 48, "sgd")
    assert command.run.resources.max_failures == 3
    assert command.given == {"space", "trials", "rounds", "data.train_limit", "max_failures"}


@pytest.mark.parametrize(
    ("words", "resume"),
    [(["--resume"], True), (["--resume", "True"], True), (["--resume", "False"], False), ([], False)],
)
def test_resume_may_stand_alone(words, resume):
    for argv in ([*words, "--storage.name", "a"], ["--storage.name", "a", *words]):
        command = parse_sweep("", argv)
        assert (command.options.resume, command.run.storage.name) == (resume, "a")


def test_short_forms_of_resources():
    run = parse_sweep("", ["--cpus-per-exit", "0.5", "--gpus-per-exit", "0.25"]).run
    assert (run.resources.cpus_per_exit, run.resources.gpus_per_exit) == (0.5, 0.25)
    assert parse_sweep("", ["--resources.cpus-per-exit", "3"]).run.resources.cpus_per_exit == 3
    both = ["--cpus-per-exit", "2", "--resources.cpus-per-exit"]
    assert parse_sweep("", [*both, "2"]).run.resources.cpus_per_exit == 2
    with pytest.raises(ConfigError, match=r"--cpus-per-exit and --resources\.cpus-per-exit contradict"):
        parse_sweep("", [*both, "3"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--recipe", "nope"], "recipe = 'nope': must be one of digits"),
        (["--trials", "0"], "trials = 0: must be a whole number of at least 1"),
        (["--points", "1"], "points = 1: must be a whole number of at least 2"),
        (["--grace", "0"], "grace = 0"),
        (["--concurrent", "0"], "concurrent = 0"),
        (["--scheduler", "best"], "--scheduler"),
        (["--search", "luck"], "--search"),
        (["--cpus-per-exit", "-1"], "cpus_per_exit = -1.0"),
        (["--max-failures", "-1"], "max_failures = -1"),
        (["--nonsense", "1"], "--nonsense"),
        (["--rounds", "0"], "rounds = 0"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(argv, says):
    with pytest.raises(ConfigError) as caught:
        parse_sweep("", argv)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_help_lists_spaces_recipes_and_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_sweep("Sweeps.", ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in (
        "fusion_lr Meta-GF's fusion: learning rate",
        "cifar10-msdnet-metagf:",
        "--trials",
        "--resume",
    ):
        assert word in text
    for word in (
        "--scheduler {asha,none,pbt}",
        "--search",
        "--cpus-per-exit",
        "--fusion.lr",
        "--data.train-limit",
    ):
        assert word in text


def test_a_resumed_sweep_needs_no_flags():
    stored = plan(options=SweepOptions(space="fusion", trials=3, cpus_per_exit=0.5))
    stored = replace(
        stored, run=replace(stored.run, resources=replace(stored.run.resources, cpus_per_exit=0.5))
    )
    command = parse_resumed("", ["--resume", "--storage.name", "sweep"], stored)
    assert command.run == replace(stored.run, storage=replace(stored.run.storage, name="sweep"))
    assert command.options == replace(stored.options, resume=True)
    same = ["--resume", "--recipe", "digits", "--space", "fusion", "--trials", "3", "--rounds", "40"]
    assert parse_resumed("", [*same, "--cpus-per-exit", "0.5"], stored).recipe == "digits"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--recipe", "digits-sgd"], "recipe was 'digits', is now 'digits-sgd'"),
        (["--rounds", "41"], "rounds was 40, is now 41"),
        (["--space", "method"], "space was 'fusion_lr', is now 'method'"),
        (["--fusion.lr", "0.2"], "fusion.lr was 0.1, is now 0.2"),
        (["--cpus-per-exit", "2"], "cpus_per_exit was None, is now 2.0"),
        (["--resources.driver-cpus", "2"], "resources.driver_cpus was 1.0, is now 2.0"),
    ],
    ids=str,
)
def test_a_resumed_sweep_stays_the_same_sweep(argv, says):
    with pytest.raises(ConfigError, match="can't resume another sweep: ") as caught:
        parse_resumed("", ["--resume", *argv], plan())
    assert says in str(caught.value)


def test_where_it_is_and_how_long_to_wait_may_change():
    argv = [
        "--resume",
        "--storage.path",
        "/elsewhere",
        "--tracking.uri",
        "http://x",
        "--resources.address",
        "y:1",
    ]
    run = parse_resumed("", argv, plan()).run
    assert (run.storage.path, run.tracking.uri, run.resources.address) == ("/elsewhere", "http://x", "y:1")
