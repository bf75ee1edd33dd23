"""What Ray raises now is understood; errors as Ray 2.60 words them: unit tests of faults."""

import os
import signal
import sys

import pytest
import ray
from ray.exceptions import RayError

from raygf.errors import NonFiniteError
from raygf.on_ray.cluster import fetch
from raygf.on_ray.faults import Failure, cause_of, failure_of

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors can't import this file


class FailsToStart:
    """Can't be made."""

    def __init__(self):
        raise ModuleNotFoundError("No module named 'mine'")

    def work(self):
        """Never gets there."""


class Troubled:
    """Raises what it is told to."""

    def memory(self):
        raise MemoryError

    def torch_memory(self):
        import torch

        torch.empty(1 << 60)

    def ours(self):
        raise NonFiniteError("exit 1: nan")

    def theirs(self):
        raise ValueError("first line\nsecond line")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_ray_raises_now_is_understood(cluster):
    actor = ray.remote(Troubled).options(num_cpus=0).remote()

    def error_of(method):
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
    actor = ray.remote(FailsToStart).options(num_cpus=0).remote()
    failed = error_of("work")
    assert failure_of(failed) is Failure.RAISED
    assert cause_of(failed) == "ModuleNotFoundError: No module named 'mine'"
    actor = ray.remote(Troubled).options(num_cpus=0).remote()
    dead = error_of("die")
    assert failure_of(dead) is Failure.LOST
    assert cause_of(dead).startswith("ActorDiedError: its worker process has died")
