"""Parameters and operations up to each exit, counted while one image goes through the network.

The convention is that of the Meta-GF paper's tables (Sun, Li, Xu, ECCV 2022), which comes with the published
MSDNet program. Products are counted as PyTorch computes them, in whatever module or function:

* a convolution counts one multiply-add per output element and kernel weight, its bias nothing;
* a linear layer counts weights plus biases, at every position, and so does ``x @ weight + bias``;
* other matrix products, such as attention's two, count the multiply-adds of every output element.

As in that program, these count where they are modules:

* an elementwise activation counts its input elements;
* pooling counts output elements times kernel area, adaptive pooling its input elements.

Everything else (normalisation, dropout, sums, reshaping) counts zero.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.multi_exit import evaluating

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
PER_INPUT_ELEMENT = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
)
_ATEN = torch.ops.aten
_LEFT_FACTOR = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN.mv: 0, _ATEN.dot: 0}
_LEFT_FACTOR |= {_ATEN.addmm: 1, _ATEN.addmv: 1, _ATEN.baddbmm: 1}
"""Matrix products, and which argument is the left factor; what stands before it is added."""


@dataclass(frozen=True)
class ExitCost:
    """What it takes to get the answer of one exit, earlier exits' classifiers included."""

    parameters: int
    """Parameters used."""
    operations: int
    """Operations for one image."""


def measure_costs(network: nn.Module, example: InputSpec | Tensor) -> list[ExitCost]:
    """The cost of every exit, shallow to deep, from one forward pass of one image in eval mode.

    Works for every module whose forward returns a list or tuple of logits. An exit costs what has been done
    when the last value of its logits is written.

    Args:
        network: Left as it was: modes, buffers, hooks, device.
        example: The kind of images, or images (B, C, H, W), of which the first one is used.

    Raises ConfigError: the output is not a list of tensors.
    """
    images = example.blank(1) if isinstance(example, InputSpec) else example[:1]
    weight = next(network.parameters(), images)
    images = images.to(weight.device, weight.dtype)
    with evaluating(network), _counting(network) as counter:
        logits = network(images)
    if not isinstance(logits, list | tuple) or not logits or not all(isinstance(x, Tensor) for x in logits):
        raise ConfigError(f"costs of {type(network).__name__}: its forward must return a list of logits")
    return [counter.written.get(_memory(output), ExitCost(0, 0)) for output in logits]


@contextmanager
def _counting(network: nn.Module) -> Iterator["_Counter"]:
    """Count what ``network`` does inside. Fused attention is off: it would hide its products."""
    counter, fast = _Counter(network), torch.backends.mha.get_fastpath_enabled()
    handles = [
        module.register_forward_hook(counter.after, with_kwargs=True)
        for module in network.modules()
        if isinstance(module, (*POOLINGS, *PER_INPUT_ELEMENT))
    ]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Running totals, and in ``written`` what they were when each piece of memory was last written to."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unused = {id(parameter): parameter.numel() for parameter in network.parameters()}
        self.parameters = self.operations = 0
        self.written: dict[int, ExitCost] = {}
        self._product: int | None = None  # where it is, until something else is computed

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would load its compiler to skip it, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves((args, kwargs)):
            self.parameters += self.unused.pop(id(value), 0)
        if not func.is_view:
            self.operations += self._multiply_adds(func.overloadpacket, args, result)
            self._write(result)
        return result

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Count a call of an activation or a pooling."""
        result = output[0] if isinstance(output, tuple) else output  # it may return indices, too
        if isinstance(module, PER_INPUT_ELEMENT):
            [given, *_] = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            self.operations += given.numel()
        else:
            kernel: Any = module.kernel_size
            sides: tuple[int, ...] = (kernel,) if isinstance(kernel, int) else tuple(kernel)
            self.operations += result.numel() * math.prod(sides * ((result.dim() - 2) // len(sides)))
        self._write(output)

    def _write(self, result: Any) -> None:
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.written[_memory(tensor)] = ExitCost(self.parameters, self.operations)

    def _multiply_adds(self, operator: Any, args: Sequence[Any], result: Any) -> int:
        """Of a product, or of a bias that is added to it next."""
        if operator is _ATEN._unsafe_view:  # the product, in another shape
            return 0
        before, self._product = self._product, None
        if operator is _ATEN.convolution:
            images, weight, transposed = args[0], args[1], args[6]
            return int((images if transposed else result).numel() * weight[0].numel())
        if operator in _LEFT_FACTOR:
            self._product = _memory(result)
            left = _LEFT_FACTOR[operator]
            return int(result.numel() * (args[left].shape[-1] + (left == 1 and args[0].dim() == 1)))
        if operator in (_ATEN.add, _ATEN.add_) and isinstance(args[1], Tensor) and args[1].dim() == 1:
            return int(result.numel() * (_memory(args[0]) == before))
        return 0


def _memory(tensor: Tensor) -> int:
    """What tensors that share their elements have in common."""
    return tensor.untyped_storage().data_ptr()
