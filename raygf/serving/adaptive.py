"""A trained multi-exit network that stops where it is sure enough, image by image.

The batch shrinks at every exit: only the images that are still undecided go on to the next stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raygf.compute import Compute, make_repeatable, resolve_compute
from raygf.config.run import ComputeConfig
from raygf.data.base import ChannelStatistics, InputSpec, Normaliser
from raygf.errors import CheckpointError, ConfigError, DataError, one_line
from raygf.evaluation.budgeted import ThresholdTable
from raygf.evaluation.loading import HasLoaded, ImageTask, LoadedRun, read_config, restore_network
from raygf.evaluation.outputs import read_logits, score_logits
from raygf.models.msdnet_lazy import exit_stages
from raygf.storage.checkpoint import MODEL, WEIGHTS, load_checkpoint
from raygf.storage.folder import inside
from raygf.training.network import as_tensor

CIFAR10 = str(Path(__file__).with_name("cifar10"))
"""Folder of the small network that comes with raygf; it knows the ten classes of CIFAR-10."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """For N images: ``label`` (N,), the class, from 0; ``probability`` (N,) that its exit gives it, 0–1;
    ``exit`` (N,), where the image left, from 0; ``operations`` (N,) spent on it."""

    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    exit: NDArray[np.int64]
    operations: NDArray[np.int64]


class AdaptiveClassifier:
    """A trained network, what an answer of each exit costs, and thresholds by budget.

    >>> import raygf
    >>> run = raygf.train("digits", rounds=1)
    >>> fast = raygf.AdaptiveClassifier.from_run(run)
    >>> answers = fast.predict(run.loaded.dataset.test.images[:9], budget=2e6)
    >>> len(answers.label), len(answers.probability), max(answers.exit) in range(3)
    (9, 9, True)
    >>> [fast.operations.index(spent) for spent in answers.operations] == answers.exit.tolist()
    True

    Args:
        network: With ``stages`` and ``heads`` as ``MultiExitNetwork`` has them, on the compute's device. The
            state between stages: tensors whose rows are images, in tuples, lists or dicts.
        task: Its images and classes.
        operations: (n,) up to each exit, for one image.
        table: Thresholds by cost, of which policy, and the exits' temperatures; None: ``predict`` takes
            thresholds of confidence only.
        compute: Device, precision and layout; the same as those of the evaluation gives the same exits.
        batch_size: Images that go through the first stage together.

    Raises ConfigError: the network has no stages and heads, or not as many as there are costs.
    """

    def __init__(
        self,
        network: nn.Module,
        task: ImageTask,
        operations: Sequence[int],
        table: ThresholdTable | None,
        compute: Compute,
        batch_size: int = 256,
    ) -> None:
        stages, self._heads = stages_and_heads(network)
        self._stages = exit_stages(network, stages)
        if len(operations) != len(self._stages):
            raise ConfigError(f"{len(operations)} costs for a network of {len(self._stages)} exits")
        self.network, self.task, self.table, self.compute = network, task, table, compute
        self.operations = tuple(operations)
        self._normalise = Normaliser(task.statistics, compute)
        self._batch_size = batch_size
        self._policy = "confidence" if table is None else table.policy
        self._temperatures = (table and table.temperatures) or (1.0,) * self.exits

    @classmethod
    def from_run(
        cls, source: LoadedRun | HasLoaded, table: ThresholdTable | None = None
    ) -> AdaptiveClassifier:
        """The network of a run, with thresholds read off its validation images unless ``table`` is given.

        Raises:
            DataError: the run held out no validation images.
            ConfigError: the network has no stages and heads.
        """
        run = source if isinstance(source, LoadedRun) else source.loaded
        stages_and_heads(run.bound.network)
        operations = [cost.operations for cost in run.costs()]
        task = ImageTask(run.dataset.spec, run.dataset.statistics, run.dataset.class_names)
        known = task, operations, table or run.thresholds(), run.bound.compute, run.config.eval_batch_size
        return cls(run.bound.network, *known)

    @classmethod
    def load(
        cls, folder: str = CIFAR10, compute: ComputeConfig | None = None, network: nn.Module | None = None
    ) -> AdaptiveClassifier:
        """The classifier whose two files are in ``folder`` (local or a URI); by default CIFAR-10's, of raygf.

        Args:
            compute: Where and how it runs; by default as the run was configured, on whatever device there is.
            network: A network of one's own that was trained; by default it is built from its name.

        Raises:
            CheckpointError: a file is missing or damaged, or belongs to another network.
            ConfigError: the network can't be built here, or has no stages and heads.
        """
        path = inside(folder, WEIGHTS)
        checkpoint = load_checkpoint(path)
        config, known = read_config(checkpoint, path), checkpoint.meta
        try:
            statistics = ChannelStatistics(*(tuple(known["statistics"][each]) for each in ("mean", "std")))
            task = ImageTask(InputSpec(**known["input"]), statistics, tuple(known["class_names"]))
            operations, rows = tuple(known["operations"]), known["thresholds"]
            more = {name: known[name] for name in ("policy", "temperatures") if known.get(name)}
            table = None if rows is None else ThresholdTable.from_json(rows, **more)
            if table is not None and table.thresholds.shape[1] != len(operations) - 1:
                raise ValueError(f"thresholds are not those of {len(operations)} exits")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{inside(folder, MODEL)}: {one_line(error)}") from None
        resolved = resolve_compute(compute or replace(config.compute, device="auto"))
        make_repeatable(resolved)
        bound = restore_network(checkpoint, config, task.input, resolved, path, network)
        return cls(bound.network, task, operations, table, resolved, config.eval_batch_size)

    @property
    def exits(self) -> int:
        """Number of exits."""
        return len(self._stages)

    @property
    def default_budget(self) -> float:
        """Average operations per image of a served model that is given no budget: see ``ThresholdTable``."""
        return float(self.operations[-1]) if self.table is None else self.table.default_budget

    def predict(
        self,
        images: NDArray[np.uint8] | Tensor,
        *,
        budget: float | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> Predictions:
        """Class, probability, exit and cost of every image; give either ``budget`` or ``thresholds``.

        Args:
            images: uint8 (N, C, H, W) as the data set has them; they are normalised here.
            budget: Average operations per image that may be spent; see ``ThresholdTable.pick`` for budgets
                below and above those of the table. Held on images like the validation images.
            thresholds: (n,) confidences (or what else the table's policy goes by): an image leaves at the
                first exit whose threshold it reaches. ∞: nobody leaves. The last one has no effect: everyone
                leaves there.

        Raises:
            DataError: the images are not of the network's kind.
            ConfigError: the budget is too small, or the thresholds are not n numbers.
        """
        reach = self._thresholds(budget, thresholds)
        spec = self.task.input
        expected = (spec.channels, spec.height, spec.width)
        if images.dtype not in (np.uint8, torch.uint8) or tuple(images.shape[1:]) != expected:
            raise DataError(
                f"images must be uint8 (N, {', '.join(map(str, expected))}), 0 black to 255, "
                f"not {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        pixels = images if isinstance(images, Tensor) else as_tensor(np.ascontiguousarray(images))
        answers = [self._leave_early(chunk, reach) for chunk in torch.split(pixels, self._batch_size)]
        probability, label, exit = (torch.cat(kind).cpu().numpy() for kind in zip(*answers, strict=True))
        return Predictions(label, probability, exit, np.array(self.operations)[exit])

    @torch.inference_mode()
    def _leave_early(self, images: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Probability, class and exit of each of ``images`` uint8 (B, C, H, W)."""
        self.network.eval()
        device = self.compute.device
        probability = torch.empty(len(images), dtype=torch.float64, device=device)
        label, exit, agreed = torch.full((3, len(images)), -1, dtype=torch.int64, device=device)
        undecided = torch.arange(len(images), device=device)
        state: Any = self._normalise(images.to(device))
        for number, (stage, head) in enumerate(zip(self._stages, self._heads, strict=True)):
            with self.compute.autocast():
                state = stage(state)
                logits = head(state).float()
            trusted, answer = read_logits(logits / self._temperatures[number])
            if self._policy == "patience":
                same = answer == label[undecided]
                agreed[undecided] = score = torch.where(same, agreed[undecided] + 1, 1)
            else:
                score = score_logits(logits, self._policy)
            # Written for all that are here: who stays is overwritten at a later exit.
            probability[undecided], label[undecided], exit[undecided] = trusted, answer, number
            stays = ~(score >= thresholds[number])
            count = int(stays.sum())
            if number == self.exits - 1 or not count:
                break
            if count < len(stays):
                state, undecided = keep_rows(state, stays, undecided)
        return probability, label, exit

    def _thresholds(self, budget: float | None, thresholds: Sequence[float] | None) -> tuple[float, ...]:
        if (budget is None) == (thresholds is None):
            raise ConfigError("predict: give either budget or thresholds")
        if thresholds is None:
            if self.table is None:
                raise ConfigError("predict: there is no table of thresholds to read a budget from")
            assert budget is not None
            return self.table.pick(budget)
        if len(thresholds) != self.exits or any(math.isnan(threshold) for threshold in thresholds):
            raise ConfigError(f"thresholds = {list(thresholds)}: must be {self.exits} numbers, one per exit")
        return tuple(float(threshold) for threshold in thresholds)


def stages_and_heads(network: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The stages and heads of ``network``. Raises ConfigError: it does not have as many of both."""
    stages, heads = getattr(network, "stages", None), getattr(network, "heads", None)
    if isinstance(stages, nn.ModuleList) and isinstance(heads, nn.ModuleList) and len(stages) == len(heads):
        return stages, heads
    raise ConfigError(
        f"{type(network).__name__} can't stop early: it has no stages and heads, as many of both; "
        "build it as a raygf.models.multi_exit.MultiExitNetwork"
    )


def keep_rows(state: Any, stays: Tensor, undecided: Tensor) -> tuple[Any, Tensor]:
    """State and numbers of the images that stay, in their order.

    Args:
        state: Tensors with a row per image, in tuples, lists or dicts.
        stays: (B,), bool.
        undecided: (B,), the images' numbers.

    Raises ConfigError: there is something in the state that does not have a row per image.
    """

    def kept(rows: Any) -> Tensor:
        if not isinstance(rows, Tensor) or not rows.dim() or len(rows) != len(stays):
            what = f"a tensor {tuple(rows.shape)}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
            raise ConfigError(
                f"the network can't stop early: a stage hands on {what} for {len(stays)} images; "
                "allowed are tensors with a row per image, in tuples, lists or dicts"
            )
        channels_last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return rows[stays].contiguous(memory_format=layout)

    return pytree.tree_map(kept, state), undecided[stays]
