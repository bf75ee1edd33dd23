"""Annotations are what fields are checked against; configurations become plain dicts and come back; paths."""

import dataclasses
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest

from raygf.config.fields import (
    Limits,
    Section,
    check,
    flatten,
    from_dict,
    local_path,
    not_empty,
    storage_path,
    to_dict,
)
from raygf.config.run import OptimConfig, ResourceConfig, RunConfig
from raygf.errors import ConfigError

WHOLE, NUMBER, CHOICE = "a whole number of at least 0", "a finite number", "one of a, b"
COUNT, RANGE = Annotated[int, Limits(0)], Annotated[int, Limits(3, 5)]
SHARE, RATE = Annotated[float, Limits(0, 1)], Annotated[float, Limits(0, above=True)]
LIST = Annotated[tuple[RANGE, ...], not_empty]


def odd(field, value):
    if value % 2 == 0:
        raise ConfigError(f"{field} is even")


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (COUNT, (0, 10**400)),
        (RANGE, (3, 5)),
        (float, (0, -1e300, 1.5)),
        (SHARE, (0, 1.0)),
        (RATE, (1e-300,)),
        (Literal["a", "b"], ("a", "b")),
        (Literal["a", "b"] | None, ("a", None)),
        (RANGE | None, (3, None)),
        (bool, (True, False)),
        (str, ("", "x")),
        (tuple[SHARE, ...], ((), (0.5, 1))),
        (LIST, ((3, 5),)),
        (Annotated[int, odd], (1, -3)),
        (OptimConfig, (OptimConfig(),)),
    ],
)
def test_what_an_annotation_allows(hint, values):
    for value in values:
        check("f", value, hint)


@pytest.mark.parametrize(
    ("hint", "values", "allowed"),
    [
        (int, ("1", 1.0, None, True), "a whole number"),
        (COUNT, (-1, 1.0, "1", True, None, math.nan), WHOLE),
        (RANGE, (2, 6), "a whole number of at least 3 and at most 5"),
        (COUNT | None, (-1, "x"), WHOLE),
        (float, (math.nan, math.inf, -math.inf, True, None, "1", 1j), NUMBER),
        (SHARE, (2, -0.1, "x"), f"{NUMBER} at least 0 and at most 1"),
        (RATE, (0.0, -1), f"{NUMBER} above 0"),
        (Literal["a", "b"], ("c", None, ["a"]), CHOICE),
        (Literal["a", "b"] | None, ("c",), CHOICE),
        (bool, (0, 1, "True", None), "True or False"),
        (str, (3, None), "a text"),
        (Annotated[str, not_empty], ("", "  "), "a text that is not empty"),
        (LIST, (3, None, [3]), "a list of numbers"),
        (LIST, ((),), "a list that is not empty"),
    ],
)
def test_what_it_does_not_allow_is_one_line(hint, values, allowed):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            check("a.b", value, hint)
        assert str(caught.value) == f"a.b = {value!r}: must be {allowed}"


def test_entries_of_lists_and_further_functions_are_checked():
    with pytest.raises(ConfigError, match=r"^f = 6: must be a whole number of at least 3 and at most 5$"):
        check("f", (3, 6), LIST)
    with pytest.raises(ConfigError, match="f is even"):
        check("f", 2, Annotated[int, odd])


def test_a_section_checks_its_fields_under_its_name():
    @dataclass(frozen=True)
    class Part(Section, name="whole.part"):
        size: int = 0

    assert Part(3).size == 3
    with pytest.raises(ConfigError, match=r"^whole\.part\.size = 'x': must be a whole number"):
        Part("x")  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Part().size = 1  # type: ignore[misc]


def test_values_are_plain():
    values = to_dict(RunConfig())
    assert values["model"]["msdnet"]["factors"] == [1, 2, 4]
    assert values["stop_after"] is None


def test_fields_left_out_take_their_defaults():
    assert from_dict(RunConfig, {}) == RunConfig()
    run = from_dict(RunConfig, {"optim": {"lr": 0.5}})
    assert run == replace(RunConfig(), optim=OptimConfig(lr=0.5))


def test_whole_numbers_for_floats_become_floats():
    lr = from_dict(OptimConfig, {"lr": 1}).lr
    gpus = from_dict(ResourceConfig, {"gpus_per_exit": 1}).gpus_per_exit
    assert (lr, gpus) == (1.0, 1.0) and type(lr) is type(gpus) is float
    assert from_dict(ResourceConfig, {"gpus_per_exit": None}).gpus_per_exit is None
    with pytest.raises(ConfigError, match="lr = 10000"):
        from_dict(OptimConfig, {"lr": 10**400})


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"optimizer": {}}, "optimizer: no such field; known are batch_size, compute, "),
        ({"loss": {"x": 1}}, "loss.x: no such field; known are aux, aux_exits, coefficients, "),
        ({"model": {"msdnet": {"depth": 1}}}, "model.msdnet.depth: no such field; known are "),
        ({"model": {"msdnet": 3}}, "model.msdnet = 3: must be a section of fields"),
        ({"optim": {"lr": "fast"}}, "optim.lr = 'fast': must be "),
        ({"rounds": True}, "rounds = True: must be "),
        ({"optim": {"milestones": ["x"]}}, "optim.milestones = 'x': must be "),
        ({"optim": {"milestones": 0.5}}, "optim.milestones = 0.5: must be a list of numbers"),
    ],
)
def test_values_that_do_not_fit_are_named(values, start):
    with pytest.raises(ConfigError) as caught:
        from_dict(RunConfig, values)
    assert str(caught.value).startswith(start)


def test_flatten():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": [3]}}, "f": {}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}


def test_paths_are_made_absolute_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert storage_path("storage.path", "runs") == str(tmp_path / "runs")
    assert local_path("data.path", "~/set") == Path("/home/me/set")
    assert storage_path("storage.path", "s3://bucket/runs") == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("s3://bucket/set", "must be a path on this machine, not a URI"),
        ("s3:bucket/set", "a URI begins with s3://"),
        ("~no-such-user/set", "there is no such user here as ~no-such-user"),
    ],
)
def test_paths_that_are_not_on_this_machine_are_refused(path, says):
    with pytest.raises(ConfigError) as caught:
        local_path("data.path", path)
    assert str(caught.value) == f"data.path = {path!r}: {says}"
