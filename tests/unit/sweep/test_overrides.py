from __future__ import annotations

from dataclasses import replace

import pytest

from raygf.cli import parse
from raygf.config.recipes import get_recipe
from raygf.errors import ConfigError
from raygf.sweep.plan import flag_of, flags_for, override

RUN = get_recipe("digits")


def test_fields_are_set_by_their_dotted_names_and_nothing_else_changes():
    made = override(RUN, {"fusion.lr": 0.5, "batch_size": 8, "model.msdnet.growth": 4})
    model = replace(RUN.model, msdnet=replace(RUN.model.msdnet, growth=4))
    assert made == replace(RUN, batch_size=8, fusion=replace(RUN.fusion, lr=0.5), model=model)
    assert override(RUN, {}) == RUN


def test_lists_and_whole_numbers_become_what_the_field_has():
    made = override(RUN, {"optim.milestones": (0.3, 0.6), "optim.lr": 1})
    assert made.optim.milestones == (0.3, 0.6)
    assert override(RUN, {"optim.milestones": [0.3]}).optim.milestones == (0.3,)
    assert isinstance(made.optim.lr, float)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"fusion.lrr": 0.1}, "space: fusion.lrr: a run has no such field"),
        ({"lr": 0.1}, "space: lr: a run has no such field; there is optim.lr and fusion.lr"),
        ({"fusion": 0.1}, "space: fusion: a run has no such field"),
        ({"fusion.lr.high": 0.1}, "space: fusion.lr.high: a run has no such field"),
        ({"fusion.lr": -1.0}, "fusion.lr = -1.0: must be a finite number of at least 0"),
        (
            {"fusion.segments": "galaxy"},
            "fusion.segments = 'galaxy': must be one of tensor, channel, network",
        ),
        ({"batch_size": 1}, "batch_size = 1: must be a whole number of at least 2"),
    ],
    ids=str,
)
def test_unknown_fields_and_refused_values(values, says):
    with pytest.raises(ConfigError) as caught:
        override(RUN, values)
    assert says.replace("a finite number of", "a finite number") in str(caught.value)


def test_flags_set_the_same_run_on_the_command_line():
    values = {
        "fusion.lr": 0.0316,
        "optim.milestones": (0.3, 0.6),
        "optim.carry_momentum": True,
        "method": "sgd",
    }
    flags = flags_for(values)
    assert flags.startswith("--fusion.lr 0.0316 --optim.milestones 0.3 0.6 --optim.carry-momentum True")
    assert parse("", "digits", flags.split())[1] == override(RUN, values)
    assert flag_of("resources.cpus_per_exit") == "--resources.cpus-per-exit"
