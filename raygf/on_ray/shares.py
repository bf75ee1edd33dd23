"""A fusion pass whose shares run on exit actors; their gradients meet in the driver once a step."""

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from torch import Tensor

from raygf.on_ray.cluster import fetch
from raygf.on_ray.pool import Worker
from raygf.training.exit_trainer import PassTask
from raygf.training.network import as_tensor
from raygf.training.shares import ShareStep


class ShareLost(Exception):
    """The actor ``worker`` did not do its part of a pass, because of ``error``."""

    def __init__(self, worker: Worker, error: RayError) -> None:
        super().__init__(str(error))
        self.worker, self.error = worker, error


class RemoteShares:
    """All shares of a pass, divided among ``workers``. A ``raygf.training.shares.FusionShares``.

    Every call raises ShareLost if an actor is lost, or has not answered within ``limit`` seconds.
    """

    def __init__(self, workers: Sequence[Worker], limit: float) -> None:
        self._workers = workers
        self._limit = limit

    def start(self, shards: int, state: Any, task: PassTask, updates: Sequence[Any]) -> None:
        """Begin a pass of so many shares from ``state`` and the exits' ``updates``, in the object store."""
        ranks = torch.arange(shards).tensor_split(len(self._workers))
        seats = zip(self._workers, ranks, strict=True)
        self._ask([w.actor.start_pass.remote(state, task, mine.tolist(), *updates) for w, mine in seats])

    def step(self, weights: Tensor, learn: bool) -> list[ShareStep]:
        """As ``FusionShares.step``."""
        array = weights.cpu().numpy()
        answers = self._ask([worker.actor.step_pass.remote(array, learn) for worker in self._workers])
        return [step.to(weights.device) for steps in answers for step in steps]

    def buffers(self) -> list[dict[str, Tensor]]:
        """As ``FusionShares.buffers``, on the CPU."""
        answers = self._ask([worker.actor.end_pass.remote() for worker in self._workers])
        return [{name: as_tensor(a) for name, a in share.items()} for shares in answers for share in shares]

    def _ask(self, refs: list[Any]) -> list[Any]:
        """What the workers answer, in their order."""
        ray.wait(refs, num_returns=len(refs), timeout=self._limit)
        answers = []
        for worker, ref in zip(self._workers, refs, strict=True):
            try:
                answers.append(fetch(ref, 0.0))
            except GetTimeoutError:
                late = GetTimeoutError(f"no answer within {self._limit:.0f} s")
                raise ShareLost(worker, late) from None
            except RayError as error:
                raise ShareLost(worker, error) from error
        return answers
