from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from raygf.config import run as module
from raygf.config.run import (
    ComputeConfig,
    DataConfig,
    FusionConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    MSDNetConfig,
    OptimConfig,
    ResourceConfig,
    RunConfig,
    StorageConfig,
    TrackingConfig,
)
from raygf.errors import ConfigError

CLASSES = {
    "data": DataConfig,
    "model": ModelConfig,
    "model.msdnet": MSDNetConfig,
    "optim": OptimConfig,
    "loss": LossConfig,
    "fusion": FusionConfig,
    "methods": MethodConfig,
    "compute": ComputeConfig,
    "resources": ResourceConfig,
    "storage": StorageConfig,
    "tracking": TrackingConfig,
    "": RunConfig,
}

BAD = [
    ("data", "source", "mnist", "one of digits, cifar10, cifar100, parquet"),
    ("data", "path", None, "a text"),
    ("data", "image_size", 3, "at least 4"),
    ("data", "val", -1, "at least 0"),
    ("data", "per_class", 0, "at least 1"),
    ("data", "train_limit", 0, "at least 1"),
    ("data", "pad", 1.5, "a whole number"),
    ("data", "flip", 1, "True or False"),
    ("data", "test", 0, "at least 1"),
    ("data", "crop", 3, "at least 4"),
    ("data", "resize", 200, "at least data.crop = 224"),
    ("data", "workers", -1, "at least 0"),
    ("data", "max_undecodable", -1, "at least 0"),
    ("model", "name", "", "not empty"),
    ("model.msdnet", "stem", "conv5", "one of conv3, conv7"),
    ("model.msdnet", "exits", 0, "at least 1"),
    ("model.msdnet", "base", 0, "at least 1"),
    ("model.msdnet", "step", 0, "at least 1"),
    ("model.msdnet", "channels", -4, "at least 1"),
    ("model.msdnet", "growth", True, "a whole number"),
    ("model.msdnet", "factors", (), "at least one whole number"),
    ("model.msdnet", "reduction", 0.0, "above 0 and at most 1"),
    ("model.msdnet", "reduction", 1.5, "above 0 and at most 1"),
    ("model.msdnet", "head_channels", 0, "at least 1"),
    ("optim", "lr", 0.0, "above 0"),
    ("optim", "lr", math.inf, "finite"),
    ("optim", "momentum", 1.1, "at most 1"),
    ("optim", "weight_decay", -1e-4, "at least 0"),
    ("optim", "decay", 0, "above 0"),
    ("optim", "carry_momentum", "yes", "True or False"),
    ("loss", "aux", -0.1, "at least 0"),
    ("loss", "coefficients", "twos", "one of ones, sdn"),
    ("fusion", "segments", "layer", "one of tensor, channel, network"),
    ("fusion", "normalise", "none", "one of softmax, sigmoid"),
    ("fusion", "lr", math.nan, "finite"),
    ("fusion", "ema", 1.01, "at most 1"),
    ("fusion", "epsilon", 0, "above 0"),
    ("fusion", "batchnorm", "last", "one of recalibrated, weighted"),
    ("compute", "device", "tpu", "one of auto, cpu, cuda"),
    ("compute", "precision", "fp16", "one of auto, fp32, bf16"),
    ("compute", "memory_format", "nhwc", "one of auto, contiguous, channels_last"),
    ("resources", "executor", "slurm", "one of ray, local"),
    ("resources", "address", None, "a text"),
    ("resources", "actors", 0, "at least 1"),
    ("resources", "workers", 0, "at least 1"),
    ("resources", "cpus_per_exit", -1, "at least 0"),
    ("resources", "gpus_per_exit", -0.5, "at least 0"),
    ("resources", "driver_cpus", -1, "at least 0"),
    ("resources", "driver_gpus", "one", "finite number"),
    ("resources", "wait_for_resources_s", -1, "at least 0"),
    ("resources", "exit_timeout_s", 0, "above 0"),
    ("resources", "max_failures", -1, "at least 0"),
    ("resources", "max_driver_restarts", 0.5, "at least 0"),
    ("storage", "path", " ", "not empty"),
    ("storage", "name", "a/b", "a plain folder name"),
    ("storage", "name", "..", "a plain folder name"),
    ("storage", "keep", 0, "at least 1"),
    ("storage", "resume", None, "True or False"),
    ("storage", "retries", -1, "at least 0"),
    ("tracking", "enabled", "on", "True or False"),
    ("tracking", "uri", 3, "a text"),
    ("tracking", "experiment", "", "not empty"),
    ("model", "weights", 3, "a text"),
    ("loss", "distill", 1, "True or False"),
    ("loss", "gamma", 1.5, "at most 1"),
    ("loss", "temperature", 0, "above 0"),
    ("methods", "cagrad_c", -0.1, "at least 0"),
    ("methods", "dfs_beta", 1.1, "at least 0 and at most 1"),
    ("", "method", "", "not empty"),
    ("", "rounds", 0, "at least 1"),
    ("", "batch_size", 1, "at least 2"),
    ("", "eval_batch_size", 0, "at least 1"),
    ("", "seed", -1, "at least 0"),
    ("", "stop_after", 0, "at least 1"),
    ("", "on_divergence", "skip", "one of stop, skip-round"),
    ("", "max_skipped_rounds", 0, "at least 1"),
]


@pytest.mark.parametrize(("section", "name", "value", "allowed"), BAD)
def test_a_bad_value_is_refused_with_field_value_and_what_is_allowed(section, name, value, allowed):
    with pytest.raises(ConfigError) as error:
        CLASSES[section](**{name: value})
    field = f"{section}.{name}" if section else name
    text = str(error.value)
    assert text.startswith(f"{field} = {value!r}: must be ")
    assert allowed in text and "\n" not in text


def test_a_bad_entry_of_a_list_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.msdnet\.factors = 0: must be"):
        MSDNetConfig(factors=(1, 0))
    with pytest.raises(ConfigError, match=r"^optim\.milestones = 1\.5: must be .* at most 1"):
        OptimConfig(milestones=(0.5, 1.5))


def test_every_field_is_checked():
    """A new field needs a check and a row above."""
    covered = {(section, name) for section, name, _, _ in BAD} | {("optim", "milestones")}
    for section, cls in CLASSES.items():
        for field in dataclasses.fields(cls):
            nested = field.name in CLASSES or f"{section}.{field.name}" in CLASSES
            assert nested or (section, field.name) in covered, f"{section}.{field.name}"


@pytest.mark.parametrize("cls", CLASSES.values())
def test_frozen(cls):
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(cls)[0].name, 1)


def test_equal_values_are_equal_and_hash_alike():
    assert RunConfig() == RunConfig() and hash(RunConfig()) == hash(RunConfig())
    assert RunConfig(seed=1) != RunConfig()


def test_ends_of_ranges_are_allowed():
    OptimConfig(momentum=0, weight_decay=0, milestones=(0, 1), decay=1)
    FusionConfig(lr=0, ema=0)
    FusionConfig(ema=1)
    LossConfig(aux=0)
    RunConfig(rounds=1, batch_size=2, eval_batch_size=1, seed=0, stop_after=1)
    DataConfig(val=0, pad=0, image_size=4, per_class=1, train_limit=1)
    ResourceConfig(cpus_per_exit=0, gpus_per_exit=0, driver_gpus=0, max_failures=0, actors=1)
    MSDNetConfig(reduction=1, head_channels=None)


def test_defaults_are_the_papers():
    run = RunConfig()
    assert (run.optim.lr, run.optim.momentum, run.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (run.optim.milestones, run.optim.decay) == ((0.5, 0.75), 0.1)
    assert not run.optim.carry_momentum
    assert (run.fusion.lr, run.fusion.ema, run.fusion.epsilon) == (0.1, 0.9, 1.0)
    assert (run.fusion.segments, run.fusion.normalise, run.fusion.batchnorm) == (
        "tensor",
        "softmax",
        "recalibrated",
    )
    assert (run.loss.aux, run.loss.coefficients) == (0.1, "ones")
    assert (run.batch_size, run.data.pad, run.data.flip) == (64, 4, True)


@pytest.mark.parametrize(
    ("cls", "name", "names"),
    [
        (DataConfig, "source", "SOURCES"),
        (FusionConfig, "segments", "SEGMENTS"),
        (FusionConfig, "normalise", "NORMALISATIONS"),
        (FusionConfig, "batchnorm", "BATCHNORM"),
    ],
)
def test_what_help_offers_is_what_is_accepted(cls, name, names):
    assert typing.get_args(typing.get_type_hints(cls)[name]) == getattr(module, names)
