"""What is refused before anything starts."""

from __future__ import annotations

import pytest
from ray import tune

from raygf.errors import ConfigError
from raygf.sweep import Space
from raygf.sweep.command import parse_sweep
from raygf.sweep.prepare import check_flags, check_search, check_space

GOOD = {"fusion.lr": tune.loguniform(0.01, 1.0)}


def command(*argv):
    return parse_sweep("", argv)


def test_a_good_space_has_axes():
    ((axes),) = check_space(Space(GOOD), command())
    assert list(axes) == ["fusion.lr"]
    check_flags(command())


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (Space({"fusion.lrr": tune.uniform(0, 1)}), "fusion.lrr: a run has no such field"),
        (Space({"fusion.lr": tune.uniform(-1.0, 1.0)}), "fusion.lr = -1.0: must be"),
        (Space({"fusion.ema": tune.uniform(0.5, 1.5)}), "fusion.ema = 1.5: must be"),
        (Space({"fusion.segments": tune.choice(["tensor", "galaxy"])}), "fusion.segments = 'galaxy'"),
        (Space({"method": tune.choice(["sgd", "sgdd"])}), "method = 'sgdd': must be one of metagf"),
        (
            Space({"rounds": tune.randint(1, 9)}),
            "rounds can't be swept: every trial gets as many training passes",
        ),
        (Space({"model.msdnet.exits": tune.randint(2, 5)}), "model.msdnet.exits can't be swept"),
        (Space({"data.val": tune.choice([10, 20])}), "data.val can't be swept"),
        (Space({"resources.actors": tune.choice([1, 2])}), "resources.actors can't be swept"),
        (Space({"storage.keep": tune.choice([1, 2])}), "storage.keep can't be swept"),
        (Space(GOOD, metric="test_accuracy/average"), "metric = 'test_accuracy/average'"),
        (Space(GOOD, mode="most"), "mode = 'most'"),
        (Space(), "it is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spaces_that_contradict_a_run(space, says):
    with pytest.raises(ConfigError) as caught:
        check_space(space, command())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--fusion.lr", "--fusion.lr=0.3"])
def test_a_field_can_not_be_swept_and_fixed(flag):
    argv = (flag, "0.3") if "=" not in flag else (flag,)
    says = r"fusion\.lr is swept by 'fusion_lr' and also fixed by --fusion\.lr: leave one of them out"
    with pytest.raises(ConfigError, match=says):
        check_space(Space(GOOD), command(*argv))
    with pytest.raises(ConfigError, match="batch_size is swept"):
        check_space(Space({"batch_size": tune.choice([8, 16])}), command("--batch-size", "8"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--resources.executor", "local"], "resources.executor = 'local': sweeps need Ray"),
        (["--resources.workers", "2"], "resources.workers = 2: "),
        (["--stop-after", "3"], "stop_after = 3: "),
        (["--storage.resume", "True", "--storage.name", "x"], "resume a sweep with --resume"),
        (["--data.val", "0"], "data.val = 0: trials are compared by validation images"),
        (["--recipe", "imagenet-msdnet-metagf", "--data.val", "0"], "data.val = 0"),
        (["--search", "grid", "--trials", "4"], "trials = 4: a grid has as many trials as points"),
        (["--search", "optuna", "--scheduler", "pbt"], "search = 'optuna': pbt changes settings itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flags_that_do_not_go_with_a_sweep(argv, says):
    with pytest.raises(ConfigError) as caught:
        check_flags(command(*argv))
    assert says in str(caught.value)


def test_optuna_that_is_not_installed(monkeypatch):
    check_search("optuna")
    check_search("random")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Optuna is not installed: pip install 'raygf\[sweep\]'"):
        check_search("optuna")
    check_search("random")
