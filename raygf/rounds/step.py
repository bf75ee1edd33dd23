"""A round of a within-step method: steps of the whole network, by one worker or several together."""

import time
from contextlib import closing

from torch import Tensor

from raygf.compute import seeded_globals
from raygf.config.run import RunConfig
from raygf.data.augment import mixed
from raygf.data.base import BatchSource, images_of_rounds
from raygf.errors import RunFailed
from raygf.methods.base import Setting
from raygf.methods.registry import make_step_method
from raygf.rounds.base import RoundMethod, RoundOutcome
from raygf.training.losses import decay_factor, loss_coefficients, make_losses
from raygf.training.network import Arrays, Average, BoundNetwork, NetworkState, to_numpy
from raygf.training.sgd import STATE, FlatOptimizer, train_epoch
from raygf.training.shares import average_buffers


class StepRound(RoundMethod):
    """Trains with the configured method; what the optimiser keeps runs on from round to round, as usual.

    Where ``bound`` has peers, every worker makes a round of its own share of each batch, with the same
    update. BatchNorm normalises each share by itself, as in PyTorch's DistributedDataParallel; its running
    statistics are averaged over the workers at the end of the round.
    """

    def __init__(self, config: RunConfig, bound: BoundNetwork, batches: BatchSource, owned: Tensor) -> None:
        """``owned`` (n, T): which exit depends on which tensor.

        Raises ConfigError: the method can't be used here.
        """
        self._config = config
        self._bound = bound
        self._batches = batches
        self._setting = Setting(config.methods, bound.network, owned, bound.space)
        self._losses = make_losses(config.loss)
        method = make_step_method(config.method, self._setting)  # refuses early what can't be used
        method.close()
        self.operations = lambda costs, images, rounds: (
            method.operations(costs) * images_of_rounds(config, rounds, images["train"])
        )
        self._kept: dict[str, Tensor] = {}
        self.average = Average(config.optim.ema, bound.compute.device)

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """Train one round from ``state``.

        Raises:
            NonFiniteError: a loss or weight is not finite.
            RunFailed: the workers' weights are no longer the same.
        """
        config, bound, started = self._config, self._bound, time.perf_counter()
        exits = len(self._setting.owned)
        coefficients = loss_coefficients(round, config.rounds, exits, config.loss)
        lr = config.optim.lr * decay_factor(round, config.rounds, config.optim)
        method = make_step_method(config.method, self._setting)
        images = self._batches.dataset.count("train") if config.optim.ema else config.batch_size
        updates = config.round_steps or images / config.batch_size
        rank = bound.peers.ranks[0]  # for dropout: the first worker's stream is that of a run without others
        stream = ("step", round) if rank == 0 else ("step", round, "worker", rank)
        with seeded_globals(config.seed, *stream), closing(method):
            bound.load(state)
            optimizer = FlatOptimizer(bound, config.optim, lr, self._kept)
            score = train_epoch(
                bound,
                optimizer,
                mixed(self._batches, config, "step", round),
                lambda losses: method.backward(
                    [c * loss for c, loss in zip(coefficients, losses, strict=True)], bound
                ),
                where=f"{config.method}, round {round}",
                losses_of=self._losses,
                after=lambda: self.average.update(bound.vector, bound.buffers, updates),
            )
        self._kept = optimizer.state
        for tensors in (bound.network.buffers(), self.average.tensors.values()):
            average_buffers([*tensors], bound.peers)
        if not bound.peers.same(bound.vector):
            raise RunFailed(
                f"{config.method}, round {round}: the workers' weights have come apart: run them on machines "
                "of one kind, and let a method of your own add up gradients with bound.peers.sum_; the last "
                "checkpoint stands"
            )
        return RoundOutcome(bound.state(), score, {"train": time.perf_counter() - started})

    def arrays(self) -> Arrays:
        """What the optimiser keeps, such as the momentum (P,), and the average."""
        return {**{name: to_numpy(kept) for name, kept in self._kept.items()}, **self.average.arrays()}

    def restore(self, arrays: Arrays) -> None:
        self._kept = {name: self._bound.tensor(arrays[name]) for name in STATE if name in arrays}
        self.average.restore(arrays)
