"""The configuration of a run: frozen dataclasses, checked when they are built.

A recipe (``raygf.config.recipes``) returns a complete ``RunConfig``; the command line overrides single
fields. The texts under the fields are what ``--help`` shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from raygf.config.fields import Limits, Section, not_empty, refuse

_YEARS_S = 1e8
"""Three years in seconds: nothing waits for longer."""
_LEAST_SHARE = 1e-4
"""The smallest share of a CPU or GPU that Ray counts."""


def _countable(field: str, value: float) -> None:
    """A number of CPUs or GPUs as Ray takes it."""
    if 0 < value < _LEAST_SHARE:
        raise refuse(field, value, f"0, or at least {_LEAST_SHARE:g}")


def _share_or_whole(field: str, value: float) -> None:
    """Several actors may share one GPU, but none gets one and a half."""
    if value > 1 and value != int(value):
        raise refuse(field, value, "at most 1, or a whole number")


def _folder_name(field: str, value: str) -> None:
    if "/" in value or value in (".", "..") or not value.isprintable():
        raise refuse(field, value, "a plain folder name")
    if len(value.encode()) > 200:
        raise refuse(field, value, "at most 200 bytes long")


SOURCES = ("digits", "cifar10", "cifar100", "parquet", "imagefolder", "shards")


def _or_own(*names: str) -> Callable[[str, str], None]:
    """Annotation of a text that is one of ``names``, or names a function of the user's own."""

    def check(field: str, value: str) -> None:
        if value not in names and not value.partition(":")[2]:
            allowed = f'one of {", ".join(names)}, or "package.module:function" of your own'
            raise refuse(field, value, allowed, names)

    return check


# Every number has an upper end: what exceeds it is a slip of the finger, and would fail late and obscurely.
MILLION = 1_000_000
Natural = Annotated[int, Limits(0, MILLION)]
Count = Annotated[int, Limits(1, MILLION)]
Images = Annotated[int, Limits(1, 1000 * MILLION)]
Pixels = Annotated[int, Limits(4, 100_000)]
Size = Annotated[int, Limits(1, 1 << 16)]  # of parts of a network
Processes = Annotated[int, Limits(1, 10_000)]
NotNegative = Annotated[float, Limits(0, 1000)]
Positive = Annotated[float, Limits(0, 1000, above=True)]
Share = Annotated[float, Limits(0, 1)]
PositiveShare = Annotated[float, Limits(0, 1, above=True)]
Cpus = Annotated[float, Limits(0, 10_000), _countable]
Gpus = Annotated[float, Limits(0, 10_000), _countable, _share_or_whole]
Name = Annotated[str, not_empty]

Segmentation = Literal["tensor", "channel", "block", "network"]
Normalisation = Literal["softmax", "sigmoid", "free"]
Objective = Literal["train", "val", "entropy"]
Outer = Literal["none", "momentum", "nesterov", "adam"]
AuxExits = Literal["all", "shallower", "none"]
BatchNormStatistics = Literal["recalibrated", "weighted"]
SEGMENTS: tuple[str, ...] = get_args(Segmentation)
BATCHNORM: tuple[str, ...] = get_args(BatchNormStatistics)
Policy = Literal["confidence", "margin", "entropy", "patience"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("steps", "cosine")


@dataclass(frozen=True)
class DataConfig(Section, name="data"):
    """Images and labels, and how they are split and augmented."""

    source: Annotated[str, _or_own(*SOURCES, "hf:NAME")] = "digits"
    """digits (needs no files), cifar10, cifar100, parquet (a Hugging Face style set of small images, held in
    memory). Streamed from disk: imagefolder (ImageNet's layout, train/CLASS/*.JPEG and val/CLASS/*.JPEG) and
    shards (Hugging Face style Parquet files of any size). Held in memory: hf:NAME, a set of the Hugging Face
    Hub (pip install datasets); package.module:function of your own, called with this section, returns two
    map-style torch data sets of (image, class): to train on, and to test on."""
    path: str = ""
    """Folder that holds the data set (digits needs none)."""
    image_size: Pixels | None = None
    """Scale every image to this many pixels a side; by default images keep their size."""
    val: Annotated[int, Limits(0, 1000 * MILLION)] = 0
    """Training images held out for validation, chosen by seed and never augmented."""
    test: Images | None = None
    """imagefolder, shards, parquet without test images: hold out this many training images as the test set,
    the same ones whatever the seed. By default a set must bring its own."""
    per_class: Images | None = None
    """Keep this many training images of every class (after the validation split); by default all."""
    train_limit: Images | None = None
    """Keep this many training images in all (after the validation split); by default all."""
    pad: Annotated[int, Limits(0, 100_000)] = 4
    """Random crop: zero-pad the image by this many pixels on each side, then crop back. 0: no crop."""
    flip: bool = True
    """Flip half of the training images left to right."""
    augment: Literal["none", "randaugment", "trivialaugment"] = "none"
    """After crop and flip: torchvision's RandAugment (two operations of strength 9 of 30) or TrivialAugment
    (one of any strength), drawn for every training image."""
    erasing: Share = 0.0
    """Probability that a rectangle of a training image, 2 to 33 % of it, is erased after that."""
    mixup: NotNegative = 0.0
    """MixUp's α: every training batch is mixed with itself by a share from Beta(α, α). 0: it is not."""
    cutmix: NotNegative = 0.0
    """CutMix's α: the same with a rectangle of the images. With both, one is drawn for every batch."""
    transform: str = ""
    """package.module:function of your own that changes a batch of training images, uint8 (B, C, H, W), after
    all of these but mixup and cutmix. What it draws from torch's global generator is seeded by run, round,
    exit and batch."""
    crop: Pixels = 224
    """imagefolder, shards: pixels a side of what the network sees: a random part of the image, scaled, while
    training; the centre in evaluation."""
    resize: Pixels = 256
    """imagefolder, shards: the shorter side is scaled to this before the centre is cut out (evaluation)."""
    workers: Annotated[int, Limits(0, 10_000)] = 4
    """imagefolder, shards: processes that read and decode for each trainer (every exit, and the driver); 0:
    it does so itself. Their number does not change the images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize < self.crop:
            raise refuse("data.resize", self.resize, f"at least data.crop = {self.crop}")


@dataclass(frozen=True)
class MSDNetConfig(Section, name="model.msdnet"):
    """Multi-Scale Dense Network (Huang et al., ICLR 2018), pruned "max", with bottlenecks."""

    stem: Literal["conv3", "conv7"] = "conv3"
    """First layer: conv3 for small images, conv7 (stride 2, then max pooling) for 224x224."""
    exits: Size = 7
    """Number of exits."""
    base: Size = 4
    """Layers before the first exit."""
    step: Size = 2
    """Layers between two exits."""
    channels: Size = 16
    """Channels of the finest scale after the first layer."""
    growth: Size = 16
    """Channels that every layer adds at the finest scale."""
    factors: Annotated[tuple[Size, ...], not_empty] = (1, 2, 4)
    """Width of each scale relative to the finest, one entry a scale; also the bottleneck widths."""
    reduction: PositiveShare = 0.5
    """Share of the channels kept where a scale is dropped."""
    head_channels: Size | None = 128
    """Channels in the classifiers; by default 128. None: as many as come in (ImageNet)."""


@dataclass(frozen=True)
class ModelConfig(Section, name="model"):
    """The network."""

    name: Name = "msdnet"
    """msdnet, vgg16-sdn, resnet56-sdn, wideresnet32-4-sdn or mobilenet-sdn; torchvision's and timm's by name
    with exits at shares of their operations or at nodes: torchvision:resnet18@0.3,0.6,layer4.0,
    timm:convnext_atto@0.5; or package.module:function of your own, called with an InputSpec."""
    msdnet: MSDNetConfig = field(default_factory=MSDNetConfig)
    weights: str = ""
    """Start from these weights: a file with the state dict of the network (.pt, .safetensors), or of one of
    torchvision or timm without exits; a run's folder or checkpoint (.npz). By default they are drawn."""
    freeze: bool = False
    """Train the exits' classifiers alone: the backbone keeps its weights and BatchNorm statistics.
    (training_passes and training_operations count as if all were trained.)"""


@dataclass(frozen=True)
class OptimConfig(Section, name="optim"):
    """What the network's weights are trained with."""

    lr: Positive = 0.1
    """Learning rate at the start."""
    momentum: Share = 0.9
    """Momentum; AdamW's β1."""
    weight_decay: NotNegative = 1e-4
    """Weight decay: L2 with sgd, decoupled with adamw and muon (0.05 is usual there)."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """steps: shares of all rounds after which both learning rates (weights and fusion) fall."""
    decay: PositiveShare = 0.1
    """steps: their factor at each milestone."""
    carry_momentum: bool = False
    """Meta-GF: carry every exit's momentum from round to round instead of starting from zero."""
    schedule: Annotated[str, _or_own(*SCHEDULES)] = "steps"
    """steps at the milestones, or cosine, towards zero; or package.module:function of your own, from the
    round (from 1) and the number of rounds to the factor of both learning rates."""
    optimizer: Annotated[str, _or_own(*OPTIMIZERS)] = "sgd"
    """sgd, adamw, or muon (matrices and kernels by Muon, the rest by AdamW); or package.module:function of
    your own, from a list of flat tensors and the learning rate to a torch.optim.Optimizer, made every round.
    Exits' trainings start each of them anew."""
    warmup: Natural = 0
    """Rounds of linear warm-up, w, to the full learning rates: they have 1/(w + 1), 2/(w + 1) … of them."""
    decay_norms: bool = True
    """False: no weight decay on what is neither matrix nor kernel, as biases and BatchNorm's scales."""
    ema: NotNegative = 0.0
    """Horizon, in rounds, of an exponential moving average of the weights, which is evaluated, exported and
    loaded in their place; training goes on from the weights themselves. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.carry_momentum and self.optimizer != "sgd":
            raise refuse("optim.carry_momentum", True, f"False with optim.optimizer = {self.optimizer}")
        if self.momentum == 1 and self.optimizer in ("adamw", "muon"):
            raise refuse("optim.momentum", 1, f"below 1 with optim.optimizer = {self.optimizer}")
        if not self.decay_norms and self.optimizer not in OPTIMIZERS:
            raise refuse("optim.decay_norms", False, "True with an optimizer of your own, which has its own")


@dataclass(frozen=True)
class LossConfig(Section, name="loss"):
    """How the exits' cross-entropies are weighted while they train."""

    aux: NotNegative = 0.1
    """Meta-GF: weight λ of the other exits' losses while one exit trains, relative to its own."""
    coefficients: Literal["ones", "sdn", "last"] = "ones"
    """ones: every exit counts alike. sdn: inner exits ramp from 0.01 over the run (SDN networks). last: the
    deepest exit alone, for a backbone that another run starts from (model.weights)."""
    distill: bool = False
    """Knowledge distillation: exits also learn from the deepest exit's softened output."""
    gamma: Share = 0.9
    """Distillation: share γ of the softened output in an exit's loss."""
    temperature: Positive = 3.0
    """Distillation: temperature T."""
    kd_reduction: Literal["batchmean", "mean"] = "batchmean"
    """Distillation: batchmean, Hinton's form: KL as a mean over images. mean: also divided by the number of
    classes, as in the Meta-GF program (Table 5)."""
    aux_exits: AuxExits = "all"
    """Meta-GF: which other exits' losses an exit trains on. all: as in the paper; the whole network runs,
    also with aux = 0. shallower, none: an exit runs and updates only what its output (and the shallower
    ones') depends on, and a round costs less."""
    criterion: str = ""
    """In place of cross-entropy while training: package.module:function of your own, from an exit's logits
    (B, classes), float32, and labels (B,), or with MixUp and CutMix (B, classes), to its loss, a scalar."""
    smoothing: Share = 0.0
    """Label smoothing: share of a label's probability that is spread over all classes while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill and self.criterion:
            raise refuse("loss.criterion", self.criterion, "empty with loss.distill, which has its own")
        if self.smoothing and self.criterion:
            raise refuse("loss.smoothing", self.smoothing, "0 with a loss.criterion of your own")
        if self.distill and self.aux_exits != "all":
            raise refuse("loss.aux_exits", self.aux_exits, "all with loss.distill: the deepest exit teaches")


@dataclass(frozen=True)
class MethodConfig(Section, name="methods"):
    """Settings of single methods."""

    cagrad_c: Annotated[float, Limits(0, 10)] = 0.4
    """CAGrad: radius around the mean gradient, relative to its length."""
    dfs_beta: Share = 0.5
    """Deep Feature Surgery: share β of the channels at an exit's branch that train for deeper exits."""
    ties_keep: PositiveShare = 0.2
    """delta-ties: share of every exit's delta that is kept, the largest by magnitude."""
    dare_keep: PositiveShare = 0.5
    """delta-dare: probability that an element of a delta is kept."""


@dataclass(frozen=True)
class FusionConfig(Section, name="fusion"):
    """Meta-GF's learned fusion weights."""

    segments: Segmentation = "tensor"
    """What gets one weight per exit: a parameter tensor, an output channel, a block (what lies between two
    exits, and each head; in a network of your own that has no stages its top modules), or all of it."""
    normalise: Normalisation = "softmax"
    """softmax as in the paper; sigmoid divides each exit's sigmoid by their sum; free: the weights themselves
    are fitted, from the plain mean on, whatever they add up to (as AdaMerging's, whose lr is 0.001)."""
    lr: NotNegative = 0.1
    """Adam's learning rate on the fusion weights at the start."""
    ema: Share = 0.9
    """Share of the old fusion weights that is carried to the next round."""
    epsilon: Positive = 1.0
    """Step length ε along the fused delta."""
    batchnorm: BatchNormStatistics = "recalibrated"
    """BatchNorm statistics: gathered during the fusion pass, or the exits' own averaged by fusion weight."""
    images: Annotated[int, Limits(2, 1000 * MILLION)] | None = None
    """Images of the fusion pass, drawn anew in every round; by default all, or round_steps batches."""
    shards: Processes = 1
    """Divide every batch of the fusion pass among this many exit actors, so that they don't wait for the
    driver. Their number changes results by rounding only, but for BatchNorm, which normalises each share by
    itself; how many actors there are changes nothing."""
    objective: Objective = "train"
    """What the fusion pass runs over and minimises. train: the exits' losses, on training images; val: on
    validation images as they are, which then don't tell any more how good the network is on others; entropy:
    the entropy of the outputs on training images, without labels (AdaMerging)."""
    outer: Outer = "none"
    """What is made of the merged delta. none: it is added. momentum (FedAvgM), nesterov (DiLoCo), adam
    (FedAdam): one step of this optimiser along it, which keeps its moments from round to round; the images of
    the pass then go forward once more, for BatchNorm's statistics at the new weights."""
    outer_lr: Positive | None = None
    """Its learning rate, the same in all rounds; by default 1 (momentum), 0.7 (nesterov) or 0.01 (adam)."""
    outer_momentum: Annotated[float, Limits(0, 0.9999)] = 0.9
    """Its momentum; β₁ of adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batchnorm == "weighted" and self.normalise == "free":
            raise refuse("fusion.batchnorm", "weighted", "recalibrated with normalise = 'free': no averages")
        if self.batchnorm == "weighted" and self.outer != "none":
            raise refuse("fusion.batchnorm", "weighted", "recalibrated with outer: the exits were elsewhere")

    @property
    def split(self) -> Literal["train", "val"]:
        """The images that the fusion pass runs over."""
        return "val" if self.objective == "val" else "train"


@dataclass(frozen=True)
class ComputeConfig(Section, name="compute"):
    """Device and number formats; "auto" picks what is fastest on the device and keeps the accuracy."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; weights are always float32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Layout of images and features."""


@dataclass(frozen=True)
class ResourceConfig(Section, name="resources"):
    """Who trains the exits, and with what."""

    executor: Literal["ray", "local"] = "ray"
    """ray: actors, on a cluster or on this machine (Ray is started if need be). local: this process."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a running local one, else a new one. local: always
    start a new one on this machine."""
    actors: Processes | None = None
    """Exit actors; by default one an exit, fewer where the cluster is smaller."""
    cpus_per_exit: Cpus = 1.0
    """CPUs of each exit actor; also its number of torch threads."""
    gpus_per_exit: Gpus | None = None
    """GPUs of each exit actor (0.5: two actors share one); by default 1 where the cluster has any, else 0."""
    driver_cpus: Cpus = 1.0
    """CPUs of the driver, which fits the fusion weights; also its number of torch threads. With workers set:
    of each worker."""
    driver_gpus: Gpus | None = None
    """GPUs of the driver; by default as gpus_per_exit. With workers set: of each worker; by default 1, or a
    share of one where the cluster has fewer than workers."""
    workers: Processes | None = None
    """Methods within a step: workers that train together under Ray Train, each on its share of every batch;
    by default there are none, and the driver trains alone. Their number changes results by rounding only, but
    for BatchNorm, which normalises each share by itself."""
    replicas: Annotated[tuple[Processes, ...], not_empty] = (1,)
    """Actors that share one exit's training, each on a share of every batch: a number for all exits, or one
    an exit, shallow to deep. Results change as with fusion.shards."""
    wait_for_resources_s: Annotated[float, Limits(0, _YEARS_S)] = 0.0
    """Seconds to wait for nodes that can hold the actors, when the run starts (autoscaled clusters) and when
    nodes are lost, before giving up."""
    exit_timeout_s: Annotated[float, Limits(0, _YEARS_S, above=True)] | None = None
    """Seconds after which one exit's training of one round is taken for stuck; by default five times the
    slowest so far, at least 60, and 14400 (four hours) until one has ended."""
    max_failures: Natural = 3
    """Times that an exit's training, if it is lost, is retried in one round before the run stops."""
    max_driver_restarts: Natural = 3
    """Times that a lost driver (or group of workers) is started again without a round done in between."""

    def replicas_of(self, exit: int) -> int:
        """How many actors share the training of ``exit`` (from 0)."""
        return self.replicas[exit if len(self.replicas) > 1 else 0]

    def seats(self, exits: int) -> int:
        """Actors that are at work when all of so many ``exits`` train at once."""
        return sum(self.replicas_of(exit) for exit in range(exits))


@dataclass(frozen=True)
class StorageConfig(Section, name="storage"):
    """Where checkpoints go."""

    path: Name = "runs"
    """Folder or URI (s3://…, gs://…) that every node can reach; the run gets a folder of its own in it."""
    name: Annotated[str, _folder_name] = ""
    """Name of the run; by default the recipe (if it was changed: data, network, method) and the time."""
    keep: Count = 2
    """Newest checkpoints kept."""
    resume: bool = False
    """Resume from the newest whole checkpoint of the run --storage.name."""
    retries: Annotated[int, Limits(0, 10_000)] = 5
    """Times that a checkpoint which could not be written is tried again, after 1, 2, 4 … seconds."""


@dataclass(frozen=True)
class TrackingConfig(Section, name="tracking"):
    """MLflow, and trackers beside it."""

    enabled: bool = True
    """Log the run to MLflow."""
    uri: str = ""
    """Server or database; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder."""
    experiment: Name = "raygf"
    """Experiment that the run is filed under."""
    system_metrics: bool = False
    """Also log the load of the machine that the job itself runs on, every 10 seconds: CPU, memory, disk,
    network and, with nvidia-ml-py installed, GPUs. (Ray's dashboard has that of a cluster's nodes.)"""
    also: tuple[str, ...] = ()
    """Trackers beside MLflow: tensorboard writes to the folder tensorboard of the run's folder;
    package.module:function of your own returns one (on_start, on_round, on_end)."""


@dataclass(frozen=True)
class RunConfig(Section):
    """One complete run.

    >>> import raygf
    >>> run = raygf.RunConfig(method="sgd", rounds=3)
    >>> run.optim.lr, run.model.name
    (0.1, 'msdnet')
    """

    method: Name = "metagf"
    """Training method. On expected gradients: metagf; delta-mean, -ties, -dare, -fisher, -iso, -pcgrad and so
    on; fusion:package.module:function of your own. Within a step: sgd, ge, boostnet, dfs, pcgrad, cagrad,
    mgda, upgrad, imtlg, alignedmtl, nashmtl, fairgrad, gradvac, config."""
    rounds: Count = 40
    """Rounds of training. A round is one epoch: of every exit plus the fusion pass (metagf), or joint."""
    round_steps: Count | None = None
    """Steps of a round, of every exit and of the fusion pass; by default an epoch. With fewer, exits merge
    more often. A round goes on in the epoch where the last one stopped, and may be longer than one."""
    batch_size: Annotated[int, Limits(2, 1000 * MILLION)] = 64
    """Images a training step."""
    eval_batch_size: Images = 256
    """Images a step of evaluation."""
    seed: Annotated[int, Limits(0, 1 << 128)] = 0
    """Seed of every random draw: weights, split, order, augmentation."""
    policy: Policy = "confidence"
    """When an image may leave early, once the network is used: its likeliest class is probable enough (the
    paper), or enough more so than the next (margin); low entropy; several exits in a row agree (patience)."""
    stop_after: Count | None = None
    """Stop after this round, to be resumed later; the schedule still counts all rounds."""
    on_divergence: Literal["stop", "skip-round"] = "stop"
    """When a loss or weight becomes NaN or infinite. stop: end the run, its last checkpoint stands.
    skip-round: leave the network as it was before the round and continue with the next one."""
    max_skipped_rounds: Count = 3
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
        super().__post_init__()
        if self.optim.warmup >= self.rounds:
            raise refuse("optim.warmup", self.optim.warmup, f"less than rounds = {self.rounds}")
