"""How much of the conflict between exits is noise: one exit trained twice, in two orders of the images.

    python benchmarks/order_noise.py --checkpoint runs/ours-0/round-000005.npz runs/ours-0

An expected gradient depends on the order in which its epoch takes the images. Two of them can have a negative
cosine because the exits want different things, or because their orders differ; one exit against itself tells.
Every exit of the checkpoint's run is trained for an epoch in its own order, and in one that all have. The
epochs are those of the next round (after the last round, of the last one once more): the first of the two is
then bit for bit what the run itself would do. docs/method.md has what came out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
import tyro
from torch import Tensor

from raygf.evaluation.loading import LoadedRun, load_run
from raygf.evaluation.tables import markdown_table
from raygf.fusion.conflict import segment_gramians, share_before
from raygf.storage.checkpoint import find_checkpoint
from raygf.training.exit_trainer import ExitTrainer
from raygf.training.space import Segments


@dataclass(frozen=True)
class Options:
    """Which states of which runs."""

    checkpoint: tuple[str, ...]
    """Checkpoint files, or folders of runs, whose newest checkpoint is taken."""


@dataclass(frozen=True)
class OrderNoise:
    """Shares (0–1) of negative cosines over pairs of deltas and shared tensors, all from one state.

    ``round``: whose learning rate and orders were taken. ``same_exit``: one exit in two orders, the noise
    floor. ``different_exits``: each in its own order, as they are trained. ``same_order``: different exits in
    one order.
    """

    round: int
    same_exit: float
    different_exits: float
    same_order: float


def measure_noise(run: LoadedRun) -> OrderNoise:
    """Train every exit of ``run``, whose method trains exits one by one, from its checkpoint, twice."""
    owned, config, start = run.owned(), run.config, run.checkpoint
    trainer, exits, round = ExitTrainer(config, run.dataset), len(owned), min(start.round + 1, config.rounds)
    deltas = []
    for order in (None, exits):  # exits count from 0: the latter is nobody's own
        for exit in range(exits):
            momentum = start.method.get(f"momentum_{exit}")
            deltas.append(trainer.whole(trainer.train(start.network, exit, exits, round, momentum, order)))
    grams = segment_gramians(deltas, Segments("tensor", run.bound.space))
    own, common = grams[:, :exits, :exits], grams[:, exits:, exits:]
    return OrderNoise(
        round, share_of_repeats(grams, owned), share_before(own, owned), share_before(common, owned)
    )


def share_of_repeats(grams: Tensor, owned: Tensor) -> float:
    """``share_before`` where both deltas of every pair are of one exit, trained twice: its noise floor.

    An exit's cosine counts in a tensor as often as the exit has others there to be paired with, so that both
    shares are over the same pairs and tensors.

    Args:
        grams: (T, 2n, 2n) of the n exits' deltas, then of their second ones.
        owned: mask (n, T).
    """
    exits = len(owned)
    dot = grams[:, :exits, exits:].diagonal(dim1=1, dim2=2).T  # (n, T)
    square = grams.diagonal(dim1=1, dim2=2).T  # (2n, T)
    known = (square[:exits] > 0) & (square[exits:] > 0)
    pairs = (owned * (owned.sum(dim=0) - 1) * known).double()
    return float((pairs * (dot < 0)).sum() / pairs.sum())


def main(options: Options) -> None:
    """A table of percentages, and last, one line of JSON."""
    torch.set_num_threads(1)  # as a driver has by default: the run's own bits
    found = [measure_noise(load_run(find_checkpoint(path)[0])) for path in options.checkpoint]
    titles = [
        "round",
        "one exit, two orders: the noise floor",
        "different exits",
        "different exits, one order",
    ]
    rows = [[str(n.round), *(f"{share:.0%}" for share in list(asdict(n).values())[1:])] for n in found]
    print(markdown_table(titles, rows))
    print(json.dumps([asdict(noise) for noise in found]), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
