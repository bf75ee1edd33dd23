"""Search spaces: the axes, the trials drawn from them, how spaces are found, and those that are shipped."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from raygf.config.recipes import get_recipe
from raygf.errors import ConfigError
from raygf.methods.registry import MERGED, ROUND_METHODS, STEP_METHODS, method_names
from raygf.sweeps import Space
from raygf.sweeps.command import check_flags, check_space, parse_sweep
from raygf.sweeps.space import (
    Choice,
    Range,
    describe_spaces,
    draw_trials,
    ends,
    grid,
    known_spaces,
    load_space,
    ranges_of,
    read_axes,
    read_axis,
)

RUN = get_recipe("digits")
SHIPPED = ("fusion_lr", "method", "fusion", "joint", "rules", "outer")
DOMAINS = [
    tune.uniform(-2.0, 3.0),
    tune.loguniform(1e-4, 10.0),
    tune.randint(2, 6),
    tune.lograndint(1, 100),
    tune.choice(["a", "b", "c"]),
    tune.choice([(0.5, 0.75), (0.3, 0.6)]),
]
RANGES = Space({"fusion.lr": tune.loguniform(0.01, 1.0), "fusion.ema": tune.uniform(0.5, 0.9)})
CHOICES = Space(
    {"fusion.segments": tune.choice(["tensor", "channel"]), "batch_size": tune.choice([8, 16, 32])}
)
VARIANTS = Space(
    {"seed": 3},
    variants=[
        {"method": "sgd", "optim.lr": tune.uniform(0.1, 0.2)},
        {"method": "cagrad", "methods.cagrad_c": 0.4},
        {"method": "metagf"},
    ],
)
MINE = '''"""Mine, in a line.

More.
"""
from ray import tune
from raygf.sweeps import Space


def mine(run):
    return Space({"optim.lr": tune.uniform(run.optim.lr, 1.0)})
'''


@pytest.mark.parametrize("domain", DOMAINS, ids=range(len(DOMAINS)))
def test_draws_grid_points_and_ends_are_values_of_the_domain(domain):
    axis = read_axis("a", domain)
    stream = np.random.default_rng(0)
    drawn = [axis.draw(stream) for _ in range(300)]
    for value in (*drawn, *axis.points(5), *axis.ends):
        assert domain.is_valid(value), value
        assert type(value) is type(axis.ends[0])
    if isinstance(axis, Choice) or (axis.whole and axis.high < 30):
        every = axis.ends if isinstance(axis, Choice) else {axis.cut(x) for x in range(30)}
        assert set(drawn) == set(every)


def test_values_are_read_as_ray_tune_takes_them_and_cut_to_the_range():
    assert read_axis("a", tune.randint(2, 5)).ends == (2, 4)  # the upper bound is left out
    assert read_axis("a", [0.5, 0.75]) == Choice(((0.5, 0.75),))
    assert read_axis("a", tune.grid_search([1, 2])) == Choice((1, 2))
    assert [Range(0.1, 0.5).cut(value) for value in (0.7, -1.0, 0.123456)] == [0.5, 0.1, 0.1235]
    assert Range(1, 9, whole=True).cut(3.6) == 4


def test_logarithmic_draws_are_uniform_in_the_logarithm_and_have_few_digits():
    axis = read_axis("a", tune.loguniform(0.01, 1.0))
    drawn = [axis.draw(np.random.default_rng(number)) for number in range(400)]
    assert 0.4 < np.mean([value < 0.1 for value in drawn]) < 0.6
    assert all(float(f"{value:.4g}") == value for value in drawn)
    assert axis.points(3) == [0.01, 0.1, 1.0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (tune.choice([]), "fusion.lr has nothing to choose from"),
        (tune.loguniform(1.0, 0.1), "fusion.lr goes from 1 to 0.1: no values"),
        (tune.randint(3, 3), "fusion.lr goes from 3 to 2"),
        (tune.randn(0.0, 1.0), "fusion.lr has no bounds"),
        (tune.quniform(0.1, 0.9, 0.1), "fusion.lr has no bounds, or steps; use"),
        (tune.sample_from(lambda spec: 1), "must be given by ray.tune's"),
        (lambda: 1, "must be given by ray.tune's"),
        ({"a": 1}, "must be given by ray.tune's"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_can_not_be_drawn_or_checked_is_refused(value, says):
    with pytest.raises(ConfigError, match=r"^space: ") as caught:
        read_axis("fusion.lr", value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "space", [Space(), Space(variants=[]), Space(variants=[{"method": "sgd"}, {}]), Space({"fusion.lr": 0.1})]
)
def test_a_space_must_have_several_runs(space):
    with pytest.raises(ConfigError, match=r"^space: it (is empty|holds one run only)"):
        read_axes(space)


def test_ranges_are_told_as_the_space_has_them():
    lr, ema = {"lr": tune.loguniform(0.01, 1)}, {"ema": tune.uniform(0.5, 0.99)}
    sizes = {"n": tune.randint(2, 5), "c": tune.choice([(1, 2), "a"])}
    told = ranges_of(read_axes(Space(variants=[{**lr, **sizes}, {**lr, **ema, "n": 7}])))
    assert told["lr"] == "log-uniform, 0.01 to 1" and told["ema"] == "uniform, 0.5 to 0.99"
    assert told["n"] == "uniform, whole, 2 to 4 | 7"
    assert told["c"] == "1 2, a"


def test_draws_depend_on_seed_and_number_alone_and_do_not_repeat_themselves():
    axes = read_axes(RANGES)
    assert draw_trials(axes, 8, 0) == draw_trials(axes, 8, 0)
    assert draw_trials(axes, 8, 0)[:3] == draw_trials(axes, 3, 0)
    assert draw_trials(axes, 8, 0) != draw_trials(axes, 8, 1)
    assert len({str(trial) for trial in draw_trials(axes, 50, 0)}) == 50
    axes = read_axes(CHOICES)
    every = grid(axes, 3)
    pairs = [(trial["fusion.segments"], trial["batch_size"]) for trial in every]
    assert pairs == [*product(["tensor", "channel"], [8, 16, 32])]
    drawn = draw_trials(axes, 4, 0)
    assert len(drawn) == 4 and all(drawn.count(trial) == 1 and trial in every for trial in drawn)
    assert sorted(map(str, draw_trials(axes, 100, 0))) == sorted(map(str, every))


def test_variants_take_turns():
    drawn = draw_trials(read_axes(VARIANTS), 9, 0)
    for first in range(0, 9, 3):
        assert {trial["method"] for trial in drawn[first : first + 3]} == {"sgd", "cagrad", "metagf"}
    assert all(trial["seed"] == 3 for trial in drawn)
    assert all(("optim.lr" in trial) == (trial["method"] == "sgd") for trial in drawn)
    assert VARIANTS.fields == ("method", "optim.lr", "seed", "methods.cagrad_c")


def test_a_grid_takes_the_ends_of_ranges_and_ends_are_those_of_every_axis():
    trials = grid(read_axes(RANGES), 3)
    assert [trial["fusion.lr"] for trial in trials] == [0.01] * 3 + [0.1] * 3 + [1.0] * 3
    assert [trial["fusion.ema"] for trial in trials] == [0.5, 0.7, 0.9] * 3
    assert [trial["method"] for trial in grid(read_axes(VARIANTS), 2)] == ["sgd", "sgd", "cagrad", "metagf"]
    for axes in (*read_axes(RANGES), *read_axes(CHOICES), *read_axes(VARIANTS)):
        trials = ends(axes)
        for name, axis in axes.items():
            assert {trial[name] for trial in trials} == set(axis.ends)
        assert len(trials) == 1 + sum(len(axis.ends) - 1 for axis in axes.values())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a folder of spaces."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune_spaces").mkdir()
    return tmp_path


def test_spaces_are_found_here_before_the_shipped_ones_in_files_and_in_modules(here, monkeypatch):
    for file in ("tune_spaces/mine.py", "elsewhere.py", "my_module_of_spaces.py"):
        (here / file).write_text(MINE.replace("def mine", f"def {Path(file).stem}"))
    (here / "tune_spaces" / "fusion.py").write_text(MINE.replace("def mine", "def fusion"))
    monkeypatch.syspath_prepend(here)
    for name in ("mine", "fusion", "elsewhere.py", "my_module_of_spaces:my_module_of_spaces"):
        assert load_space(name, RUN).variables["optim.lr"].lower == RUN.optim.lr
    assert load_space("fusion_lr", RUN).fields == ("fusion.lr", "fusion.ema", "loss.aux")
    assert "  mine       Mine, in a line." in describe_spaces().splitlines()
    sys.modules.pop("my_module_of_spaces")


def test_listing_does_not_run_the_files(here):
    (here / "tune_spaces" / "a.py").write_text('"""Fails when run."""\nraise SystemExit(9)\n')
    lines = dict(line.split(None, 1) for line in describe_spaces().splitlines())
    assert lines.keys() == known_spaces().keys()
    assert lines["a"] == "Fails when run."


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "nope",
            None,
            "'nope': there is none; choose from fusion, fusion_lr, joint, method, outer, rules, or",
        ),
        ("nope.py", None, "space = 'nope.py': there is none"),
        ("no_such_module:f", None, "space = 'no_such_module:f': can't be imported: ModuleNotFoundError"),
        ("bad", "raise ValueError('oh\\nno')", "space = 'bad': its code failed: ValueError: oh"),
        ("bad", "def other(run): ...", "bad.py must have a function bad(run)"),
        ("bad", "def bad(run): return {'optim.lr': 1}", "returned dict, not a Space"),
        ("bad", "def bad(run): raise SystemExit", "its code failed: SystemExit"),
    ],
)
def test_what_is_not_a_space_is_a_config_error_of_one_line(here, name, text, says):
    if text is not None:
        (here / "tune_spaces" / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_space(name, RUN)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def axes_of(name, *argv):
    """The axes of a space that ``check_space`` has passed."""
    command = parse_sweep("", ["--space", name, *argv])
    space = load_space(name, command.run)
    check_flags(command)
    check_space(space, command)
    return read_axes(space)


@pytest.mark.parametrize("recipe", ["digits", "cifar10-msdnet-metagf", "cifar100-vgg16-metagf"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_end_of_every_axis_of_a_shipped_space_makes_a_run(name, recipe):
    assert sum(len(ends(axes)) for axes in axes_of(name, "--recipe", recipe, "--data.val", "50")) >= 4


def test_method_covers_the_registry_each_at_settings_of_its_own():
    trials = grid(axes_of("method"), 3)
    assert sorted(trial["method"] for trial in trials) == sorted(method_names())
    assert {trial["method"] for trial in trials if "methods.cagrad_c" in trial} == {"cagrad", "delta-cagrad"}
    rates = sorted({trial["optim.lr"] for trial in trials})
    assert rates == pytest.approx([0.3 * RUN.optim.lr, RUN.optim.lr])


def test_rules_covers_all_that_merge_without_learning():
    trials = grid(axes_of("rules"), 3)
    assert len(trials) == 13 and {trial["method"] for trial in trials} == {"delta-mean", *MERGED}


def test_the_fusion_is_swept_only_where_there_is_one():
    alternatives = axes_of("joint")
    by_method = {axes["method"].ends[0]: axes for axes in alternatives}
    assert by_method.keys() == set(method_names())
    assert isinstance(by_method["metagf"]["fusion.lr"], Range)
    assert isinstance(by_method["metagf"]["fusion.segments"], Choice)
    for name in STEP_METHODS:
        assert not [field for field in by_method[name] if field.startswith(("fusion.", "loss."))]
    assert all("loss.aux" in by_method[name] for name in ROUND_METHODS)
    assert all(isinstance(axes["optim.lr"], Range) for axes in alternatives)
    for name in ("fusion_lr", "fusion", "outer"):
        with pytest.raises(ConfigError, match="learned fusion weights, which sgd does not have"):
            load_space(name, get_recipe("digits-sgd"))
