"""docs/own.md: its module, its commands and its Python are run; what own parts get is what the page says."""

import math
import re
import shlex
import sys

import pytest
import torch
from command_lines import REPOSITORY
from runs import LOCAL, UNTRACKED

import raygf
from raygf.__main__ import as_flags
from raygf.data.augment import Augmentation
from raygf.errors import ConfigError
from raygf.launch import train_job

PAGE = (REPOSITORY / "docs" / "own.md").read_text()
MODULE, PROGRAM = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^raygf train (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The page's ``mine.py`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


def train(command, *more):
    return train_job([*as_flags(shlex.split(command), "--recipe"), *LOCAL, *UNTRACKED, *more])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_train_and_repeat_to_the_bit(command):
    result = train(command)
    assert result["rounds"] == 3 and result["test_accuracy"][-1] > 0.2  # chance is 0.1
    assert train(command, "--storage.name", "again")["weights_sha256"] == result["weights_sha256"]


def test_the_program_runs():
    exec(PROGRAM, found := {})
    assert len(found["run"].accuracies) == 2 and found["run"].config.data.source.endswith("TensorDataset()")
    assert found["again"].accuracies == found["own"].accuracies and len(found["own"].accuracies) == 3


def small(**settings):
    return raygf.train("digits", rounds=2, train_limit=48, **settings)


def test_functions_change_what_they_are_for():
    seen = []

    def schedule(round, rounds):
        seen.append((round, rounds))
        return 1.0 if round == 1 else 0.0

    def criterion(logits, labels):
        assert logits.dtype == torch.float32
        return torch.nn.functional.cross_entropy(logits, labels)

    plain = small(milestones=(1.0,))
    assert small(criterion=criterion, milestones=(1.0,)).result.weights_sha256 == plain.result.weights_sha256
    run = small(method="sgd", schedule=schedule)
    assert {*seen} == {(1, 2), (2, 2)}
    assert run.history[0]["train"] != run.history[1]["train"]


def test_a_transform_is_seeded_by_its_key_and_checked():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    darker = Augmentation(transform="mine:darker")
    first, again, other = (darker.batch(images, 0, "exit", 1, n, 0) for n in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ConfigError, match=r"must return a batch uint8 \(4, 1, 8, 8\)"):
        Augmentation(transform="torch:squeeze").batch(images, 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"transform": "mine:darkest"}, "data.transform = 'mine:darkest': can't be imported"),
        ({"criterion": "min:smoothed"}, "loss.criterion = 'min:smoothed': can't be imported"),
        ({"criterion": lambda logits, labels: logits}, "must return a scalar"),
        ({"optimizer": lambda tensors, lr: 3}, "must return a torch.optim.Optimizer"),
        ({"schedule": lambda round, rounds: math.nan}, "optim.schedule's factor = nan: must be"),
        ({"transform": lambda images: 1 / 0}, "the function failed: ZeroDivisionError"),
        ({"criterion": "mine:smoothed", "distill": True}, "must be empty with loss.distill"),
    ],
)
def test_functions_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        small(**settings)
