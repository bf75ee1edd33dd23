"""Finding spaces by name, path or module, and listing them without running their code."""

from __future__ import annotations

import sys

import pytest

from raygf.config.recipes import get_recipe
from raygf.errors import ConfigError
from raygf.sweep.space import describe_spaces, known_spaces, load_space

RUN = get_recipe("digits")
GOOD = '''"""Mine, in a line.

More.
"""
from ray import tune
from raygf.sweep import Space


def mine(run):
    return Space({"optim.lr": tune.uniform(run.optim.lr, 1.0)})
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune_spaces").mkdir()
    return tmp_path


def test_shipped_spaces_are_found_from_anywhere(here):
    assert {"fusion_lr", "method", "fusion", "joint"} <= known_spaces().keys()
    assert load_space("fusion_lr", RUN).fields == ("fusion.lr", "fusion.ema", "loss.aux")


def test_a_file_of_ones_own_is_a_space(here):
    (here / "tune_spaces" / "mine.py").write_text(GOOD)
    space = load_space("mine", RUN)
    assert space.fields == ("optim.lr",)
    assert space.variables["optim.lr"].lower == RUN.optim.lr
    assert "  mine       Mine, in a line." in describe_spaces().splitlines()


def test_ones_own_file_counts_before_a_shipped_one(here):
    (here / "tune_spaces" / "fusion.py").write_text(GOOD.replace("mine", "fusion"))
    assert load_space("fusion", RUN).fields == ("optim.lr",)


def test_a_file_anywhere_and_a_function_in_a_module(here, monkeypatch):
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "mine.py").write_text(GOOD)
    assert load_space("elsewhere/mine.py", RUN).fields == ("optim.lr",)
    (here / "my_module_of_spaces.py").write_text(GOOD)
    monkeypatch.syspath_prepend(here)
    assert load_space("my_module_of_spaces:mine", RUN).fields == ("optim.lr",)
    sys.modules.pop("my_module_of_spaces")


def test_listing_does_not_run_the_files(here):
    folder = here / "tune_spaces"
    (folder / "a.py").write_text('"""Fails when run."""\nraise SystemExit(9)\n')
    (folder / "b.py").write_text("x = 1\n")
    (folder / "c.py").write_text("not python at all")
    lines = describe_spaces().splitlines()
    assert "  a          Fails when run." in lines
    assert "  b          (has no description)" in lines
    assert "  c          (can't be read: SyntaxError)" in lines
    assert len(lines) == len(known_spaces())


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "nope",
            None,
            "space = 'nope': there is none; choose from fusion, fusion_lr, joint, method, or name",
        ),
        ("nope.py", None, "space = 'nope.py': there is none"),
        ("no_such_module:f", None, "space = 'no_such_module:f': can't be imported: ModuleNotFoundError"),
        ("bad", "raise ValueError('oh\\nno')", "space = 'bad': can't be imported: ValueError: oh"),
        ("bad", "def other(run): ...", "bad.py must have a function bad(run)"),
        ("bad", "def bad(run): return {'optim.lr': 1}", "returned dict, not a Space"),
        ("bad", "def bad(run): return 1 / 0", "its function failed: ZeroDivisionError: division by zero"),
        ("bad", "def bad(): ...", "its function failed: TypeError"),
    ],
)
def test_what_is_not_a_space_is_a_config_error_of_one_line(here, name, text, says):
    if text is not None:
        (here / "tune_spaces" / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_space(name, RUN)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
