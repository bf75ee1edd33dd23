"""Where a traced network can be cut: at nodes by name, or at shares of its operations."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from raygf import checks
from raygf.errors import ConfigError
from raygf.models.costs import CONVOLUTIONS, measure_costs
from raygf.models.graph_stage import live_after, split_network
from raygf.models.multi_exit import MultiExitNetwork
from raygf.models.trace import Trace, Traces

Shapes = dict[fx.Node, torch.Size | None]

NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class CutPoint:
    """A block's end, and the share of the network's operations that is done there."""

    name: str
    share: float

    def __str__(self) -> str:
        return f"{self.name} ({self.share:.3f})"


def find_cuts(
    network: nn.Module, traces: Traces, at: Sequence[float | str], images: Tensor, shapes: Shapes
) -> tuple[str, ...]:
    """The names of the nodes (or of the modules that end there) that ``at`` means, shallow to deep.

    Args:
        network: The traced network.
        traces: What it does.
        at: Shares of the network's operations in (0, 1), meaning the first end of a block that reaches the
            share; or names of nodes or modules.
        images: Examples (B, C, H, W).
        shapes: What every node of the evaluation graph gives for them.

    Raises:
        ConfigError: a name is unknown or gives no features, a share is out of range, or two places are one.
    """
    if not at or isinstance(at, str):
        raise checks.refuse("at", at, "a list of shares of the operations and names of nodes")
    points: list[CutPoint] = []
    if any(not isinstance(place, str) for place in at):
        points = list_cut_points(network, traces, images, shapes)
    names = [
        _check_name(network, traces, place, shapes) if isinstance(place, str) else _reach(points, place)
        for place in at
    ]
    order = list(traces.eval.graph.nodes)
    places = sorted(
        (order.index(traces.eval.find(name)), name, str(wish)) for name, wish in zip(names, at, strict=True)
    )
    for (place, name, wish), (next_place, _, next_wish) in itertools.pairwise(places):
        if place == next_place:
            same = f"{wish} and {next_wish} are the same place, {name}"
            raise ConfigError(f"at = {list(at)!r}: {same}{_nearby(points, name)}")
    return tuple(name for _, name, _ in places)


def list_cut_points(network: nn.Module, traces: Traces, images: Tensor, shapes: Shapes) -> list[CutPoint]:
    """Every end of a block that is a good place for an exit, shallow to deep.

    That is where a single tensor of features is handed on, and neither normalisation nor activation still has
    to follow. Operations are those of ``raygf.models.costs``.
    """
    names = list(_block_ends(network, traces, shapes))
    probes = [nn.Identity() for _ in names]
    costs = measure_costs(MultiExitNetwork(*split_network(network, traces, names, probes)), images)
    total = costs[-1].operations
    return [CutPoint(name, cost.operations / total) for name, cost in zip(names, costs, strict=False)]


def _block_ends(network: nn.Module, traces: Traces, shapes: Shapes) -> Iterator[str]:
    """Names of the blocks whose ends are good places, in the order of execution."""
    blocks = {traces.eval.find(path): path for path in _block_paths(network, traces.eval)}
    for node in traces.eval.graph.nodes:
        if node not in blocks or not _is_good_place(network, traces.eval, node, shapes):
            continue
        if traces.train.find(blocks[node]) is not None:
            yield blocks[node]


def _block_paths(network: nn.Module, trace: Trace) -> Iterator[str]:
    """Paths of the network's direct parts, and of the items of lists that are in no other list's item.

    Lists in lists count as one. A part that encloses what ends with it comes before it.
    """
    for name, part in network.named_children():
        yield name
        yield from _list_items(part, name, trace, inside=False)


def _list_items(module: nn.Module, path: str, trace: Trace, inside: bool) -> Iterator[str]:
    is_row = isinstance(module, nn.Sequential) and not trace.is_leaf(module, path)
    is_list = is_row or isinstance(module, nn.ModuleList)
    if inside and not is_list:
        yield path
        return
    for name, part in module.named_children():
        yield from _list_items(part, f"{path}.{name}", trace, inside=is_list)


def _is_good_place(network: nn.Module, trace: Trace, node: fx.Node, shapes: Shapes) -> bool:
    shape = shapes[node]
    if shape is None or len(shape) < 3 or node is trace.result or len(live_after(trace, node)) > 1:
        return False
    if not isinstance(_module_of(network, node), (*CONVOLUTIONS, *NORMALISATIONS, nn.Linear)):
        return True
    readers = [_module_of(network, user) for user in node.users]
    return not any(isinstance(reader, NORMALISATIONS) or _is_activation(reader) for reader in readers)


def _module_of(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, if it does."""
    called = node.op == "call_module" and isinstance(node.target, str)
    return network.get_submodule(str(node.target)) if called else None


def _is_activation(module: nn.Module | None) -> bool:
    return type(module).__module__ == nn.ReLU.__module__


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
    raise checks.refuse("at", share, f"at most the share of the last place to cut, {points[-1]}")


def _check_name(network: nn.Module, traces: Traces, name: str, shapes: Shapes) -> str:
    """``name``, if features can be taken there in both modes."""
    node = traces.eval.find(name)
    if node is None or traces.train.find(name) is None:
        close = difflib.get_close_matches(name, _all_names(traces), n=4, cutoff=0.3)
        raise checks.refuse(
            "at", name, f"a node of {type(network).__name__}; close matches: {', '.join(close) or 'none'}"
        )
    shape = shapes[node]
    if node.op == "placeholder" or shape is None or not 2 <= len(shape) <= 4:
        raise checks.refuse("at", name, "a node that gives features: a tensor of 2 to 4 dimensions")
    if node is traces.eval.result:
        raise checks.refuse("at", name, "a node before the network's own output")
    return name


def _all_names(traces: Traces) -> list[str]:
    """Every name that both modes know: nodes, and the modules around them."""
    known = dict.fromkeys(
        ".".join(parts[:length])
        for name in traces.eval.names.values()
        for parts in [name.split(".")]
        for length in range(1, len(parts) + 1)
    )
    return [name for name in known if traces.train.find(name) is not None]


def _nearby(points: list[CutPoint], name: str) -> str:
    """The cut points next to ``name``, for a message."""
    names = [point.name for point in points]
    if name not in names:
        return ""
    here = names.index(name)
    nearby = points[max(0, here - 1) : here] + points[here + 1 : here + 3]
    return f" (nearby: {', '.join(map(str, nearby))})" if nearby else ""
