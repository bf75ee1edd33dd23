"""Two processes that are each other's peers over gloo, and what they are to do in the tests."""

import math
import multiprocessing
import os
import pickle

import torch
import torch.distributed as dist
from tiny_network import CPU, dataset, owners_of, plain, run_config, seeded
from torch import nn

from raygf.config.run import ResourceConfig
from raygf.errors import RaygfError
from raygf.methods.base import StepMethod
from raygf.methods.registry import STEP_METHODS
from raygf.rounds.step import StepRound
from raygf.training.exit_trainer import ExitTrainer
from raygf.training.network import BoundNetwork
from raygf.training.peers import Replicas, TorchPeers
from raygf.training.shares import average_buffers

UNEVEN = 23
"""Training images: batches of 5, and 3 in the last, which are too few for two workers."""


class Alone(StepMethod):
    """A method of the user's own that forgets the others."""

    def backward(self, losses, bound):
        torch.autograd.backward(torch.stack(losses).sum())


def forgetful(setting):
    """Found as "two_workers:forgetful"."""
    return Alone()


def train(method, peers, extra=None, rounds=2):
    """The weights, buffers and scores after the rounds, in batches of 5; ``extra`` ends the first stage."""
    config, network = run_config(method=method, batch_size=5), seeded(plain)
    if extra is not None:
        network.stages[0].append(extra)
    bound = BoundNetwork(network, CPU, peers)
    step = StepRound(config, bound, dataset(train=UNEVEN).open(CPU, 5, 5), owners_of(bound))
    state = bound.state()
    for round in range(1, rounds + 1):
        outcome = step.run(state, round)
        state = outcome.state
    return {"vector": state.vector, "buffers": state.buffers, "sha": state.sha256(), "score": outcome.train}


def train_with_a_nan(peers):
    """The error of a round in which the last worker's images alone are not finite, in the third batch."""
    images = dataset(train=UNEVEN)
    whole = images.open(CPU, 5, 5)

    class Broken:
        dataset, batch_size = images, 5

        def train(self, seed, *key, **which):
            for step, (batch, labels) in enumerate(whole.train(seed, *key, **which)):
                batch[-1] = math.nan if step == 2 else batch[-1]
                yield batch, labels

    bound = BoundNetwork(seeded(plain), CPU, peers)
    owned = owners_of(bound)
    state, errors = bound.state(), []
    for method in ("sgd", "pcgrad"):
        step = StepRound(run_config(method=method), bound, Broken(), owned)
        try:
            step.run(state, 1)
        except RaygfError as error:
            errors.append(f"{type(error).__name__}: {error}")
    return "\n".join(errors)


def exchange(peers):
    """Everything that peers can do, with numbers that tell the workers apart."""
    mine = torch.tensor([1.0, 10.0]) + peers.ranks[0]
    buffers = [torch.tensor([0.1, 1.0 + peers.ranks[0]]), torch.tensor(7 + peers.ranks[0])]
    average_buffers(buffers, peers)
    calls: list[int] = []
    made = peers.from_first(lambda: calls.append(peers.ranks[0]) or {"from": peers.ranks[0]})
    return {
        "rank": (peers.ranks[0], peers.count, peers.first),
        "sum": peers.sum_(mine.clone()).tolist(),
        "first": peers.first_(mine.clone()).tolist(),
        "made": (made, calls),
        "same": (peers.same(torch.ones(3)), peers.same(torch.ones(3) + peers.ranks[0] * 1e-6)),
        "buffers": [buffer.tolist() for buffer in buffers],
    }


def train_exit(peers=None):
    """An exit's training, as one of two replicas; alone, as both in turn."""
    config = run_config("with_dropout", resources=ResourceConfig(executor="local", replicas=(2,)))
    trainer = ExitTrainer(config, dataset(train=UNEVEN))
    return trainer.train(trainer.bound.state(), 1, 3, 1, peers=peers)


def all_tasks(peers):
    """What each worker has to tell."""
    forgotten = ""
    try:
        train("two_workers:forgetful", peers)
    except RaygfError as error:
        forgotten = str(error)
    return {
        "exchange": exchange(peers),
        "trained": {name: train(name, peers) for name in STEP_METHODS},
        "dropout": train("pcgrad", peers, nn.Dropout(0.3)),  # its draws depend on the size of a share
        "batchnorm": train("sgd", peers, nn.BatchNorm2d(5), rounds=1),
        "nan": train_with_a_nan(peers),
        "forgetful": forgotten,
        "replica": train_exit(Replicas() if peers.count > 1 else None),
    }


def together(folder):
    """What two workers have to tell, by rank."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(rank, folder)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join(90)
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


def _work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / str(rank)).write_bytes(pickle.dumps(all_tasks(TorchPeers())))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # what the interpreter takes down at its end can abort gloo's threads, rarely
