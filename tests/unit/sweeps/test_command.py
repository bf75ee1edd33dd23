"""One command line for the sweep and for the runs in it; what is refused before anything starts."""

from dataclasses import replace

import pytest
from ray import tune
from sweep_parts import plan

from raygf.config.recipes import get_recipe
from raygf.errors import ConfigError
from raygf.sweeps import Space
from raygf.sweeps.command import Command, check_flags, check_space, parse_sweep, search_name
from raygf.sweeps.plan import SweepOptions

GOOD = {"fusion.lr": tune.loguniform(0.01, 1.0)}


def test_flags_are_of_the_sweep_and_of_the_runs_in_it():
    assert parse_sweep("", []) == Command("digits", SweepOptions(), get_recipe("digits"), frozenset())
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


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--recipe nope", "recipe = 'nope': must be one of those"),
        ("--trials 0", "trials = 0: must be a whole number of at least 1"),
        ("--points 1", "points = 1: must be a whole number of at least 2"),
        ("--scheduler best", "--scheduler"),
        ("--max-failures -1", "max_failures = -1"),
        ("--nonsense 1", "--nonsense"),
        ("--rounds 0", "rounds = 0"),
        ("--resources.executor local", "resources.executor = 'local': sweeps need Ray"),
        ("--resources.workers 2", "resources.workers = 2: "),
        ("--stop-after 3", "stop_after = 3: "),
        ("--storage.resume True --storage.name x", "resume a sweep with --resume"),
        ("--data.val 0", "data.val = 0: trials are compared by validation images"),
        ("--search grid --trials 4", "trials = 4: a grid has as many trials as points"),
        ("--search optuna --scheduler pbt", "search = 'optuna': pbt changes settings itself"),
        ("--grace 5", "grace = 5: scheduler = 'none' has none"),
    ],
)
def test_flags_that_are_wrong_or_do_not_go_with_a_sweep_are_one_line(argv, says):
    check_flags(parse_sweep("", []))
    with pytest.raises(ConfigError) as caught:
        check_flags(parse_sweep("", argv.split()))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_help_lists_spaces_recipes_and_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_sweep("Sweeps.", ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "fusion_lr Meta-GF's fusion: learning rate" in text
    for word in ("cifar10-msdnet-metagf:", "--resume", "--scheduler {asha,none,pbt}", "--data.train-limit"):
        assert word in text


def test_a_resumed_sweep_needs_no_flags_and_may_lie_elsewhere():
    stored = plan(options=SweepOptions(space="fusion", trials=3))
    command = parse_sweep("", ["--resume", "--storage.name", "sweep"], stored)
    assert command.run == replace(stored.run, storage=replace(stored.run.storage, name="sweep"))
    assert command.options == replace(stored.options, resume=True)
    same = ["--resume", "--recipe", "digits", "--space", "fusion", "--trials", "3", "--rounds", "40"]
    assert parse_sweep("", same, stored).options == command.options
    elsewhere = "--resume --storage.path /elsewhere --tracking.uri http://x --resources.address y:1"
    run = parse_sweep("", elsewhere.split(), stored).run
    assert (run.storage.path, run.tracking.uri, run.resources.address) == ("/elsewhere", "http://x", "y:1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--recipe digits-sgd", "recipe was 'digits', is now 'digits-sgd'"),
        ("--space method", "space was 'fusion_lr', is now 'method'"),
        ("--fusion.lr 0.2", r"fusion\.lr was 0\.1, is now 0\.2"),
    ],
)
def test_a_resumed_sweep_stays_the_same_sweep(argv, says):
    with pytest.raises(ConfigError, match=f"can't resume another sweep: .*{says}"):
        parse_sweep("", ["--resume", *argv.split()], plan())


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (Space({"fusion.ema": tune.uniform(0, 0.9)}), "fusion.ema is swept by 'fusion_lr' and also fixed by"),
        (Space({"fusion.lrr": tune.uniform(0, 1)}), "fusion.lrr: a run has no such field"),
        (Space({"loss.aux": tune.uniform(-1.0, 1.5)}), "loss.aux = -1.0: must be"),
        (Space({"method": tune.choice(["sgd", "sgdd"])}), "method = 'sgdd': must be one of metagf"),
        (Space({"rounds": tune.randint(1, 9)}), "rounds can't be swept: every trial gets as many training"),
        (Space({"model.msdnet.exits": tune.randint(2, 5)}), "model.msdnet.exits can't be swept"),
        (Space({"resources.actors": tune.choice([1, 2])}), "resources.actors can't be swept"),
        (Space(GOOD, metric="test_accuracy/average"), "metric = 'test_accuracy/average'"),
        (Space(), "it is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spaces_that_contradict_a_run(space, says):
    command = parse_sweep("", ["--fusion.ema=0.9"])
    check_space(Space(GOOD), command)
    with pytest.raises(ConfigError) as caught:
        check_space(space, command)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "space", "name"),
    [
        ({}, Space(), "random"),
        ({}, Space(search="grid"), "grid"),
        ({"trials": 3}, Space(search="grid"), "random"),
        ({"search": "optuna"}, Space(search="grid"), "optuna"),
        ({"search": "grid"}, Space(), "grid"),
    ],
)
def test_the_search_of_the_flag_counts_before_that_of_the_space(options, space, name, monkeypatch):
    assert search_name(SweepOptions(**options), space) == name
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if name != "optuna":
        assert search_name(SweepOptions(**options), space) == name
    else:
        with pytest.raises(ConfigError, match=r"Optuna is not installed: pip install 'optuna>=4'"):
            search_name(SweepOptions(**options), space)
