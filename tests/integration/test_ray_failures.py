"""What Ray's errors mean, as Ray 2.60 words them, and as it raises them now."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError

from raygf.errors import NonFiniteError
from raygf.on_ray.cluster import dead_nodes, fetch
from raygf.on_ray.faults import Failure, cause_of, failure_of, node_of

KILLED_FOR_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 10.0.0.7, ID: 105b28c7) was 5.45GB used / 23.54GB limit (0.231335)
OOM kill reason: Memory usage 5780221952B exceeded threshold of 5776586240B (22.9% of 25276510208B limit)
Considered workers: [
Selected to kill: (Actor(8655): job ID=01000000, pid=17411, actual memory used=0.81GB, worker ID=8f4f01af),
(Actor(99): job ID=01000000, pid=17412, actual memory used=2.9GB, worker ID=8f4f01b0)
]"""
NODE_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: D
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 78a7025f0e10
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats
The actor never ran - it was cancelled before it started running."""
SILENT = "The actor is temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14"


class Died(ActorDiedError):
    """With a text of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.error_msg = text

    def __str__(self) -> str:
        return self.error_msg


def test_memory_is_told_in_amounts() -> None:
    error = OutOfMemoryError(KILLED_FOR_MEMORY)
    assert failure_of(error) is Failure.MEMORY
    assert cause_of(error) == (
        "OutOfMemoryError: Ray ended it because the node ran low on memory: 5.45GB used / 23.54GB limit "
        "on it, 0.81GB by pid 17411, 2.9GB by pid 17412"
    )
    assert cause_of(OutOfMemoryError("in other words")) == (
        "OutOfMemoryError: Ray ended it because the node ran low on memory"
    )


def test_a_dead_node_is_told_by_its_id() -> None:
    error = Died(NODE_DIED)
    assert failure_of(error) is Failure.LOST
    assert node_of(error) == "78a7025f0e10"
    assert cause_of(error).startswith("Died: its node has died")


def test_silence_is_a_loss_without_a_node() -> None:
    error = ActorUnavailableError(SILENT, None)
    assert (failure_of(error), node_of(error)) == (Failure.LOST, "")
    assert cause_of(error) == "ActorUnavailableError: it does not answer (Socket closed)"


def test_an_error_in_unknown_words_is_its_first_line() -> None:
    assert cause_of(RayError("the result could not be fetched\nand more")) == (
        "RayError: the result could not be fetched"
    )


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors can't import this file


class Unborn:
    """Can't be made."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'mine'")

    def work(self) -> None:
        """Never gets there."""


class Troubled:
    """Raises what it is told to."""

    def memory(self) -> None:
        raise MemoryError

    def torch_memory(self) -> None:
        import torch

        torch.empty(1 << 60)

    def ours(self) -> None:
        raise NonFiniteError("exit 1: nan")

    def theirs(self) -> None:
        raise ValueError("first line\nsecond line")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_ray_raises_now_is_understood(cluster: str) -> None:
    actor = ray.remote(Troubled).options(num_cpus=0).remote()

    def error_of(method: str) -> RayError:
        with pytest.raises(RayError) as caught:
            fetch(getattr(actor, method).remote(), 60)
        return caught.value

    assert failure_of(error_of("memory")) is Failure.MEMORY
    assert cause_of(error_of("memory"), "batches of 8 images") == "MemoryError (batches of 8 images)"
    lacking = error_of("torch_memory")
    assert failure_of(lacking) is Failure.MEMORY and f"{1 << 62} bytes" in cause_of(lacking, "unused")
    assert failure_of(error_of("theirs")) is Failure.RAISED
    assert cause_of(error_of("theirs")) == "ValueError: first line"
    with pytest.raises(NonFiniteError, match="exit 1: nan"):
        fetch(actor.ours.remote(), 60)
    actor = ray.remote(Unborn).options(num_cpus=0).remote()
    unborn = error_of("work")
    assert failure_of(unborn) is Failure.RAISED
    assert cause_of(unborn) == "ModuleNotFoundError: No module named 'mine'"
    actor = ray.remote(Troubled).options(num_cpus=0).remote()
    dead = error_of("die")
    assert failure_of(dead) is Failure.LOST
    assert cause_of(dead).startswith("ActorDiedError: its worker process has died")
    assert dead_nodes() == set()
