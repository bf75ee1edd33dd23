from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from raygf.cli import main, parse
from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import RunConfig
from raygf.errors import ConfigError, ExitFailed, NonFiniteError, ResourceError
from raygf.launch import Result


def run_of(*argv: str) -> RunConfig:
    return parse("Trains.", "digits", argv)[1]


def result() -> dict[str, Any]:
    end = Result("id", "sgd", 3, (0.5, 0.75), (10, 20), (1, 2), 12, 1.5, "ab", "runs/x/round-000003.npz")
    return end.json()


def test_without_flags_the_default_recipe():
    assert parse("", "digits", []) == ("digits", get_recipe("digits"))
    assert parse("", "cifar10-msdnet-sgd", []) == ("cifar10-msdnet-sgd", get_recipe("cifar10-msdnet-sgd"))


@pytest.mark.parametrize("words", [["--recipe", "digits-sgd"], ["--recipe=digits-sgd"]])
def test_a_recipe_by_name(words):
    assert parse("", "digits", words) == ("digits-sgd", get_recipe("digits-sgd"))
    name, run = parse("", "digits", ["--rounds", "7", *words, "--seed", "2"])
    assert (name, run) == ("digits-sgd", replace(get_recipe("digits-sgd"), rounds=7, seed=2))


@pytest.mark.parametrize("words", [["--recipe", "nope"], ["--recipe"], ["--recipe="]])
def test_an_unknown_recipe_lists_those_that_exist(words):
    with pytest.raises(ConfigError, match=r"recipe = .*must be one of digits, digits-sgd"):
        parse("", "digits", words)


def test_single_fields_override_the_recipe_and_nothing_else():
    base = get_recipe("digits")
    assert run_of("--optim.lr", "0.5") == replace(base, optim=replace(base.optim, lr=0.5))
    assert run_of("--method", "sgd", "--rounds=3") == replace(base, method="sgd", rounds=3)


def test_nested_fields():
    run = run_of("--model.msdnet.exits", "5", "--storage.name", "a", "--data.flip", "True")
    assert run.model.msdnet.exits == 5
    assert run.model.msdnet.base == get_recipe("digits").model.msdnet.base
    assert run.storage.name == "a"
    assert run.data.flip is True


def test_underscores_and_hyphens():
    assert run_of("--batch-size", "9").batch_size == run_of("--batch_size", "9").batch_size == 9


def test_lists():
    run = run_of("--model.msdnet.factors", "1", "2", "4", "8", "--optim.milestones", "0.3", "0.6", "0.9")
    assert run.model.msdnet.factors == (1, 2, 4, 8)
    assert run.optim.milestones == (0.3, 0.6, 0.9)


def test_none_and_optional_values():
    assert run_of("--data.train-limit", "None").data.train_limit is None
    assert run_of("--data.train-limit", "50").data.train_limit == 50
    assert run_of("--resources.gpus-per-exit", "0.5").resources.gpus_per_exit == 0.5
    assert run_of("--model.msdnet.head-channels", "None").model.msdnet.head_channels is None


@pytest.mark.parametrize("value", ["True", "False"])
def test_flags_take_a_value(value):
    assert run_of("--storage.resume", value).storage.resume is (value == "True")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr", "-1"], r"^optim\.lr = -1\.0: must be a finite number above 0$"),
        (["--rounds", "0"], r"^rounds = 0: must be a whole number of at least 1$"),
        (["--model.msdnet.factors"], r"^model\.msdnet\.factors = \(\): must be"),
        (["--optim.milestones", "2"], r"^optim\.milestones = 2\.0: must be"),
        (["--storage.name", "a/b"], r"^storage\.name = 'a/b': must be a plain folder name$"),
    ],
)
def test_a_value_that_is_not_allowed_is_a_config_error(words, message):
    with pytest.raises(ConfigError, match=message):
        run_of(*words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--optim.lr", "fast"], "--optim.lr: could not convert string to float: 'fast'"),
        (["--fusion.segments", "layer"], "'layer'"),
        (["--nonsense", "1"], "--nonsense"),
        (["--rounds"], "--rounds"),
    ],
)
def test_what_cannot_be_understood_is_a_config_error_in_plain_words(words, part, capsys):
    with pytest.raises(ConfigError) as error:
        run_of(*words)
    text = str(error.value)
    assert part in text and "\n" not in text
    assert "---" not in text and "│" not in text and "─" not in text  # the parser's box is gone
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        parse("Trains a network.", "digits", ["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Trains a network." in text
    for name in RECIPES:
        assert name in text
    assert "--optim.lr FLOAT Learning rate at the start. (default: 0.1)" in text
    assert "--rounds INT" in text and "(default: 40)" in text
    assert "Seconds after which one exit's training of one round is taken for stuck;" in text
    assert "Random crop: zero-pad the image by this many pixels on each side" in text
    assert "{softmax,sigmoid}" in text


def test_help_shows_the_chosen_recipes_values(capsys):
    with pytest.raises(SystemExit):
        parse("", "digits", ["--recipe", "cifar10-msdnet-sgd", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 300)" in text and "here cifar10-msdnet-sgd" in text


def test_main_prints_the_result_as_its_last_line(capsys):
    seen = []

    def job(argv):
        seen.append(list(argv))
        print("something before")
        return result()

    assert main(job, ["--rounds", "3"]) == 0
    assert seen == [["--rounds", "3"]]
    printed = capsys.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert last["test_accuracy"] == [0.5, 0.75]
    assert list(last)[:3] == ["run_id", "method", "rounds"]
    assert printed.err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("optim.lr = -1: must be a finite number above 0"), 2),
        (ResourceError("no node\n  can hold\n  an actor"), 2),
        (NonFiniteError("exit 2, round 7: the loss of exit 2 became nan"), 1),
        (ExitFailed(1, 7, "10.0.0.1", "gone", "allow more retries with resources.max_failures"), 1),
    ],
)
def test_main_turns_errors_into_one_line_and_an_exit_code(capsys, error, code):
    def job(argv):
        raise error

    assert main(job, []) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {' '.join(str(error).split())}\n"


def test_main_with_a_value_that_is_not_allowed(capsys):
    def job(argv):
        parse("", "digits", argv)
        return result()

    assert main(job, ["--optim.lr", "-1"]) == 2
    assert capsys.readouterr().err == "error: optim.lr = -1.0: must be a finite number above 0\n"


def test_main_when_interrupted(capsys):
    def job(argv):
        raise KeyboardInterrupt

    assert main(job, []) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("interrupted; go on with --storage.resume True")


def test_faults_in_the_program_are_not_hidden():
    def job(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main(job, [])
