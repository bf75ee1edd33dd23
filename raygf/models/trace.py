"""The operations of a network as graphs, one for training and one for evaluation.

Nodes are named as torchvision names them (``torchvision.models.feature_extraction``): by the path of the
module that they belong to, such as ``layer1.0.conv1`` or ``layer1.0.add``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from raygf.errors import ConfigError
from raygf.models.evaluating import evaluating


@dataclass(frozen=True)
class Trace:
    """One graph and the names of its nodes, in the order of execution."""

    graph: fx.Graph
    names: dict[fx.Node, str]
    is_leaf: Callable[[nn.Module, str], bool]
    """Whether a module, given with its path, is a single node."""

    def find(self, name: str) -> fx.Node | None:
        """The node ``name``, or the last one of the module ``name``; None: there is neither."""
        found = None
        for node, own in self.names.items():
            if own == name:
                return node
            if own.startswith(f"{name}."):
                found = node
        return found

    @property
    def result(self) -> fx.Node | None:
        """The node that the network returns; None: it returns a structure of several."""
        [output] = [node for node in self.graph.nodes if node.op == "output"]
        returned = output.args[0]
        return returned if isinstance(returned, fx.Node) else None


@dataclass(frozen=True)
class Traces:
    """The graphs of both modes."""

    train: Trace
    eval: Trace


def trace_modes(network: nn.Module) -> Traces:
    """What ``network`` does in either mode; it is left as it was.

    Raises:
        ConfigError: its forward can't be traced, takes more than images, or returns more than logits.
    """
    with evaluating(network):
        in_eval = _trace(network)
        network.train()
        return Traces(_trace(network), in_eval)


def _trace(network: nn.Module) -> Trace:
    name = type(network).__name__
    # Modules of torch.nn and torchvision.ops are one node each, as for torchvision's feature extractors.
    leaves = [kind for kind in vars(torchvision.ops).values() if _is_module_class(kind)]
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=leaves)
    tracer.proxy_buffer_attributes = True  # else what is computed from buffers alone would become a constant
    try:
        graph = tracer.trace(network)
    except Exception as error:  # the forward is not raygf's, and may raise anything when it is traced
        cause = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"exits can't be attached to {name}: tracing it failed: {type(error).__name__}: {cause}"
        ) from error
    trace = Trace(graph, dict(tracer.node_to_qualname), tracer.is_leaf_module)
    if len([node for node in graph.nodes if node.op == "placeholder"]) != 1:
        raise ConfigError(f"exits can't be attached to {name}: its forward must take images and nothing else")
    if trace.result is None:
        raise ConfigError(
            f"exits can't be attached to {name}: it must return one tensor of logits "
            "(build it without auxiliary classifiers)"
        )
    return trace


def _is_module_class(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def run_nodes(network: nn.Module, trace: Trace, images: Tensor) -> dict[fx.Node, torch.Size | None]:
    """The shape of what every node gives for ``images`` (B, C, H, W); None: no tensor of floats."""
    recorder = _Recorder(network, graph=trace.graph)
    with evaluating(network):
        recorder.run(images)
    return recorder.shapes


class _Recorder(fx.Interpreter):
    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.shapes: dict[fx.Node, torch.Size | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        floats = isinstance(result, Tensor) and result.is_floating_point()
        self.shapes[n] = result.shape if floats else None
        return result
