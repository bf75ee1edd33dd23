"""The exits' losses, their coefficients over the rounds, and the scores of a pass. Rounds count from 1."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from raygf.compute import call_own
from raygf.config.fields import check
from raygf.config.run import LossConfig, NotNegative, OptimConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.records import ExitScore
from raygf.training.peers import ALONE, Peers

ExitLosses = Callable[[Sequence[Tensor], Tensor], list[Tensor]]
"""From n logits (B, classes) and labels, (B,) or (B, classes), to the n exits' losses, each a scalar.

They are separate, for the backward pass of one element of a tensor (n,) would send zeros through the others.
"""


def exit_losses(logits: Sequence[Tensor], labels: Tensor, smoothing: float = 0.0) -> list[Tensor]:
    """Mean cross-entropy of every exit, in float32.

    Args:
        logits: n tensors (B, classes), shallow to deep.
        labels: (B,), int64; or probabilities (B, classes), where images are mixed.
        smoothing: share of the labels that is spread over all classes (Szegedy et al., CVPR 2016).
    """
    loss = partial(F.cross_entropy, reduction="none", label_smoothing=smoothing)
    return [loss(output.float(), labels).mean() for output in logits]


def distilled_losses(logits: Sequence[Tensor], labels: Tensor, config: LossConfig) -> list[Tensor]:
    """Losses of exits that learn from the deepest one: ``(1 − γ)·CE + γ·T²·KL``, itself plain CE.

    Hinton, Vinyals, Dean 2015, with the network's own last exit as teacher (Phuong, Lampert, ICCV 2019): KL
    from its softened output, which gets no gradient, to the exit's (the paper's KD, Table 5).

    Args:
        logits: n tensors (B, classes), shallow to deep.
        labels: as for ``exit_losses``.
        config: γ, T, smoothing; whether KL is a mean over the images (Hinton's form) or over classes, too.
    """
    gamma, temperature = config.gamma, config.temperature
    teacher = (logits[-1].detach().float() / temperature).log_softmax(dim=-1)

    def soft(output: Tensor) -> Tensor:
        student = (output.float() / temperature).log_softmax(dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True)
        of_images = divergence.sum(dim=1) if config.kd_reduction == "batchmean" else divergence.mean(dim=1)
        return of_images.mean() * temperature**2

    *plain, last = exit_losses(logits, labels, config.smoothing)
    students = zip(plain, logits[:-1], strict=True)
    return [*((1 - gamma) * hard + gamma * soft(output) for hard, output in students), last]


def own_losses(logits: Sequence[Tensor], labels: Tensor, name: str) -> list[Tensor]:
    """Losses by the user's function ``loss.criterion``, called with every exit's logits and the labels."""
    losses = [call_own("loss.criterion", name, output.float(), labels) for output in logits]
    for loss in losses:
        if not isinstance(loss, Tensor) or loss.shape != ():
            raise ConfigError(f"loss.criterion = {name!r}: must return a scalar, not {loss!r:.60}")
    return losses


def make_losses(config: LossConfig) -> ExitLosses:
    """The losses that exits train on."""
    if config.criterion:
        return partial(own_losses, name=config.criterion)
    if config.distill:
        return partial(distilled_losses, config=config)
    return partial(exit_losses, smoothing=config.smoothing) if config.smoothing else exit_losses


def exit_hits(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Number of images that each exit classifies rightly (n,), int64; of a mixture, its larger part."""
    if labels.ndim == 2:
        labels = labels.argmax(dim=1)
    return (torch.stack(list(logits)).argmax(dim=2) == labels).sum(dim=1)


_SDN_LAST = (0.15, 0.30, 0.45, 0.60, 0.75, 0.90)
_SDN_FIRST = 0.01


def loss_coefficients(round: int, rounds: int, exits: int, loss: LossConfig) -> tuple[float, ...]:
    """The coefficients ``c_i`` of the exits' losses in ``round``.

    "ones" for MSDNet. "sdn": the inner exits ramp linearly from 0.01 in the first round to 0.15, 0.30, 0.45 …
    in the last one, the final exit keeps 1 (Kaya, Hong, Dumitras 2019). "last": the final exit alone, the
    backbone's training in the "mixed" and "disjoint" regimes of Kubaty et al., "How to Train Your Multi-Exit
    Model? Analyzing the Impact of Training Strategies", ICML 2025.

    Raises ConfigError: "sdn" has end points for at most six inner exits.
    """
    if loss.coefficients == "ones":
        return (1.0,) * exits
    if loss.coefficients == "last":
        return (*(0.0,) * (exits - 1), 1.0)
    if exits - 1 > len(_SDN_LAST):
        raise ConfigError(
            f"loss.coefficients = 'sdn' supports at most {len(_SDN_LAST)} inner exits; this network has "
            f"{exits - 1}"
        )
    share = (round - 1) / max(1, rounds - 1)
    return (*(_SDN_FIRST + share * (last - _SDN_FIRST) for last in _SDN_LAST[: exits - 1]), 1.0)


def exit_loss_weights(exit: int, coefficients: tuple[float, ...], aux: float) -> tuple[float, ...]:
    """Weights of all losses while ``exit`` trains: its coefficient c, and ``aux`` (λ) times c for the others.

    So its own loss has the share 1 / (1 + (n − 1)λ) in every round. The others are there to keep the
    BatchNorm of the deeper exits healthy (paper, Sec. 4: "with a very small learning rate").
    """
    own = coefficients[exit]
    return tuple(own if j == exit else aux * own for j in range(len(coefficients)))


def decay_factor(round: int, rounds: int, optim: OptimConfig) -> float:
    """The factor of both learning rates in ``round``, by ``optim.schedule`` and ``optim.warmup``.

    steps: ``decay`` once for every milestone passed. cosine: ``(1 + cos(π t)) / 2`` (Loshchilov, Hutter,
    ICLR 2017), t the share of the rounds after warm-up that are done. Warm-up is linear (Goyal et al., 2017).

    Raises ConfigError: the user's function ``optim.schedule`` fails, or returns no factor.
    """
    warming = min(1.0, round / (optim.warmup + 1))
    done = round - 1 + 1e-9  # 0.55 * 100 is a little more than 55
    if optim.schedule == "steps":
        passed = sum(done >= share * rounds for share in optim.milestones)
        return warming * float(optim.decay**passed)
    if optim.schedule == "cosine":
        share = max(0, round - 1 - optim.warmup) / max(1, rounds - optim.warmup)
        return warming * (1 + math.cos(math.pi * share)) / 2
    factor = call_own("optim.schedule", optim.schedule, round, rounds)
    check("optim.schedule's factor", factor, NotNegative)
    return warming * float(factor)


class Tally:
    """Losses and hits of batches. They stay on the device until the pass is over, so that no step waits.

    With ``peers`` every worker adds those of its share; the score is that of all workers together. ``exits``
    (from 0): whose losses they are, where not those of all.
    """

    def __init__(self, peers: Peers = ALONE, exits: Sequence[int] | None = None) -> None:
        self._peers = peers
        self._exits = exits
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sizes: list[int] = []

    def __len__(self) -> int:
        """Batches so far."""
        return len(self._sizes)

    def add(self, losses: Tensor, hits: Tensor, size: int) -> None:
        """One batch of ``size`` images: the exits' mean losses (n,) and how many each got right (n,)."""
        self._losses.append(losses.detach())
        self._hits.append(hits)
        self._sizes.append(size)

    def add_shares(self, scores: Sequence[tuple[Tensor, Tensor]], size: int) -> None:
        """As ``add``, with losses and hits of the shares of one batch, which add up to it."""
        losses, hits = zip(*scores, strict=True)
        self.add(sum(losses[1:], losses[0]), sum(hits[1:], hits[0]), size)

    def score(self) -> ExitScore:
        """Means over the images."""
        return self._means(self._history())

    def finite_score(self, where: str, bad_weight: str = "") -> ExitScore:
        """Means over the images, which must be finite.

        Args:
            where: names the pass in errors.
            bad_weight: which weights are not finite after the last step, if any.

        Raises NonFiniteError: a loss or weight is not finite; names the exit and the step.
        """
        history = self._history()
        bad = (~torch.isfinite(history)).nonzero()
        if len(bad):
            step, column = bad[0].tolist()
            exit = column if self._exits is None else self._exits[column]
            raise NonFiniteError(
                f"{where}: the loss of exit {exit + 1} became {history[step, column]:g} at step {step + 1}; "
                f"{f'not finite after the last step: {bad_weight}; ' if bad_weight else ''}"
                "lower optim.lr or set compute.precision to fp32"
            )
        if bad_weight:
            raise NonFiniteError(
                f"{where}: a weight became infinite or NaN in the last step, {len(history)}: {bad_weight}; "
                "lower optim.lr"
            )
        return self._means(history)

    def _history(self) -> Tensor:
        """The losses of all batches (steps, n), on the CPU."""
        return self._peers.sum_(torch.stack(self._losses)).cpu()

    def _means(self, losses: Tensor) -> ExitScore:
        hits = self._peers.sum_(torch.stack(self._hits)).cpu()
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        loss = (losses.double() * weights[:, None]).sum(0) / weights.sum()
        accuracy = hits.double().sum(0) / weights.sum()
        return ExitScore(tuple(loss.tolist()), tuple(accuracy.tolist()))
