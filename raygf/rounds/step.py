"""A round of a within-step method: one epoch of the whole network, by one worker or several together."""

import time
from contextlib import closing

from torch import Tensor

from raygf.compute import seeded_globals
from raygf.config.run import RunConfig
from raygf.data.base import BatchSource
from raygf.errors import RunFailed
from raygf.methods.base import Setting
from raygf.methods.registry import make_step_method
from raygf.rounds.base import RoundMethod, RoundOutcome
from raygf.training.losses import decay_factor, loss_coefficients, make_losses
from raygf.training.network import Arrays, BoundNetwork, NetworkState, to_numpy
from raygf.training.sgd import FlatSGD, train_epoch
from raygf.training.shares import average_buffers


class StepRound(RoundMethod):
    """Trains with the configured method, momentum running on from round to round as in ordinary SGD.

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
        self.operations = lambda costs, images: method.operations(costs)
        self._momentum: Tensor | None = None

    def run(self, state: NetworkState, round: int) -> RoundOutcome:
        """Train one epoch from ``state``.

        Raises:
            NonFiniteError: a loss or weight is not finite.
            RunFailed: the workers' weights are no longer the same.
        """
        config, bound, started = self._config, self._bound, time.perf_counter()
        exits = len(self._setting.owned)
        coefficients = loss_coefficients(round, config.rounds, exits, config.loss)
        lr = config.optim.lr * decay_factor(round, config.rounds, config.optim)
        method = make_step_method(config.method, self._setting)
        rank = bound.peers.ranks[0]  # for dropout: the first worker's stream is that of a run without others
        stream = ("step", round) if rank == 0 else ("step", round, "worker", rank)
        with seeded_globals(config.seed, *stream), closing(method):
            bound.load(state)
            optimizer = FlatSGD(bound, config.optim, lr, self._momentum)
            score = train_epoch(
                bound,
                optimizer,
                self._batches.train(config.seed, "step", round),
                lambda losses: method.backward(
                    [c * loss for c, loss in zip(coefficients, losses, strict=True)], bound
                ),
                where=f"{config.method}, round {round}",
                losses_of=self._losses,
            )
        self._momentum = optimizer.momentum
        average_buffers(list(bound.network.buffers()), bound.peers)
        if not bound.peers.same(bound.vector):
            raise RunFailed(
                f"{config.method}, round {round}: the workers' weights have come apart: run them on machines "
                "of one kind, and let a method of your own add up gradients with bound.peers.sum_; the last "
                "checkpoint stands"
            )
        return RoundOutcome(bound.state(), score, {"train": time.perf_counter() - started})

    def arrays(self) -> Arrays:
        """The momentum (P,)."""
        return {} if self._momentum is None else {"momentum": to_numpy(self._momentum)}

    def restore(self, arrays: Arrays) -> None:
        momentum = arrays.get("momentum")
        self._momentum = None if momentum is None else self._bound.tensor(momentum)
