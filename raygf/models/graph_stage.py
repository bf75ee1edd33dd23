"""A traced network cut into stages."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from raygf.models.trace import Trace, Traces


class GraphStage(nn.Module):
    """A stretch of a traced network; its modules and parameters keep their paths.

    The state that it takes and returns is one tensor, or a tuple of what later stages need, the tensor at the
    cut first. The training and the evaluation graph share the modules; ``self.training`` tells which runs.

    Args:
        network: Whose modules the graphs call. They are taken over, not copied.
        train: The stretch in training mode: one placeholder, one output.
        eval: The same stretch in evaluation mode.
    """

    def __init__(self, network: nn.Module, train: fx.Graph, eval: fx.Graph) -> None:
        super().__init__()
        for node in (*train.nodes, *eval.nodes):
            if node.op in ("call_module", "get_attr"):
                _adopt(self, network, node.target)
        self._forwards = {True: _compile(network, train), False: _compile(network, eval)}

    def forward(self, state: Any) -> Any:
        """The state after the stage before (images (B, C, H, W) at first) to the state after this one."""
        for module in self.modules():
            if isinstance(module, Holder):
                module()
        return self._forwards[self.training](self, state)


class Holder(nn.Module):
    """In place of a traced module: keeps its parameters and parts at their paths.

    The stage calls it, so that forward hooks, such as those that count parameters, see whose they are.
    """

    def forward(self) -> None:
        """Does nothing: the stage reads the parameters itself."""


class OnFirst(nn.Module):
    """``head`` for a state that may have several parts: it gets the first one, the tensor at the cut."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(state if isinstance(state, Tensor) else state[0])
        return logits


def split_network(
    network: nn.Module, traces: Traces, cuts: Sequence[str], heads: Sequence[nn.Module]
) -> tuple[list[nn.Module], list[nn.Module]]:
    """The stages and heads of ``network`` cut after the nodes ``cuts``; the last head hands the output on.

    Args:
        network: The network; its modules are taken over.
        traces: What it does.
        cuts: Names of nodes that both traces have, in the order of execution.
        heads: One for every cut, from the tensor there to logits (B, classes).
    """
    train, train_parts = _cut(traces.train, cuts)
    eval, eval_parts = _cut(traces.eval, cuts)
    stages = [GraphStage(network, *graphs) for graphs in zip(train, eval, strict=True)]
    parts = [max(counts) for counts in zip(train_parts, eval_parts, strict=True)]
    ends = [head if count == 1 else OnFirst(head) for head, count in zip(heads, parts, strict=True)]
    return [*stages], [*ends, nn.Identity()]


def live_after(trace: Trace, cut: fx.Node) -> list[fx.Node]:
    """What must be handed on at ``cut``: its own value first, then whatever else later nodes read."""
    order = {node: place for place, node in enumerate(trace.graph.nodes)}
    others = [
        node
        for node in order
        if node.op != "get_attr"
        and order[node] < order[cut]
        and any(order[user] > order[cut] for user in node.users)
    ]
    return [cut, *others]


def _cut(trace: Trace, cuts: Sequence[str]) -> tuple[list[fx.Graph], list[int]]:
    """The graph of every stage, and of how many parts the state after each but the last consists."""
    nodes = list(trace.graph.nodes)
    graphs, parts = [], []
    incoming = [node for node in nodes if node.op == "placeholder"]
    begin = 0
    for name in cuts:
        cut = trace.find(name)
        assert cut is not None, name
        outgoing = live_after(trace, cut)
        end = nodes.index(cut) + 1
        graphs.append(_stretch(nodes[begin:end], incoming, outgoing))
        parts.append(len(outgoing))
        begin, incoming = end, outgoing
    assert trace.result is not None
    graphs.append(_stretch(nodes[begin:], incoming, [trace.result]))
    return graphs, parts


def _stretch(nodes: Sequence[fx.Node], incoming: Sequence[fx.Node], outgoing: Sequence[fx.Node]) -> fx.Graph:
    """``nodes`` as a graph of their own, from the values ``incoming`` to ``outgoing``."""
    graph = fx.Graph()
    state = graph.placeholder("state")
    here: dict[fx.Node, fx.Node] = {incoming[0]: state}
    if len(incoming) > 1:
        here = {
            node: graph.call_function(operator.getitem, (state, part)) for part, node in enumerate(incoming)
        }

    def copied(node: fx.Node) -> fx.Node:
        if node not in here:  # a parameter or buffer: every stage fetches it itself
            here[node] = graph.node_copy(node)
        return here[node]

    for node in nodes:
        if node.op not in ("placeholder", "get_attr", "output"):
            here[node] = graph.node_copy(node, copied)
            if node.kwargs.get("inplace") is True and any(source in incoming for source in node.args):
                here[node].update_kwarg("inplace", False)  # the head has read this tensor
    ends = tuple(copied(node) for node in outgoing)
    graph.output(ends[0] if len(ends) == 1 else ends)
    return graph


def _adopt(stage: nn.Module, network: nn.Module, target: str) -> None:
    """Put what ``network`` has at the path ``target`` at the same path of ``stage``."""
    *path, name = target.split(".")
    source = network.get_submodule(".".join(path))
    place = stage
    for part in path:
        if part not in place._modules:
            place.add_module(part, Holder())
        place = place.get_submodule(part)
    value = getattr(source, name)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        saved = name in source._buffers and name not in source._non_persistent_buffers_set
        place.register_buffer(name, value, persistent=saved)
    else:
        setattr(place, name, value)


def _compile(network: nn.Module, graph: fx.Graph) -> Callable[[nn.Module, Any], Any]:
    """``graph`` as a function of the module that holds its modules, and the state."""
    function: Callable[[nn.Module, Any], Any] = type(fx.GraphModule(network, graph)).forward
    return function
