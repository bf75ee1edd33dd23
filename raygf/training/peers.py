"""The workers that train one network together, each on a share of every batch: what they exchange.

All of them call the same methods in the same order; a call returns when all have come to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from raygf.errors import PeersLost

T = TypeVar("T")


class Peers:
    """A worker's view of itself and the others. This one is alone: it runs all shares, one by one."""

    def __init__(self, count: int = 1) -> None:
        """``count``: the shares that a batch is divided into."""
        self.count = count
        self.ranks: Sequence[int] = range(count)
        """The shares that this worker runs, from 0."""

    @property
    def first(self) -> bool:
        """Whether this worker is the one that evaluates, stores and reports."""
        return self.ranks[0] == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """``tensor``, overwritten by its sum over all workers: the same bits on every one of them."""
        return tensor

    def first_(self, tensor: Tensor) -> Tensor:
        """``tensor``, overwritten by the first worker's."""
        return tensor

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first worker, where alone it is called; pickled for the others."""
        return make()

    def same(self, vector: Tensor) -> bool:
        """Whether all workers hold the same ``vector`` (P,), float32: checksums of the bits are compared."""
        return True


ALONE = Peers()


class TorchPeers(Peers):
    """The members of torch.distributed's process group, which must have been joined before."""

    def __init__(self) -> None:
        super().__init__(dist.get_world_size())
        self.ranks = (dist.get_rank(),)

    def sum_(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def first_(self, tensor: Tensor) -> Tensor:
        dist.broadcast(tensor, src=0)
        return tensor

    def from_first(self, make: Callable[[], T]) -> T:
        """As alone; an error of ``make`` is raised on the first worker only, which has to end all."""
        box: list[T | None] = [make() if self.first else None]
        device = torch.device("cuda") if dist.get_backend() == "nccl" else None
        dist.broadcast_object_list(box, src=0, device=device)
        return box[0]  # type: ignore[return-value]

    def same(self, vector: Tensor) -> bool:
        bits = vector.view(torch.int32).sum(dtype=torch.int64)
        extremes = torch.stack([bits, -bits])
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        largest, negated_smallest = extremes.tolist()
        return bool(largest == -negated_smallest)


class Replicas(TorchPeers):
    """The actors that share one exit's training. What they sum has the bits of one that runs all shares."""

    def sum_(self, tensor: Tensor) -> Tensor:
        """As always, added up in the order of the shares; PeersLost if another does not answer any more."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        try:
            dist.all_gather(parts, tensor)
        except RuntimeError as error:
            raise PeersLost(f"another replica was lost: {error}") from None
        tensor.copy_(parts[0])
        for part in parts[1:]:
            tensor.add_(part)
        return tensor


def meeting_place(host: str) -> tuple[TCPStore, str]:
    """A store in this process through which replicas find each other, and its address; ``host``: this one."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, f"{host}:{store.port}"


@contextmanager
def joined(address: str, rank: int, count: int, backend: str, timeout_s: float) -> Iterator[Peers]:
    """The replicas that meet at ``address``, this one being ``rank``; PeersLost if one does not come."""
    host, _, port = address.rpartition(":")
    limit = timedelta(seconds=timeout_s)
    try:
        store = TCPStore(host, int(port), timeout=limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
    except RuntimeError as error:
        raise PeersLost(f"another replica was lost: {error}") from None
    try:
        yield Replicas()
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
