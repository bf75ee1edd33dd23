"""Flags become a run, errors one line and an exit code, Ctrl-C an orderly end."""

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from raygf.api import recipes
from raygf.cli import command_with, interruptible, main, parse
from raygf.config.fields import flatten, to_dict
from raygf.config.recipes import RECIPES, get_recipe
from raygf.errors import ConfigError, ExitFailed, NonFiniteError, ResourceError


@pytest.mark.parametrize(
    ("words", "name", "changes"),
    [
        ([], "digits", {}),
        (["--recipe", "digits-sgd"], "digits-sgd", {}),
        (["--rounds", "7", "--recipe=digits-sgd", "--seed", "2"], "digits-sgd", {"rounds": 7, "seed": 2}),
    ],
)
def test_a_recipe_is_chosen_by_name(words, name, changes):
    assert parse("", "digits", words) == (name, replace(get_recipe(name), **changes))


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--optim.lr 0.5", {"optim.lr": 0.5}),
        ("--method sgd --rounds=3", {"method": "sgd", "rounds": 3}),
        ("--model.msdnet.exits 5 --storage.name a", {"model.msdnet.exits": 5, "storage.name": "a"}),
        ("--data.flip True --storage.resume False", {"data.flip": True, "storage.resume": False}),
        ("--batch-size 9", {"batch_size": 9}),
        ("--batch_size 9", {"batch_size": 9}),
        ("--model.msdnet.factors 1 2 4 8", {"model.msdnet.factors": [1, 2, 4, 8]}),
        ("--data.train-limit None", {"data.train_limit": None}),
        ("--data.train-limit 50", {"data.train_limit": 50}),
        ("--resources.gpus-per-exit 0.5", {"resources.gpus_per_exit": 0.5}),
    ],
)
def test_flags_override_their_fields_and_nothing_else(words, changes):
    run = parse("", "digits", words.split())[1]
    assert flatten(to_dict(run)) == flatten(to_dict(get_recipe("digits"))) | changes


@pytest.mark.parametrize(
    ("text", "words", "name", "changes"),
    [
        ("rounds: 7\noptim:\n  lr: 0.5\n", "", "digits", {"rounds": 7, "optim.lr": 0.5}),
        ("rounds: 7\n", "--rounds 8", "digits", {"rounds": 8}),
        ("recipe: digits-sgd\nseed: 2\n", "", "digits-sgd", {"seed": 2}),
        ("recipe: digits-sgd\n", "--recipe digits", "digits", {}),
        ("model: {msdnet: {factors: [1, 2, 4]}}\n", "", "digits", {"model.msdnet.factors": [1, 2, 4]}),
    ],
)
def test_a_file_overrides_the_recipe_and_flags_override_the_file(tmp_path, text, words, name, changes):
    (tmp_path / "run.yaml").write_text(text)
    found, run = parse("", "digits", ["--config", str(tmp_path / "run.yaml"), *words.split()])
    assert (found, flatten(to_dict(run))) == (name, flatten(to_dict(get_recipe(name))) | changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds: [", "can't be read: while parsing a flow node"),
        ("- 3\n", "must have fields of a run, as --print-config shows them"),
        ("ronds: 3\n", "ronds: a run has no such field; did you mean 'rounds'?"),
        ("optim: {lrr: 3}\n", "optim.lrr: a run has no such field; did you mean 'optim.lr'?"),
        ("rounds: many\n", "rounds = 'many': must be a whole number"),
        ("optim: 3\n", "optim: a run has no such field"),
        ("recipe: digts\n", "did you mean 'digits'?"),
    ],
)
def test_a_file_that_is_no_run_is_refused_by_its_name(tmp_path, text, says):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse("", "digits", ["--config", str(tmp_path / "run.yaml")])
    assert "run.yaml" in str(caught.value) and says in str(caught.value)


def test_help_shows_recipes_and_the_chosen_ones_values(capsys):
    with pytest.raises(SystemExit) as end:
        parse("Trains a network.", "digits", ["--recipe", "cifar10-msdnet-sgd", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Trains a network." in text and "here cifar10-msdnet-sgd" in text
    assert {name for name in RECIPES if f" {name}: " in text} == {*recipes("cifar10-")}
    assert "--optim.lr FLOAT Learning rate at the start. (default: 0.1)" in text
    assert "--rounds INT" in text and "(default: 300)" in text
    assert "Random crop: zero-pad the image by this many pixels on each side" in text
    assert "{softmax,sigmoid,free}" in text


def raising(error):
    def job(argv):
        raise error

    return job


def test_main_prints_the_result_as_its_last_line(capsys):
    def job(argv):
        print("something before")
        return {"argv": list(argv), "test_accuracy": (0.5, 0.75)}

    assert main(job, ["--rounds", "3"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"argv": ["--rounds", "3"], "test_accuracy": [0.5, 0.75]}
    assert err == ""


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
    assert main(raising(error), []) == code
    assert capsys.readouterr() == ("", f"error: {' '.join(str(error).split())}\n")


@pytest.mark.parametrize(
    ("command", "line"), [("", "interrupted\n"), ("a.py -r", "interrupted; resume with a.py -r\n")]
)
def test_main_names_the_command_that_resumes_what_was_interrupted(capsys, command, line):
    assert main(raising(KeyboardInterrupt(command)), []) == 130
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("", ""),
        ("--optim.lr -1 --rounds=3 --model.msdnet.factors 1 2", None),
        ("--storage.name old --rounds 3 --storage.resume=False --seed 2", "--rounds 3 --seed 2"),
        ("--tracking.uri http://me:secret@host:5000", "--tracking.uri http://me:***@host:5000"),
    ],
)
def test_the_command_to_resume_with_is_the_one_given_and_what_it_lacks(monkeypatch, given, shown):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "jobs/digits.py", *given.split()])
    words = ["python -X dev jobs/digits.py", given if shown is None else shown]
    added = "--storage.name 'my run' --storage.resume True"
    expected = " ".join(filter(None, (*words, added)))
    assert command_with({"--storage.name": "my run", "--storage.resume": "True"}) == expected


def test_main_does_not_hide_faults_of_the_program():
    with pytest.raises(ZeroDivisionError):
        main(raising(ZeroDivisionError()), [])


PROGRAM = """
import signal, sys, time
from raygf.cli import interruptible

def say(text):
    print(text, flush=True)

with interruptible(*sys.argv[1:]) as again:
    signal.signal(signal.SIGTERM, lambda *_: say("somebody else's handler"))  # as Ray's start does
    again()
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        say("cleaning up")
        sys.stdin.read()
        sys.exit(7)
"""


@pytest.mark.parametrize(
    ("first", "second", "command"),
    [
        (signal.SIGINT, None, ()),
        (signal.SIGTERM, signal.SIGINT, ()),
        (signal.SIGINT, signal.SIGTERM, ("python a.py --resume True",)),
    ],
)
def test_the_first_signal_ends_cleanly_and_the_second_at_once(first, second, command):
    pipe = subprocess.PIPE
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert program.stdout.readline() == "ready\n"
    program.send_signal(first)
    assert program.stdout.readline() == "cleaning up\n"
    if second is None:
        assert program.communicate(timeout=30) == ("", "") and program.returncode == 7
        return
    program.send_signal(second)
    assert program.wait(30) == 130
    shown = f"; resume with {command[0]}" if command else ""
    assert program.communicate() == ("", f"\ninterrupted again: stopped at once{shown}\n")


def test_handlers_are_put_back_and_other_threads_leave_them_alone():
    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def body():
        with interruptible() as again:
            again()
            seen.append(handlers())

    before, seen = handlers(), []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    with interruptible():
        assert handlers()[1] != before[1]
    assert seen == [before] and handlers() == before
