"""Trying everything that can fail before training, where the drivers will be: data, network, methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import GetTimeoutError, RayError
from torch import Tensor

from raygf.compute import resolve_compute, torch_threads
from raygf.config import RunConfig
from raygf.data import load_data
from raygf.data.base import BatchSource
from raygf.errors import ConfigError, ResourceError, RunFailed
from raygf.fusion.ownership import find_ownership
from raygf.methods.registry import is_step_method
from raygf.models.build import build_model
from raygf.on_ray.failures import fetch
from raygf.training.bound import BoundNetwork
from raygf.training.delta_round import DeltaRound
from raygf.training.executor import LocalExecutor
from raygf.training.schedule import loss_coefficients
from raygf.training.step_round import StepRound

_WAIT_S = 300.0


@dataclass(frozen=True)
class Found:
    """``exits`` of the network; ``problems``: for every run that was asked about, what is wrong with it."""

    exits: int
    problems: tuple[str, ...]


def probe(run: RunConfig, trials: Sequence[RunConfig]) -> Found:
    """Load the data and build the network of ``run``, then the method of each of ``trials`` on it.

    Raises:
        UserError: in one of its forms: the data, the network or the device can't be used.
    """
    with torch_threads(run.resources.driver_cpus):
        compute = resolve_compute(run.compute)
        dataset = load_data(run.data, run.seed)
        bound = BoundNetwork(build_model(run.model, dataset.spec, run.seed), compute)
        batches = dataset.open(compute, run.batch_size, run.eval_batch_size)
        owned = find_ownership(bound.network, dataset.spec.blank(2, compute.device), bound.space)
        executor = LocalExecutor(run, dataset)
        problems = tuple(_problem(trial, bound, batches, executor, owned) for trial in trials)
    return Found(len(owned), problems)


def probe_remotely(run: RunConfig, trials: Sequence[RunConfig]) -> Found:
    """``probe`` in a process of its own on the cluster, with what a driver gets.

    Raises:
        UserError: see ``probe``; also if no node has room within the time allowed.
        RunFailed: the process was lost.
    """
    resources = run.resources
    limit = _WAIT_S + resources.wait_for_resources_s
    task = ray.remote(probe).options(
        num_cpus=resources.driver_cpus, num_gpus=resources.driver_gpus or 0, max_retries=0
    )
    ref = task.remote(run, list(trials))
    try:
        found: Found = fetch(ref, limit)
    except GetTimeoutError:
        ray.cancel(ref, force=True)
        raise ResourceError(
            f"data and network could not be tried within {limit:.0f} s: the cluster is busy; free it, or "
            "raise resources.wait_for_resources_s"
        ) from None
    except RayError as error:
        first = str(error).strip().split("\n")[-1]
        raise RunFailed(f"trying data and network failed: {first}") from None
    return found


def _problem(
    trial: RunConfig, bound: BoundNetwork, batches: BatchSource, executor: LocalExecutor, owned: Tensor
) -> str:
    """What is wrong with ``trial``'s method on this network; nothing: ""."""
    try:
        loss_coefficients(1, trial.rounds, len(owned), trial.loss)
        if is_step_method(trial.method):
            StepRound(trial, bound, batches, owned).close()
        else:
            DeltaRound(trial, bound, batches, executor, owned)
    except (ConfigError, ValueError) as error:
        return str(error)
    return ""
