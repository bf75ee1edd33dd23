"""The table of experiments behind docs/results.md: network x data x method x comparison x seed.

Comparisons are never mixed: all methods at equal *epochs* (rounds, as the paper has it); at equal *compute*,
that of Meta-GF's rounds in operations; at equal *steps* in sequence, which is what n devices take the same
time for; and *long* training, until joint SGD gains little from more. A method's learning rate is the one of
three that gave the best validation accuracy in shorter trials.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Literal, NamedTuple

from small_networks import MSDNET, VGG

from raygf.config.fields import override
from raygf.config.recipes import get_recipe
from raygf.config.run import (
    ComputeConfig,
    DataConfig,
    FusionConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ResourceConfig,
    RunConfig,
)
from raygf.data.base import InputSpec
from raygf.methods.base import JointSGD
from raygf.methods.registry import training_operations
from raygf.models.build import build_model
from raygf.models.costs import measure_costs

Row = Mapping[str, str]
"""A line of the table of results, by column."""

TRIED = (0.05, 0.1, 0.2)
"""Learning rates of the trials."""
TRIAL_SEED, TRIAL_ROUNDS, TRIAL_IMAGES = 100, 10, 1500
LONG = 7
"""Times the usual rounds: what is long training."""


@dataclass(frozen=True)
class Network:
    """A network, what it is trained on, and what else is the paper's for its kind: a run of joint SGD."""

    title: str
    run: RunConfig
    classes: int = 10
    rates: str = ""
    """The network whose trials give the learning rates; by default its own."""


HERE = ResourceConfig("local")
Precision = Literal["auto", "fp32", "bf16"]


def _small(model: ModelConfig, loss: LossConfig, fusion: FusionConfig, precision: Precision) -> RunConfig:
    """On some images of CIFAR-10, in one process."""
    return RunConfig(
        data=DataConfig("parquet", val=1000),
        model=model,
        optim=OptimConfig(weight_decay=5e-4),
        loss=loss,
        fusion=fusion,
        compute=ComputeConfig("cpu", precision),
        resources=HERE,
    )


PACKAGED = {
    "rounds": 25,
    "data.source": "parquet",
    "data.val": 2000,
    "data.train_limit": 48_000,
    "data.augment": "none",
    "data.erasing": 0.0,
    "loss.smoothing": 0.0,
    "optim.warmup": 2,
    "optim.ema": 2.0,
    "optim.weight_decay": 5e-4,
    "model.msdnet.stem": "conv7",
    "model.msdnet.exits": 5,
    "model.msdnet.base": 2,
    "model.msdnet.step": 1,
    "model.msdnet.channels": 32,
    "model.msdnet.growth": 24,
    "model.msdnet.factors": (1, 2),
    "model.msdnet.head_channels": 64,
    "resources.executor": "local",
}
"""What makes of the modern recipe the network that comes with raygf."""
SMALL_VGG = _small(VGG, LossConfig(coefficients="sdn"), FusionConfig(segments="channel"), "auto")
NETWORKS = {
    "vgg": Network("small VGG-SDN", SMALL_VGG),
    "msdnet": Network("small MSDNet", _small(MSDNET, LossConfig(), FusionConfig(), "fp32")),
    "vgg-noisy": Network(
        "small VGG-SDN, wrong labels",
        override(SMALL_VGG, {"data.source": "noisy_labels:cifar10"}),
        rates="vgg",
    ),
    "digits": Network("the digits' MSDNet", replace(get_recipe("digits"), resources=HERE)),
    "packaged": Network(
        "the network in raygf/serving/cifar10", override(get_recipe("cifar10-msdnet-modern"), PACKAGED)
    ),
    "vgg16": Network("VGG-16-SDN, CIFAR-10", get_recipe("cifar10-vgg16-sgd")),
    "resnet56": Network("ResNet-56-SDN, CIFAR-10", get_recipe("cifar10-resnet56-sgd")),
    "msdnet7": Network("MSDNet, CIFAR-10", get_recipe("cifar10-msdnet-sgd")),
    "vgg16-100": Network("VGG-16-SDN, CIFAR-100", get_recipe("cifar100-vgg16-sgd"), classes=100),
    "resnet56-100": Network("ResNet-56-SDN, CIFAR-100", get_recipe("cifar100-resnet56-sgd"), classes=100),
    "msdnet7-100": Network("MSDNet, CIFAR-100", get_recipe("cifar100-msdnet-sgd"), classes=100),
}
SMALL = "vgg", "msdnet"
"""Those that the tables of real images are about."""
PAPER = "vgg16", "resnet56", "msdnet7", "vgg16-100", "resnet56-100", "msdnet7-100"
"""Those of the paper's Tables 3, 4 and 1."""
SCALES = {"small": (SMALL, 1500), "paper": (PAPER, 45_000)}
"""Networks and training images: what two processor cores do, and what takes GPUs."""
TRIED_ON = *SMALL, "vgg-noisy"
"""Those whose rounds and learning rates are found here; others have their recipe's."""
ROUNDS = {300: 140, 1500: 20, 5000: 10}
"""Rounds of the small networks at equal epochs, by training images."""


class Method(NamedTuple):
    """What is compared; ``lr``: its rate, or the method whose rate it takes; by default that of trials."""

    title: str
    name: str
    settings: Mapping[str, Any] = {}
    lr: str | float = ""


PART, STEPS = "fusion.images", "round_steps"
"""Settings that are shares, of the training images and of an epoch's steps; rounds are the more."""
PREFIX, OUTER, ADAMW = {"loss.aux_exits": "none"}, {"fusion.outer_lr": 0.1}, {"optim.weight_decay": 0.05}
MODERN = {
    "optim.schedule": "cosine",
    "optim.warmup": 5,
    "optim.decay_norms": False,
    "optim.ema": 3.0,
    "loss.smoothing": 0.1,
    "data.augment": "trivialaugment",
    "data.erasing": 0.1,
}
METHODS = {
    "sgd": Method("joint SGD", "sgd"),
    "ge": Method("Gradient Equilibrium", "ge"),
    "pcgrad": Method("PCGrad", "pcgrad"),
    "cagrad": Method("CAGrad", "cagrad"),
    "upgrad": Method("UPGrad", "upgrad"),
    "dfs": Method("Deep Feature Surgery", "dfs"),
    "kd": Method("joint SGD, distilled", "sgd", {"loss.distill": True}),
    "mean": Method("mean of the deltas", "delta-mean", PREFIX),
    "metagf": Method("Meta-GF", "metagf"),
    "prefix": Method("Meta-GF, parts of the network", "metagf", PREFIX),
    "metagf-kd": Method("Meta-GF, distilled", "metagf", {"loss.distill": True}),
    "carry": Method("Meta-GF, parts, momentum carried", "metagf", {**PREFIX, "optim.carry_momentum": True}),
}
"""The methods of the tables, by key."""
ABLATIONS = {
    "segments-tensor": Method("a weight per tensor", "metagf", {"fusion.segments": "tensor"}, "metagf"),
    "segments-network": Method("one weight", "metagf", {"fusion.segments": "network"}, "metagf"),
    "aux-shallower": Method(
        "trains with shallower exits", "metagf", {"loss.aux_exits": "shallower"}, "metagf"
    ),
    "bn-weighted": Method("BatchNorm averaged", "metagf", {"fusion.batchnorm": "weighted"}, "metagf"),
    "tenth": Method("a tenth of the images in the pass", "metagf", {PART: 0.1}, "metagf"),
    "prefix-tenth": Method("parts, a tenth in the pass", "metagf", {**PREFIX, PART: 0.1}, "metagf"),
    "block": Method("a weight per block", "metagf", {"fusion.segments": "block"}, "metagf"),
    "free": Method("free weights", "metagf", {"fusion.normalise": "free", "fusion.lr": 0.001}, "metagf"),
    "val": Method("fitted on validation images", "metagf", {"fusion.objective": "val"}, "metagf"),
    "entropy": Method("fitted on entropy", "metagf", {"fusion.objective": "entropy"}, "metagf"),
    "momentum": Method("outer momentum, 0.1", "metagf", {**OUTER, "fusion.outer": "momentum"}, "metagf"),
    "nesterov": Method("outer Nesterov, 0.1", "metagf", {**OUTER, "fusion.outer": "nesterov"}, "metagf"),
    "nesterov-0.7": Method("outer Nesterov, 0.7", "metagf", {"fusion.outer": "nesterov"}, "metagf"),
    "adam": Method("outer Adam, 0.01", "metagf", {"fusion.outer": "adam"}, "metagf"),
    "half": Method("rounds of half an epoch", "metagf", {STEPS: 0.5}, "metagf"),
    "quarter": Method("rounds of a quarter", "metagf", {STEPS: 0.25}, "metagf"),
    "ema": Method("weights averaged over 2 rounds", "metagf", {"optim.ema": 2.0}, "metagf"),
    "ties": Method("TIES", "delta-ties", {}, "metagf"),
    "dare": Method("DARE", "delta-dare", {}, "metagf"),
    "fisher": Method("Fisher", "delta-fisher", {}, "metagf"),
    "iso": Method("isotropic", "delta-iso", {}, "metagf"),
}
"""One setting each that differs from "metagf", and the two cheapest together."""
JOINT = {
    "sgd-ema": Method("weights averaged over 8 epochs", "sgd", {"optim.ema": 8.0}, "sgd"),
    "cosine": Method("cosine", "sgd", {"optim.schedule": "cosine"}, "sgd"),
    "smoothing": Method("label smoothing 0.1", "sgd", {"loss.smoothing": 0.1}, "sgd"),
    "adamw": Method("AdamW, 0.003", "sgd", {**ADAMW, "optim.optimizer": "adamw"}, 0.003),
    "muon": Method("Muon, 0.003", "sgd", {**ADAMW, "optim.optimizer": "muon"}, 0.003),
    "trivial": Method("TrivialAugment", "sgd", {"data.augment": "trivialaugment"}, "sgd"),
    "modern": Method("joint SGD, modern settings", "sgd", MODERN, "sgd"),
    "ge-modern": Method("Gradient Equilibrium, modern settings", "ge", MODERN, "ge"),
    "mean-modern": Method("mean of the deltas, modern settings", "delta-mean", {**PREFIX, **MODERN}, "mean"),
    "prefix-modern": Method("Meta-GF, parts, modern settings", "metagf", {**PREFIX, **MODERN}, "prefix"),
}
"""Settings of training, each compared with "sgd"; of merged ones, too."""
ALL = {**METHODS, **ABLATIONS, **JOINT}
COMPARISONS = {
    "epochs": "equal epochs",
    "compute": "equal compute",
    "steps": "equal steps in sequence",
    "long": "long training",
    "longer": "twice as long",
    "longest": "four times as long",
}


@dataclass(frozen=True)
class Experiment:
    """One run; ``images``: to train on."""

    network: str
    images: int
    method: str
    seed: int
    lr: float
    rounds: int

    @property
    def name(self) -> str:
        """Of its run, and of its line."""
        parts = (self.network, self.images, self.method, f"r{self.rounds}", f"lr{self.lr:g}", f"s{self.seed}")
        return "-".join(map(str, parts))

    @classmethod
    def named(cls, name: str) -> Experiment:
        """The one that is called ``name``. Raises ValueError: there can be none."""
        networks, methods = (
            "|".join(map(re.escape, sorted(known, key=len, reverse=True))) for known in (NETWORKS, ALL)
        )
        found = re.fullmatch(rf"({networks})-(\d+)-({methods})-r(\d+)-lr(.+)-s(\d+)", name)
        if not found:
            raise ValueError(f"{name!r} is no experiment; --list names them")
        network, images, method, rounds, lr, seed = found.groups()
        return cls(network, int(images), method, int(seed), float(lr), int(rounds))

    def config(self, data: str, storage: str) -> RunConfig:
        """The whole run, on the images in the folder ``data``."""
        network, (_, method, settings, _) = NETWORKS[self.network], ALL[self.method]
        fixed = {
            "method": method,
            "rounds": self.rounds,
            "seed": self.seed,
            "optim.lr": self.lr,
            "data.path": data,
            "storage.path": storage,
            "storage.name": self.name,
            "storage.keep": 1,
            "tracking.enabled": False,
        }
        if self.network in TRIED_ON:
            fixed["data.per_class"] = self.images // network.classes
        epoch = math.ceil(self.images / network.run.batch_size)
        whole = {PART: self.images, STEPS: epoch}
        counted = {name: round(share * whole[name]) for name, share in settings.items() if name in whole}
        return override(network.run, {**fixed, **settings, **counted})

    def passes(self) -> float:
        """Training passes that it takes."""
        return self.rounds * round_cost(self)

    def steps(self) -> int:
        """Steps one after the other, with a device for every exit."""
        return self.rounds * round_steps(self)


@cache
def costs(network: str) -> tuple[int, ...]:
    """Operations up to every exit."""
    run = NETWORKS[network].run
    size = (1, 8, 8) if run.data.source == "digits" else (3, 32, 32)
    spec = InputSpec(*size, NETWORKS[network].classes)
    built = build_model(run.model, spec, 0)
    return tuple(cost.operations for cost in measure_costs(built, spec))


def round_cost(experiment: Experiment) -> float:
    """Training passes of one round."""
    forward, many = costs(experiment.network), 1000
    counts = {"train": experiment.images, "val": NETWORKS[experiment.network].run.data.val, "test": 0}
    spent = training_operations(experiment.config("", "runs"), forward, counts, many)
    return spent / many / (JointSGD.operations(forward) * experiment.images)


def round_steps(experiment: Experiment) -> int:
    """Steps of one round in sequence: training, and after expected gradients what fits the fusion weights."""
    config = experiment.config("", "runs")
    trained = config.round_steps or math.ceil(experiment.images / config.batch_size)
    fitted = math.ceil(config.fusion.images / config.batch_size) if config.fusion.images else trained
    return trained + (fitted if config.method == "metagf" else 0)


def at(experiment: Experiment, comparison: str) -> Experiment:
    """``experiment`` with the rounds that it has in ``comparison``."""
    network, images = experiment.network, experiment.images
    usual = ROUNDS[images] if network in TRIED_ON else NETWORKS[network].run.rounds
    paper = replace(experiment, method="metagf", rounds=usual)
    usual = round(usual / ALL[experiment.method].settings.get(STEPS, 1))
    experiment = replace(experiment, rounds=usual)
    rounds = {
        "epochs": usual,
        "compute": paper.passes() / round_cost(experiment),
        "steps": paper.steps() / round_steps(experiment),
        "long": LONG * usual,
        "longer": 2 * LONG * usual,
        "longest": 4 * LONG * usual,
    }[comparison]
    return replace(experiment, rounds=max(1, round(rounds)))


@dataclass(frozen=True)
class Plan:
    """What is to be run, in an order that makes a whole table of one seed first."""

    images: int
    networks: tuple[str, ...]
    methods: tuple[str, ...]
    comparisons: tuple[str, ...]
    seeds: tuple[int, ...]

    def experiments(self, rows: Sequence[Row]) -> Iterator[Experiment]:
        """All whose learning rate is known, each once; ``rows``: what has been run."""
        yield from dict.fromkeys(self._in_order(rows))

    def _in_order(self, rows: Sequence[Row]) -> Iterator[Experiment]:
        for network in self.networks:
            yield from (trial for method in self.methods for trial in self.trials(network, method))
            yield from self._of(network, self.seeds[0], rows)
        for seed in self.seeds[1:]:
            for network in self.networks:
                yield from self._of(network, seed, rows)

    def trials(self, network: str, method: str) -> list[Experiment]:
        """The trials of learning rates, none where it is fixed."""
        rate = ALL[method].lr
        rates = TRIED if network in TRIED_ON and not isinstance(rate, float) else ()
        key, network = str(rate or method), NETWORKS[network].rates or network
        return [Experiment(network, TRIAL_IMAGES, key, TRIAL_SEED, lr, TRIAL_ROUNDS) for lr in rates]

    def _of(self, network: str, seed: int, rows: Sequence[Row]) -> Iterator[Experiment]:
        """All methods and comparisons of one network and seed."""
        for comparison, method in product(self.comparisons, self.methods):
            lr = self.best_lr(network, method, rows)
            if lr is not None:
                yield at(Experiment(network, self.images, method, seed, lr, rounds=1), comparison)

    def best_lr(self, network: str, method: str, rows: Sequence[Row]) -> float | None:
        """Of the trial with the best mean validation accuracy; None before all are done."""
        fixed = ALL[method].lr
        if isinstance(fixed, float) or network not in TRIED_ON:
            return fixed if isinstance(fixed, float) else NETWORKS[network].run.optim.lr
        done = {row["name"]: row for row in rows}
        trials = self.trials(network, method)
        if any(trial.name not in done for trial in trials):
            return None
        return max(trials, key=lambda trial: float(done[trial.name]["val_mean"])).lr
