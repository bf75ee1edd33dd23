"""The workers that train one network together: what they exchange, and their shares of every batch.

All of them call the same methods in the same order; a call returns when all have come to it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raygf.data.base import Batch

T = TypeVar("T")


class Peers:
    """A worker's view of itself and the others. This one is alone, and so has nothing to exchange."""

    rank = 0
    """Which worker this is, from 0."""
    count = 1
    """How many there are."""

    @property
    def first(self) -> bool:
        """Whether this worker is the one that evaluates, stores and reports."""
        return self.rank == 0

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
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

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


def average_buffers(buffers: list[Tensor], peers: Peers) -> None:
    """Overwrite floating-point ``buffers`` (of any shapes) by their means over the workers, in one exchange.

    In double precision: the mean of equal numbers is then that number. Others, such as counters, are left.
    """
    floats = [buffer for buffer in buffers if buffer.is_floating_point()]
    if peers.count == 1 or not floats:
        return
    flat = peers.sum_(torch.cat([buffer.double().flatten() for buffer in floats])).div_(peers.count)
    for buffer, mean in zip(floats, torch.split(flat, [buffer.numel() for buffer in floats]), strict=True):
        buffer.copy_(mean.view_as(buffer))


LEAST = 2
"""Images of a worker's share: BatchNorm can't normalise one value."""


def share_of(batch: Batch, peers: Peers) -> tuple[Tensor, Tensor, float]:
    """This worker's share of ``batch``, which all workers have drawn alike: images, labels, and their weight.

    Over the workers, means of shares times weights add up to the mean over the batch, each of whose images
    counts once. A batch with fewer than two images a worker (the last one of an epoch, say) is not divided:
    all workers run the whole of it, so that none stands without images, and only the first one's counts.
    """
    images, labels = batch
    if peers.count == 1:
        return images, labels, 1.0
    if len(labels) < LEAST * peers.count:
        return images, labels, float(peers.first)
    mine = images.tensor_split(peers.count)[peers.rank]
    return mine, labels.tensor_split(peers.count)[peers.rank], len(mine) / len(labels)
