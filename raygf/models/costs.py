"""Parameters and operations up to each exit, counted while one image goes through the network.

The convention is that of the Meta-GF paper's tables (Sun, Li, Xu, ECCV 2022), which comes with the published
MSDNet program, extended to the layers that the paper's networks do not have:

* a convolution counts one multiply-add per output element and kernel weight, its bias nothing;
* a linear layer counts weights plus biases, at every position;
* attention counts its four projections as linear layers, and the two matrix products;
* an elementwise activation counts its input elements;
* pooling counts output elements times kernel area, adaptive pooling its input elements;
* normalisation, dropout, reshaping and whatever is not a module's own work count zero.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.multi_exit import evaluating

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
PER_INPUT_ELEMENT = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
)


@dataclass(frozen=True)
class ExitCost:
    """What it takes to get the answer of one exit, earlier exits' classifiers included."""

    parameters: int
    """Parameters used."""
    operations: int
    """Operations for one image."""


def measure_costs(network: nn.Module, example: InputSpec | Tensor) -> list[ExitCost]:
    """The cost of every exit, shallow to deep, from one forward pass of one image in eval mode.

    Works for every module whose forward returns a list or tuple of logits in the order in which they are
    computed. Counted are the modules that are called; a module whose weights others use without calling it
    counts nothing (``nn.MultiheadAttention`` is provided for).

    Args:
        network: Left as it was: modes, buffers, hooks, device.
        example: The kind of images, or images (B, C, H, W), of which the first one is used.

    Raises:
        ConfigError: the output is not a list of tensors, or an exit's logits come from no module.
    """
    images = example.blank(1) if isinstance(example, InputSpec) else example[:1]
    weight = next(network.parameters(), images)
    counter = _Counter()
    with evaluating(network), counter.attached(network):
        logits = network(images.to(weight.device, weight.dtype))
    if not isinstance(logits, list | tuple) or not logits or not all(isinstance(x, Tensor) for x in logits):
        raise ConfigError(f"costs of {type(network).__name__}: its forward must return a list of logits")
    return [counter.cost_of(exit, output) for exit, output in enumerate(logits)]


@dataclass
class _Counter:
    """Running totals, and what they were whenever a module was done."""

    parameters: int = 0
    operations: int = 0
    seen: set[int] = field(default_factory=set)
    # Outputs are kept, so that no later tensor can get the storage of an earlier one.
    done: list[tuple[Tensor, ExitCost]] = field(default_factory=list)

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Count what ``network`` does inside."""
        handles = []
        for module in network.modules():
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def cost_of(self, exit: int, logits: Tensor) -> ExitCost:
        """The totals after the last module whose output shares its storage with ``logits``."""
        for output, cost in reversed(self.done):
            if output.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr():
                return cost
        raise ConfigError(
            f"costs of exit {exit + 1}: no module's output is its logits; "
            "end the exit with a module such as nn.Linear"
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # Attention uses its output projection without calling it.
        for parameter in module.parameters(recurse=isinstance(module, nn.MultiheadAttention)):
            if id(parameter) not in self.seen:
                self.seen.add(id(parameter))
                self.parameters += parameter.numel()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.operations += _operations(module, args, kwargs, output)
        # A module that returns several tensors is no exit's end: it may hold several exits.
        if isinstance(output, Tensor):
            self.done.append((output, ExitCost(self.parameters, self.operations)))


def _operations(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Operations of one call of ``module`` itself, without its children's."""
    if isinstance(module, nn.MultiheadAttention):
        given = {**dict(zip(("query", "key"), args, strict=False)), **kwargs}
        return _attention(module, given["query"], given["key"])
    inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if not inputs:
        return 0
    result = output[0] if isinstance(output, tuple) else output  # pooling may return indices, too
    if isinstance(module, CONVOLUTIONS):
        return int(result.numel()) * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, TRANSPOSED):
        return inputs[0].numel() * (module.out_channels // module.groups) * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        biases = 0 if module.bias is None else module.bias.numel()
        return int(result.numel()) // module.out_features * (module.weight.numel() + biases)
    if isinstance(module, POOLINGS):
        return int(result.numel()) * _kernel_area(module.kernel_size, result.dim() - 2)
    if isinstance(module, PER_INPUT_ELEMENT):
        return inputs[0].numel()
    return 0


def _kernel_area(kernel: int | tuple[int, ...], dimensions: int) -> int:
    """Places under a kernel given as one side or as all sides."""
    sides = (kernel,) if isinstance(kernel, int) else tuple(kernel)
    return math.prod(sides * (dimensions // len(sides)))


def _attention(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> int:
    """Projections of all tokens, and per head the products query·key and weights·value.

    Shapes: query (B, L, E), key (B, S, K); (L, B, E) and (S, B, K) unless ``batch_first``; or without B.
    """
    embed = module.embed_dim
    queries, keys = query.numel() // embed, key.numel() // module.kdim
    weights = queries * (embed + embed) * embed + keys * (module.kdim + module.vdim) * embed
    biases = 0 if module.in_proj_bias is None else (queries + 2 * keys) * embed
    biases += 0 if module.out_proj.bias is None else queries * embed
    source = key.shape[1 if module.batch_first and key.dim() == 3 else 0]
    source += int(module.bias_k is not None) + int(module.add_zero_attn)
    return int(weights + biases + 2 * queries * source * embed)
