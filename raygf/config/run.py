"""The configuration of a run: frozen dataclasses, checked when they are built.

A recipe (``raygf.config.recipes``) returns a complete ``RunConfig``; the command line overrides single
fields. The texts under the fields are what ``--help`` shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raygf.config import fields as checks

SOURCES = ("digits", "cifar10", "cifar100", "parquet", "imagefolder", "shards")
SEGMENTS = ("tensor", "channel", "network")
NORMALISATIONS = ("softmax", "sigmoid")
BATCHNORM = ("recalibrated", "weighted")

_MOST = 1 << 16
"""Of anything that a network is made of; beyond it is a slip of the hand."""
_YEARS_S = 1e8
"""Three years in seconds: nothing waits for longer."""
_LONGEST_NAME = 200


@dataclass(frozen=True)
class DataConfig:
    """Images and labels, and how they are split and augmented."""

    source: Literal["digits", "cifar10", "cifar100", "parquet", "imagefolder", "shards"] = "digits"
    """Kind of data set. digits needs no files; parquet is a Hugging Face style set of small images, held in
    memory. Streamed from disk: imagefolder (ImageNet's layout, train/CLASS/*.JPEG and val/CLASS/*.JPEG) and
    shards (Hugging Face style Parquet files of any size)."""
    path: str = ""
    """Folder that holds the data set (digits needs none)."""
    image_size: int | None = None
    """Scale every image to this many pixels a side; by default images keep their size."""
    val: int = 0
    """Training images held out for validation, chosen by seed and never augmented."""
    test: int | None = None
    """imagefolder, shards without test images: hold out this many training images as the test set, the same
    ones whatever the seed. By default a set must bring its own."""
    per_class: int | None = None
    """Keep this many training images of every class (after the validation split); by default all."""
    train_limit: int | None = None
    """Keep this many training images in all (after the validation split); by default all."""
    pad: int = 4
    """Random crop: zero-pad the image by this many pixels on each side, then crop back. 0: no crop."""
    flip: bool = True
    """Flip half of the training images left to right."""
    crop: int = 224
    """imagefolder, shards: pixels a side of what the network sees: a random part of the image, scaled, while
    training; the centre in evaluation."""
    resize: int = 256
    """imagefolder, shards: the shorter side is scaled to this before the centre is cut out (evaluation)."""
    workers: int = 4
    """imagefolder, shards: processes that read and decode for each trainer (every exit, and the driver); 0:
    it does so itself. Their number does not change the images."""
    max_undecodable: int = 0
    """imagefolder, shards: images that may be left out of a pass because they can't be decoded; more are an
    error."""

    def __post_init__(self) -> None:
        checks.one_of("data.source", self.source, SOURCES)
        checks.text("data.path", self.path)
        checks.whole_or_none("data.image_size", self.image_size, 4)
        checks.whole("data.val", self.val, 0)
        checks.whole_or_none("data.test", self.test)
        checks.whole_or_none("data.per_class", self.per_class)
        checks.whole_or_none("data.train_limit", self.train_limit)
        checks.whole("data.pad", self.pad, 0)
        checks.flag("data.flip", self.flip)
        checks.whole("data.crop", self.crop, 4)
        checks.whole("data.resize", self.resize, 4)
        if self.resize < self.crop:
            raise checks.refuse("data.resize", self.resize, f"at least data.crop = {self.crop}")
        checks.whole("data.workers", self.workers, 0)
        checks.whole("data.max_undecodable", self.max_undecodable, 0)


@dataclass(frozen=True)
class MSDNetConfig:
    """Multi-Scale Dense Network (Huang et al., ICLR 2018), pruned "max", with bottlenecks."""

    stem: Literal["conv3", "conv7"] = "conv3"
    """First layer: conv3 for small images, conv7 (stride 2, then max pooling) for 224x224."""
    exits: int = 7
    """Number of exits."""
    base: int = 4
    """Layers before the first exit."""
    step: int = 2
    """Layers between two exits."""
    channels: int = 16
    """Channels of the finest scale after the first layer."""
    growth: int = 16
    """Channels that every layer adds at the finest scale."""
    factors: tuple[int, ...] = (1, 2, 4)
    """Width of each scale relative to the finest, one entry a scale; also the bottleneck widths."""
    reduction: float = 0.5
    """Share of the channels kept where a scale is dropped."""
    head_channels: int | None = 128
    """Channels in the classifiers; by default 128. None: as many as come in (ImageNet)."""

    def __post_init__(self) -> None:
        checks.one_of("model.msdnet.stem", self.stem, ("conv3", "conv7"))
        for name in ("exits", "base", "step", "channels", "growth"):
            checks.whole(f"model.msdnet.{name}", getattr(self, name), 1)
            checks.at_most(f"model.msdnet.{name}", getattr(self, name), _MOST)
        checks.several("model.msdnet.factors", self.factors)
        if not self.factors:
            raise checks.refuse("model.msdnet.factors", self.factors, "at least one whole number")
        for factor in self.factors:
            checks.whole("model.msdnet.factors", factor, 1)
            checks.at_most("model.msdnet.factors", factor, _MOST)
        checks.number("model.msdnet.reduction", self.reduction, 0, 1, open_low=True)
        checks.whole_or_none("model.msdnet.head_channels", self.head_channels)


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = "msdnet"
    """msdnet, vgg16-sdn, resnet56-sdn, wideresnet32-4-sdn or mobilenet-sdn; torchvision's by name with exits
    at shares of their operations or at nodes, such as torchvision:resnet18@0.3,0.6,layer4.0; or
    package.module:function of your own, called with an InputSpec."""
    msdnet: MSDNetConfig = field(default_factory=MSDNetConfig)
    weights: str = ""
    """File with pretrained weights (torchvision's networks); empty: start from random weights."""

    def __post_init__(self) -> None:
        checks.text("model.name", self.name, empty=False)
        checks.text("model.weights", self.weights)


@dataclass(frozen=True)
class OptimConfig:
    """SGD on the network's weights."""

    lr: float = 0.1
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 1e-4
    """L2 weight decay."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of all rounds after which both learning rates (weights and fusion) are multiplied by decay."""
    decay: float = 0.1
    """Factor at each milestone."""
    carry_momentum: bool = False
    """Meta-GF: carry every exit's momentum from round to round instead of starting from zero."""

    def __post_init__(self) -> None:
        checks.number("optim.lr", self.lr, 0, open_low=True)
        checks.number("optim.momentum", self.momentum, 0, 1)
        checks.number("optim.weight_decay", self.weight_decay, 0)
        checks.several("optim.milestones", self.milestones)
        for share in self.milestones:
            checks.number("optim.milestones", share, 0, 1)
        checks.number("optim.decay", self.decay, 0, 1, open_low=True)
        checks.flag("optim.carry_momentum", self.carry_momentum)


@dataclass(frozen=True)
class LossConfig:
    """How the exits' cross-entropies are weighted while they train."""

    aux: float = 0.1
    """Meta-GF: weight λ of the other exits' losses while one exit trains."""
    coefficients: Literal["ones", "sdn"] = "ones"
    """ones: every exit counts alike. sdn: inner exits ramp from 0.01 over the run (SDN networks)."""
    distill: bool = False
    """Knowledge distillation: exits also learn from the deepest exit's softened output."""
    gamma: float = 0.9
    """Distillation: share γ of the softened output in an exit's loss."""
    temperature: float = 3.0
    """Distillation: temperature T."""

    def __post_init__(self) -> None:
        checks.number("loss.aux", self.aux, 0)
        checks.one_of("loss.coefficients", self.coefficients, ("ones", "sdn"))
        checks.flag("loss.distill", self.distill)
        checks.number("loss.gamma", self.gamma, 0, 1)
        checks.number("loss.temperature", self.temperature, 0, open_low=True)


@dataclass(frozen=True)
class MethodConfig:
    """Settings of single methods."""

    cagrad_c: float = 0.4
    """CAGrad: radius around the mean gradient, relative to its length."""
    dfs_beta: float = 0.5
    """Deep Feature Surgery: share β of the channels at an exit's branch that train for deeper exits."""

    def __post_init__(self) -> None:
        checks.number("methods.cagrad_c", self.cagrad_c, 0)
        checks.number("methods.dfs_beta", self.dfs_beta, 0, 1)


@dataclass(frozen=True)
class FusionConfig:
    """Meta-GF's learned fusion weights."""

    segments: Literal["tensor", "channel", "network"] = "tensor"
    """What gets one weight per exit: a parameter tensor, an output channel, or the whole network."""
    normalise: Literal["softmax", "sigmoid"] = "softmax"
    """softmax as in the paper; sigmoid divides each exit's sigmoid by their sum."""
    lr: float = 0.1
    """Adam's learning rate on the fusion weights at the start."""
    ema: float = 0.9
    """Share of the old fusion weights that is carried to the next round."""
    epsilon: float = 1.0
    """Step length ε along the fused delta."""
    batchnorm: Literal["recalibrated", "weighted"] = "recalibrated"
    """BatchNorm statistics: gathered during the fusion pass, or the exits' own averaged by fusion weight."""

    def __post_init__(self) -> None:
        checks.one_of("fusion.segments", self.segments, SEGMENTS)
        checks.one_of("fusion.normalise", self.normalise, NORMALISATIONS)
        checks.number("fusion.lr", self.lr, 0)
        checks.number("fusion.ema", self.ema, 0, 1)
        checks.number("fusion.epsilon", self.epsilon, 0, open_low=True)
        checks.one_of("fusion.batchnorm", self.batchnorm, BATCHNORM)


@dataclass(frozen=True)
class ComputeConfig:
    """Device and number formats; "auto" picks what is fastest on the device and keeps the accuracy."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; weights are always float32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Layout of images and features."""

    def __post_init__(self) -> None:
        checks.one_of("compute.device", self.device, ("auto", "cpu", "cuda"))
        checks.one_of("compute.precision", self.precision, ("auto", "fp32", "bf16"))
        checks.one_of("compute.memory_format", self.memory_format, ("auto", "contiguous", "channels_last"))


@dataclass(frozen=True)
class ResourceConfig:
    """Who trains the exits, and with what."""

    executor: Literal["ray", "local"] = "ray"
    """ray: actors, on a cluster or on this machine (Ray is started if need be). local: this process."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a running local one, else a new one. local: always
    start a new one on this machine."""
    actors: int | None = None
    """Exit actors; by default one an exit, fewer where the cluster is smaller."""
    cpus_per_exit: float = 1.0
    """CPUs of each exit actor; also its number of torch threads."""
    gpus_per_exit: float | None = None
    """GPUs of each exit actor (0.5: two actors share one); by default 1 where the cluster has any, else 0."""
    driver_cpus: float = 1.0
    """CPUs of the driver, which fits the fusion weights; also its number of torch threads. With workers set:
    of each worker."""
    driver_gpus: float | None = None
    """GPUs of the driver; by default as gpus_per_exit. With workers set: of each worker; by default 1, or a
    share of one where the cluster has fewer than workers."""
    workers: int | None = None
    """Methods within a step: workers that train together under Ray Train, each on its share of every batch;
    by default there are none, and the driver trains alone. Their number changes results by rounding only, but
    for BatchNorm, which normalises each share by itself."""
    wait_for_resources_s: float = 0.0
    """Seconds to wait for nodes that can hold the actors, when the run starts (autoscaled clusters) and when
    nodes are lost, before giving up."""
    exit_timeout_s: float | None = None
    """Seconds after which one exit's training of one round is taken for stuck; by default five times the
    slowest so far, at least 60, and 14400 (four hours) until one has ended."""
    max_failures: int = 3
    """Lost exit trainings that are retried in one round before the run stops; all that one lost node takes
    with it count once."""
    max_driver_restarts: int = 3
    """Times that a lost driver (or group of workers) is started again without a round done in between."""

    def __post_init__(self) -> None:
        checks.one_of("resources.executor", self.executor, ("ray", "local"))
        checks.text("resources.address", self.address)
        checks.whole_or_none("resources.actors", self.actors)
        checks.whole_or_none("resources.workers", self.workers)
        checks.amount("resources.cpus_per_exit", self.cpus_per_exit)
        checks.amount("resources.driver_cpus", self.driver_cpus)
        for name in ("gpus_per_exit", "driver_gpus"):
            if getattr(self, name) is not None:
                checks.amount(f"resources.{name}", getattr(self, name), whole_above_one=True)
        checks.number("resources.wait_for_resources_s", self.wait_for_resources_s, 0, _YEARS_S)
        if self.exit_timeout_s is not None:
            checks.number("resources.exit_timeout_s", self.exit_timeout_s, 0, _YEARS_S, open_low=True)
        checks.whole("resources.max_failures", self.max_failures, 0)
        checks.whole("resources.max_driver_restarts", self.max_driver_restarts, 0)


@dataclass(frozen=True)
class StorageConfig:
    """Where checkpoints go."""

    path: str = "runs"
    """Folder or URI (s3://…, gs://…) that every node can reach; the run gets a folder of its own in it."""
    name: str = ""
    """Name of the run; by default the recipe and the time."""
    keep: int = 2
    """Newest checkpoints kept."""
    resume: bool = False
    """Go on from the newest whole checkpoint of the run --storage.name."""
    retries: int = 5
    """Times that a checkpoint which could not be written is tried again, after 1, 2, 4 … seconds."""

    def __post_init__(self) -> None:
        checks.text("storage.path", self.path, empty=False)
        checks.text("storage.name", self.name)
        if "/" in self.name or self.name in (".", ".."):
            raise checks.refuse("storage.name", self.name, "a plain folder name")
        if len(self.name.encode()) > _LONGEST_NAME:
            raise checks.refuse("storage.name", self.name, f"at most {_LONGEST_NAME} bytes long")
        checks.whole("storage.keep", self.keep, 1)
        checks.flag("storage.resume", self.resume)
        checks.whole("storage.retries", self.retries, 0)


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """Log the run to MLflow."""
    uri: str = ""
    """Server or database; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder."""
    experiment: str = "raygf"
    """Experiment that the run is filed under."""

    def __post_init__(self) -> None:
        checks.flag("tracking.enabled", self.enabled)
        checks.text("tracking.uri", self.uri)
        checks.text("tracking.experiment", self.experiment, empty=False)


@dataclass(frozen=True)
class RunConfig:
    """One complete run."""

    method: str = "metagf"
    """Training method. On expected gradients: metagf, delta-mean, delta-pcgrad and so on. Within a step: sgd,
    ge, boostnet, dfs, pcgrad, cagrad, mgda, upgrad, imtlg, alignedmtl, nashmtl, fairgrad, gradvac, config."""
    rounds: int = 40
    """Rounds of training. A round is one epoch: of every exit plus the fusion pass (metagf), or joint."""
    batch_size: int = 64
    """Images a training step."""
    eval_batch_size: int = 256
    """Images a step of evaluation."""
    seed: int = 0
    """Seed of every random draw: weights, split, order, augmentation."""
    stop_after: int | None = None
    """Stop after this round, to be resumed later; the schedule still counts all rounds."""
    on_divergence: Literal["stop", "skip-round"] = "stop"
    """When a loss or weight becomes NaN or infinite. stop: end the run, its last checkpoint stands.
    skip-round: leave the network as it was before the round and go on with the next one."""
    max_skipped_rounds: int = 3
    """skip-round: rounds in a row that may be skipped before the run stops."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    methods: MethodConfig = field(default_factory=MethodConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        checks.text("method", self.method, empty=False)
        checks.whole("rounds", self.rounds, 1)
        checks.whole("batch_size", self.batch_size, 2)
        checks.whole("eval_batch_size", self.eval_batch_size, 1)
        checks.whole("seed", self.seed, 0)
        checks.whole_or_none("stop_after", self.stop_after)
        checks.one_of("on_divergence", self.on_divergence, ("stop", "skip-round"))
        checks.whole("max_skipped_rounds", self.max_skipped_rounds, 1)
