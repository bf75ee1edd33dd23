"""Trying a network once, so that what does not fit is found before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.fusion.flat import FlatSpace
from raygf.memory import is_out_of_memory
from raygf.models.evaluating import unchanged
from raygf.user_code import user_error

BATCH = 2


def try_network(name: str, network: nn.Module, spec: InputSpec) -> None:
    """Have ``network`` answer two black images, in evaluation and in training mode; it stays as it was.

    Args:
        name: the value of ``model.name``, for errors.

    Raises:
        ConfigError: it fails, its output is not one tensor (B, classes) per exit, or its weights can't be
            trained.
    """
    for training in (False, True):
        _require_logits(name, _answer(name, network, spec, training), spec, training)
    try:
        FlatSpace.of(network)
    except ValueError as error:
        raise ConfigError(f"model.name = {name!r}: {error}") from None


def too_large(name: str, error: BaseException) -> ConfigError:
    """The error for a network that there is no memory for."""
    cause = " ".join(str(error).split()).removeprefix("[enforce fail at alloc_cpu.cpp:127] err == 0. ")
    return ConfigError(f"model.name = {name!r}: no memory for the network, make it smaller: {cause[:200]}")


def _answer(name: str, network: nn.Module, spec: InputSpec, training: bool) -> object:
    try:
        with unchanged(network), torch.no_grad():
            network.train(training)
            return network(spec.blank(BATCH))
    except (Exception, SystemExit) as error:  # the forward may be the user's, and raise anything
        if is_out_of_memory(error):
            raise too_large(name, error) from error
        images = f"{BATCH} images of {spec.channels}x{spec.height}x{spec.width}{_mode(training)}"
        raise user_error("model.name", name, f"the network failed on {images}", error) from error


def _require_logits(name: str, output: object, spec: InputSpec, training: bool) -> None:
    expected = (BATCH, spec.classes)
    if (
        not isinstance(output, list | tuple)
        or not output
        or not all(isinstance(logits, Tensor) and logits.shape == expected for logits in output)
    ):
        raise ConfigError(
            f"model.name = {name!r}: the network must return a list of logits (batch, {spec.classes}), "
            f"one per exit; for {BATCH} images{_mode(training)} it returned {_describe(output)}"
        )


def _mode(training: bool) -> str:
    return " while training" if training else ""


def _describe(output: object) -> str:
    """An output in a few words: types, and the shapes of tensors."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of [{', '.join(_describe(part) for part in output)}]"
    return f"a {type(output).__name__}"
