"""Every setting is checked, under its own name, and the defaults are the paper's."""

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygf.cli import parse
from raygf.config.fields import flatten, from_dict, to_dict
from raygf.config.run import (
    SOURCES,
    DataConfig,
    FusionConfig,
    LossConfig,
    MSDNetConfig,
    OptimConfig,
    ResourceConfig,
    RunConfig,
)
from raygf.errors import ConfigError


def sections(cls, where=""):
    """``cls`` and the sections in it, with what comes before their fields' names."""
    yield where, cls
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from sections(hint, f"{where}{name}.")


SECTIONS = dict(sections(RunConfig))
FIELDS = [
    (section, field.name)
    for section, cls in SECTIONS.items()
    for field in dataclasses.fields(cls)
    if f"{section}{field.name}." not in SECTIONS
]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_is_checked_and_named(section, name):
    nothing = object()
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**{name: nothing})
    assert str(caught.value).startswith(f"{section}{name} = {nothing!r}: must be ")


@pytest.mark.parametrize(
    ("section", "name", "value", "allowed"),
    [
        ("data.", "source", "mnist", "one of digits, cifar10, cifar100, parquet"),
        ("data.", "image_size", 3, "at least 4"),
        ("data.", "resize", 200, "at least data.crop = 224"),
        ("model.", "name", "", "not empty"),
        ("model.msdnet.", "channels", 65537, "at most 65536"),
        ("model.msdnet.", "factors", (), "a list that is not empty"),
        ("optim.", "lr", 0.0, "above 0"),
        ("optim.", "momentum", 1.1, "at most 1"),
        ("methods.", "dfs_beta", 1.1, "at least 0 and at most 1"),
        ("fusion.", "lr", math.nan, "finite"),
        ("fusion.", "outer_momentum", 1.0, "at most 0.9999"),
        ("resources.", "cpus_per_exit", 1e-5, "0, or at least 0.0001"),
        ("resources.", "gpus_per_exit", 1.5, "at most 1, or a whole number"),
        ("resources.", "wait_for_resources_s", 1e9, "at most 1e+08"),
        ("resources.", "exit_timeout_s", 0, "above 0"),
        ("storage.", "path", " ", "not empty"),
        ("storage.", "name", "a/b", "a plain folder name"),
        ("storage.", "name", "..", "a plain folder name"),
        ("storage.", "name", "a\nb", "a plain folder name"),
        ("storage.", "name", "é" * 101, "at most 200 bytes long"),
        ("", "batch_size", 1, "at least 2"),
        ("", "on_divergence", "skip", "one of stop, skip-round"),
    ],
)
def test_what_is_out_of_bounds_is_refused(section, name, value, allowed):
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**{name: value})
    text = str(caught.value)
    assert text.startswith(f"{section}{name} = {value!r}: must be ") and allowed in text and "\n" not in text


def test_the_exits_statistics_are_not_averaged_where_the_weights_are_none_or_the_network_goes_elsewhere():
    for changes in ({"outer": "nesterov"}, {"normalise": "free"}):
        with pytest.raises(ConfigError, match=r"^fusion\.batchnorm = 'weighted': must be recalibrated with"):
            FusionConfig(batchnorm="weighted", **changes)


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_number_has_an_upper_end(section, name):
    hint, huge = str(typing.get_type_hints(SECTIONS[section])[name]), 10**400
    if not any(kind in hint for kind in ("int", "float")):
        return
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**{name: (huge,) if "tuple" in hint else huge})
    text = str(caught.value)
    assert text.startswith(f"{section}{name} = 10000") and "… (401 characters): must be " in text
    assert "at most " in text and len(text) < 250


@pytest.mark.parametrize(
    ("cls", "fields", "says"),
    [
        (OptimConfig, {"optimizer": "adam"}, "optim.optimizer = 'adam': must be one of sgd, adamw, muon, or"),
        (OptimConfig, {"optimizer": "adamw", "carry_momentum": True}, "False with optim.optimizer = adamw"),
        (OptimConfig, {"optimizer": "muon", "momentum": 1}, "optim.momentum = 1: must be below 1 with"),
        (OptimConfig, {"optimizer": "m:o", "decay_norms": False}, "optim.decay_norms = False: must be True"),
        (LossConfig, {"criterion": "m:own", "smoothing": 0.1}, "loss.smoothing = 0.1: must be 0 with"),
        (RunConfig, {"rounds": 5, "optim": OptimConfig(warmup=5)}, "must be less than rounds = 5"),
    ],
)
def test_what_does_not_go_together_is_refused(cls, fields, says):
    with pytest.raises(ConfigError, match=says):
        cls(**fields)


def test_ends_of_ranges_are_allowed():
    OptimConfig(momentum=0, weight_decay=0, milestones=(0, 1), decay=1)
    FusionConfig(lr=0, ema=0)
    FusionConfig(ema=1)
    LossConfig(aux=0)
    RunConfig(rounds=1, batch_size=2, eval_batch_size=1, seed=0, stop_after=1)
    DataConfig(val=0, pad=0, image_size=4, per_class=1, train_limit=1, crop=4, resize=4)
    ResourceConfig(cpus_per_exit=1 / 3, gpus_per_exit=0, driver_gpus=2.0, max_failures=0, actors=1)
    MSDNetConfig(reduction=1, head_channels=None)


def test_defaults_are_the_papers():
    run = RunConfig()
    assert run.optim == OptimConfig(0.1, 0.9, 1e-4, (0.5, 0.75), 0.1, False)
    assert run.fusion == FusionConfig("tensor", "softmax", 0.1, 0.9, 1.0, "recalibrated")
    assert (run.loss.aux, run.loss.coefficients) == (0.1, "ones")
    assert (run.batch_size, run.data.pad, run.data.flip) == (64, 4, True)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
NAMES = st.text("abcXYZ 0189-_.=,'é", min_size=1, max_size=8).filter(lambda name: name.strip(". "))
OTHERS = {  # what a field allows beyond what its type says
    "storage.name": st.just("") | NAMES,
    "method": NAMES,
    "model.name": NAMES,
    "storage.path": NAMES,
    "tracking.experiment": NAMES,
    "data.source": st.sampled_from([*SOURCES, "hf:a/b", "mine:sets"]),
    "data.path": st.just("") | WORDS,
    "tracking.uri": st.just("") | WORDS,
    "model.weights": st.just("") | WORDS,
    "resources.address": st.just("") | WORDS,
    "data.crop": st.integers(4, 64),
    "loss.aux_exits": st.just("all"),
    "fusion.batchnorm": st.just("recalibrated"),
    "fusion.outer_momentum": st.floats(0, 0.99),
    "loss.criterion": st.just(""),
    "optim.optimizer": st.just("sgd"),
    "optim.schedule": st.sampled_from(["steps", "cosine", "mine:factor"]),
    "optim.warmup": st.just(0),
    "loss.smoothing": st.just(0.0) | st.floats(1e-4, 1),
    "data.transform": st.just("") | NAMES,
    "data.resize": st.integers(64, 999),
    "resources.gpus_per_exit": st.none() | st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    "resources.driver_gpus": st.none() | st.sampled_from([0.0, 0.25, 1.0, 2.0]),
}


def leaf(hint):
    """Values of one type that are allowed wherever it stands."""
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of([st.none() if part is type(None) else leaf(part) for part in typing.get_args(hint)])
    if typing.get_origin(hint) is tuple:
        return st.lists(leaf(typing.get_args(hint)[0]), min_size=1, max_size=4).map(tuple)
    return {str: st.text(), bool: st.booleans(), int: st.integers(4, 64), float: st.floats(1e-4, 1)}[hint]


def configs(cls, where=""):
    """Any ``cls`` with all its fields made up, those of its sections too."""
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        place = f"{where}{name}"
        if place in OTHERS:
            fields[name] = OTHERS[place]
        else:
            fields[name] = configs(hint, f"{place}.") if dataclasses.is_dataclass(hint) else leaf(hint)
    return st.builds(cls, **fields)


RUNS = configs(RunConfig)


def to_flags(values):
    """The flags that set every field of a configuration, which ``to_dict`` gave."""
    flags = []
    for name, value in flatten(values).items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
    return flags


@settings(deadline=None, derandomize=True, max_examples=20)
@given(RUNS)
def test_a_run_survives_json(run):
    again = from_dict(RunConfig, json.loads(json.dumps(to_dict(run))))
    assert again == run and hash(again) == hash(run)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(RUNS)
def test_a_run_survives_its_flags(run):
    assert parse("", "digits", to_flags(to_dict(run)))[1] == run
