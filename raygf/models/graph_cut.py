"""Where a traced network can be cut: at nodes by name, or at shares of its operations."""

import inspect
import itertools
import math
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from raygf.config import fields as checks
from raygf.errors import ConfigError, one_line
from raygf.models.costs import CONVOLUTIONS, measure_costs
from raygf.models.multi_exit import MultiExitNetwork, evaluating


@dataclass(frozen=True)
class Trace:
    """One graph and the names of its nodes, in the order of execution."""

    graph: fx.Graph
    names: dict[fx.Node, str]
    result: fx.Node
    """The one that the network returns."""
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


class Traces(NamedTuple):
    """The graphs of both modes."""

    train: Trace
    eval: Trace


def trace_modes(network: nn.Module) -> Traces:
    """What ``network`` does in either mode; it is left as it was.

    Raises ConfigError: its forward can't be traced, takes more than images, or returns more than logits.
    """
    with evaluating(network):
        in_eval = _trace(network)
        network.train()
        return Traces(_trace(network), in_eval)


def _trace(network: nn.Module) -> Trace:
    name = type(network).__name__
    # Modules of torch.nn and torchvision.ops are one node each, as for torchvision's feature extractors.
    found = vars(torchvision.ops).values()
    leaves = [kind for kind in found if isinstance(kind, type) and issubclass(kind, nn.Module)]
    whole: list[Callable[..., Any]] = []
    if "timm" in sys.modules:  # and what timm's own feature extractors do not look into
        leaves += sys.modules["timm"].models.get_notrace_modules()
        whole += sys.modules["timm"].models.get_notrace_functions()
    tracer = NodePathTracer(
        autowrap_modules=(math, torchvision.ops), autowrap_functions=tuple(whole), leaf_modules=leaves
    )
    tracer.proxy_buffer_attributes = True  # else what is computed from buffers alone would become a constant
    further = [*inspect.signature(network.forward).parameters.values()][1:]
    defaults = {each.name: each.default for each in further if each.default is not each.empty}
    try:
        graph = tracer.trace(network, defaults or None)
    except Exception as error:  # the forward is not raygf's, and may raise anything when it is traced
        raise ConfigError(
            f"exits can't be attached to {name}: tracing it failed: {one_line(error)}"
        ) from error
    if len([node for node in graph.nodes if node.op == "placeholder"]) != 1 + len(defaults):
        raise ConfigError(f"exits can't be attached to {name}: its forward must take images and nothing else")
    # The other arguments go, and with them the checks that they have their defaults.
    _, *arguments = [node for node in graph.nodes if node.op == "placeholder"]
    doomed = dict.fromkeys(arguments)
    for node in graph.nodes:
        if doomed.keys() & node.all_input_nodes:
            doomed[node] = None
    for node in reversed(doomed):
        graph.erase_node(node)
    names = {node: tracer.node_to_qualname[node] for node in graph.nodes if node in tracer.node_to_qualname}
    [result] = [node.args[0] for node in graph.nodes if node.op == "output"]
    if not isinstance(result, fx.Node):
        raise ConfigError(
            f"exits can't be attached to {name}: it must return one tensor of logits "
            "(build it without auxiliary classifiers)"
        )
    return Trace(graph, names, result, tracer.is_leaf_module)


class ShapeRecorder(fx.Interpreter):
    """Notes at every node, as ``meta["shape"]``, the shape of what it gives; None: no tensor of floats."""

    def run_node(self, n: fx.Node) -> Any:
        """The value of ``n``."""
        result = super().run_node(n)
        n.meta["shape"] = result.shape if isinstance(result, Tensor) and result.is_floating_point() else None
        return result


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
        graphs = ((True, train), (False, eval))
        self._forwards = {mode: type(fx.GraphModule(network, graph)).forward for mode, graph in graphs}

    def forward(self, state: Any) -> Any:
        """The state after the stage before (images (B, C, H, W) at first) to the state after this one."""
        return self._forwards[self.training](self, state)


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

    Its modules are taken over. ``cuts``: names of nodes that both traces have, in the order of execution.
    ``heads``: one for every cut, from the tensor there to logits (B, classes).
    """
    (train, train_parts), (eval, eval_parts) = (_cut(trace, cuts) for trace in traces)
    stages = [GraphStage(network, *graphs) for graphs in zip(train, eval, strict=True)]
    parts = map(max, train_parts, eval_parts)
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
        if part not in dict(place.named_children()):
            place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    value = getattr(source, name)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        place.register_buffer(name, value, persistent=name in source.state_dict())
    else:
        setattr(place, name, value)


NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class CutPoint:
    """A block's end, and the share of the network's operations that is done there."""

    name: str
    share: float


def find_cuts(
    network: nn.Module, traces: Traces, at: Sequence[float | str], images: Tensor
) -> tuple[str, ...]:
    """The names of the nodes (or of the modules that end there) that ``at`` means, shallow to deep.

    Args:
        traces: What the network does; the shapes in the evaluation graph are recorded.
        at: Shares of the network's operations in (0, 1), meaning the first end of a block that reaches the
            share; or names of nodes or modules.
        images: Examples (B, C, H, W).

    Raises ConfigError: a name is unknown or gives no features, a share is out of range, or two places are
    one.
    """
    if not at or isinstance(at, str):
        raise checks.refuse("at", at, "a list of shares of the operations and names of nodes")
    by_share = any(not isinstance(place, str) for place in at)
    points = list_cut_points(network, traces, images) if by_share else []
    names = [
        _check_name(network, traces, place) if isinstance(place, str) else _reach(points, place)
        for place in at
    ]
    order = list(traces.eval.graph.nodes)
    places = sorted(
        (order.index(traces.eval.find(name)), name, str(wish)) for name, wish in zip(names, at, strict=True)
    )
    for (place, name, wish), (next_place, _, next_wish) in itertools.pairwise(places):
        if place == next_place:
            raise ConfigError(f"at = {list(at)!r}: {wish} and {next_wish} are the same place, {name}")
    return tuple(name for _, name, _ in places)


def list_cut_points(network: nn.Module, traces: Traces, images: Tensor) -> list[CutPoint]:
    """Every end of a block that is a good place for an exit, shallow to deep.

    That is where a single tensor of features is handed on, and neither normalisation nor activation still has
    to follow. Operations are those of ``raygf.models.costs``.
    """
    blocks = {traces.eval.find(path): path for path in _block_paths(network, traces.eval)}
    ends = [node for node in traces.eval.graph.nodes if node in blocks]
    names = [blocks[node] for node in ends if _is_good_place(network, traces.eval, node)]
    names = [name for name in names if traces.train.find(name) is not None]
    probes = [nn.Identity() for _ in names]
    costs = measure_costs(MultiExitNetwork(*split_network(network, traces, names, probes)), images)
    total = costs[-1].operations
    return [CutPoint(name, cost.operations / total) for name, cost in zip(names, costs, strict=False)]


def _block_paths(network: nn.Module, trace: Trace) -> Iterator[str]:
    """Paths of the network's direct parts, of the items of lists that are in no other list's item, and of the
    blocks that repeat in one of either.

    Lists in lists count as one. Of paths that end at one node, the last one is its name.
    """
    for name, part in network.named_children():
        yield from _repeated(part, name, trace)
        yield name
        yield from _list_items(part, name, trace, inside=False)


def _list_items(module: nn.Module, path: str, trace: Trace, inside: bool) -> Iterator[str]:
    is_row = isinstance(module, nn.Sequential) and not trace.is_leaf(module, path)
    is_list = is_row or isinstance(module, nn.ModuleList)
    if inside and not is_list:
        yield from _repeated(module, path, trace)
        yield path
        return
    for name, part in module.named_children():
        yield from _list_items(part, f"{path}.{name}", trace, inside=is_list)


def _repeated(module: nn.Module, path: str, trace: Trace) -> Iterator[str]:
    """Paths of the parts of a stage, or of a list in it, whose class comes several times: timm's networks."""
    rows = (nn.Sequential, nn.ModuleList)
    lists = {f"{path}.{name}": part for name, part in module.named_children() if isinstance(part, rows)}
    for place, row in {path: module, **lists}.items():
        parts = {f"{place}.{name}": part for name, part in row.named_children()}
        kinds = Counter(type(part) for part in parts.values())
        for name, part in parts.items():
            layer = isinstance(part, nn.Sequential) or trace.is_leaf(part, name)
            if kinds[type(part)] > 1 and not layer:
                yield name


def _is_good_place(network: nn.Module, trace: Trace, node: fx.Node) -> bool:
    shape = node.meta["shape"]
    if shape is None or len(shape) < 3 or node is trace.result or len(live_after(trace, node)) > 1:
        return False
    if not isinstance(module_of(network, node), (*CONVOLUTIONS, *NORMALISATIONS, nn.Linear)):
        return True
    readers = [module_of(network, user) for user in node.users]
    activations = nn.ReLU.__module__
    return not any(isinstance(r, NORMALISATIONS) or type(r).__module__ == activations for r in readers)


def module_of(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, if it does."""
    called = node.op == "call_module" and isinstance(node.target, str)
    return network.get_submodule(str(node.target)) if called else None


def _reach(points: Sequence[CutPoint], share: float) -> str:
    """The first of ``points`` that reaches ``share``."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        allowed = "a share of the operations above 0 and below 1, or the name of a node"
        raise checks.refuse("at", share, allowed)
    if not points:
        raise checks.refuse("at", share, "the name of a node: this network has no blocks to count by")
    for point in points:
        if point.share >= share:
            return point.name
    last = f"{points[-1].name} ({points[-1].share:.3f})"
    raise checks.refuse("at", share, f"at most the share of the last place to cut, {last}")


def _check_name(network: nn.Module, traces: Traces, name: str) -> str:
    """``name``, if features can be taken there in both modes."""
    node = traces.eval.find(name)
    if node is None or traces.train.find(name) is None:
        known = [*dict(network.named_modules()), *traces.eval.names.values()]
        known = [each for each in known if all(trace.find(each) for trace in traces)]
        raise checks.refuse("at", name, f"a node of {type(network).__name__}", known)
    shape = node.meta["shape"]
    if node.op == "placeholder" or shape is None or not 2 <= len(shape) <= 4:
        raise checks.refuse("at", name, "a node that gives features: a tensor of 2 to 4 dimensions")
    if node is traces.eval.result:
        raise checks.refuse("at", name, "a node before the network's own output")
    return name
