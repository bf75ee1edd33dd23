"""How much of the conflict between exits is noise: one exit trained twice, in two orders of the images.

An expected gradient depends on the order in which its epoch takes the images. Two of them can have a negative
cosine because the exits want different things, or because their orders differ; one exit against itself tells.
"""

from dataclasses import dataclass

from raygf.evaluation.loading import LoadedRun
from raygf.fusion.conflict import share_before, share_of_repeats, tensor_gramians
from raygf.methods.registry import is_step_method
from raygf.training.exit_trainer import ExitTrainer


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

    def shares(self) -> dict[str, float]:
        """The shares by what they are of, for people."""
        return {
            "noise floor: one exit, two orders of images": self.same_exit,
            "different exits, as trained": self.different_exits,
            "different exits, one order of images": self.same_order,
        }


def measure_noise(run: LoadedRun) -> OrderNoise | None:
    """Train every exit from ``run``'s checkpoint for an epoch in its own order, and in one that all have.

    The epochs are those of the next round (after the last round, of the last one once more): the first of the
    two is then bit for bit what the run itself would do. None if the method trains no exit by itself, or no
    tensor is shared.

    Raises NonFiniteError: a loss or weight is not finite.
    """
    owned, config, start = run.owned(), run.config, run.checkpoint
    if is_step_method(config.method) or not (owned.sum(dim=0) > 1).any():
        return None
    trainer, exits, round = ExitTrainer(config, run.dataset), len(owned), min(start.round + 1, config.rounds)
    deltas = []
    for order in (None, exits):  # exits count from 0: the latter is nobody's own
        for exit in range(exits):
            momentum = start.method.get(f"momentum_{exit}")
            update = trainer.train(start.network, exit, exits, round, momentum, order)
            deltas.append(trainer.whole(update))
    grams = tensor_gramians(deltas, run.bound.space)
    own, common = grams[:, :exits, :exits], grams[:, exits:, exits:]
    return OrderNoise(
        round, share_of_repeats(grams, owned), share_before(own, owned), share_before(common, owned)
    )
