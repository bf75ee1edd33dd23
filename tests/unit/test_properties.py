"""Properties over made-up configurations, networks, weights and archives; always the same ones.

Single modules have properties of their own beside their tests; here are those that go through several.
"""

from __future__ import annotations

import dataclasses
import io
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_network import CPU
from torch import nn
from torch.testing import assert_close

from raygf.cli import parse
from raygf.config.fields import flatten, from_dict, to_dict
from raygf.config.run import RunConfig
from raygf.errors import CheckpointError, ConfigError, without_password
from raygf.fusion.fuse import fuse, fusion_weights
from raygf.storage.checkpoint import Checkpoint, read_archive, write_archive
from raygf.training.network import BoundNetwork, NetworkState
from raygf.training.space import FlatSpace, SegmentKind, Segments


def examples(count: int) -> settings:
    """So many, the same ones every time."""
    return settings(deadline=None, derandomize=True, max_examples=count)


# Configurations ---------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
NAMES = st.text("abcXYZ 0189-_.=,'é", min_size=1, max_size=8).filter(lambda name: name.strip(". "))
OTHERS = {  # what a field allows beyond what its type says
    "storage.name": st.just("") | NAMES,
    "method": NAMES,
    "model.name": NAMES,
    "storage.path": NAMES,
    "tracking.experiment": NAMES,
    "data.path": st.just("") | WORDS,
    "tracking.uri": st.just("") | WORDS,
    "model.weights": st.just("") | WORDS,
    "resources.address": st.just("") | WORDS,
    "data.crop": st.integers(4, 64),
    "data.resize": st.integers(64, 999),
    "resources.gpus_per_exit": st.none() | st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    "resources.driver_gpus": st.none() | st.sampled_from([0.0, 0.25, 1.0, 2.0]),
}


def leaf(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one type that are allowed wherever it stands."""
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of([st.none() if part is type(None) else leaf(part) for part in typing.get_args(hint)])
    if typing.get_origin(hint) is tuple:
        return st.lists(leaf(typing.get_args(hint)[0]), min_size=1, max_size=4).map(tuple)
    return {bool: st.booleans(), int: st.integers(4, 64), float: st.floats(1e-4, 1)}[hint]


def configs(cls: Any, where: str = "") -> st.SearchStrategy[Any]:
    """Any ``cls`` with all its fields made up, those of its sections too."""
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        place = f"{where}{name}"
        if place in OTHERS:
            fields[name] = OTHERS[place]
        else:
            fields[name] = configs(hint, f"{place}.") if dataclasses.is_dataclass(hint) else leaf(hint)
    return st.builds(cls, **fields)


RUNS = configs(RunConfig)


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """The flags that set every field of a configuration, which ``to_dict`` gave."""
    flags = []
    for name, value in flatten(values).items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
    return flags


@examples(40)
@given(RUNS)
def test_a_run_survives_json(run: RunConfig) -> None:
    again = from_dict(RunConfig, json.loads(json.dumps(to_dict(run))))
    assert again == run and hash(again) == hash(run)


@examples(12)
@given(RUNS)
def test_a_run_survives_its_flags(run: RunConfig) -> None:
    assert parse("", "digits", to_flags(to_dict(run)))[1] == run


@examples(25)
@given(RUNS, st.data())
def test_a_field_that_is_not_known_is_named(run: RunConfig, data: st.DataObject) -> None:
    values = to_dict(run)
    sections: dict[str, Any] = {"": values}
    sections |= {f"{name}.": part for name, part in values.items() if isinstance(part, dict)}
    place = data.draw(st.sampled_from(sorted(sections)))
    sections[place]["warp"] = 9
    with pytest.raises(ConfigError) as caught:
        from_dict(RunConfig, values)
    assert str(caught.value).startswith(f"{place}warp: no such field; known are ")


# The flat space ---------------------------------------------------------------------------------------------

SHAPES = st.lists(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), min_size=1, max_size=6)


def network_of(shapes: list[tuple[int, ...]], frozen: int = -1) -> nn.ParameterList:
    """Parameters of these shapes, of which one may be frozen, and at least one can be trained."""
    network = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in [*shapes, (2,)]])
    if 0 <= frozen < len(shapes):
        network[frozen].requires_grad_(False)
    network.register_buffer("counts", torch.arange(3))
    return network


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


@examples(60)
@given(SHAPES, st.integers(-1, 5), st.integers(0, 2**32 - 1))
def test_a_bound_networks_parameters_are_its_vector(
    shapes: list[tuple[int, ...]], frozen: int, seed: int
) -> None:
    """Scalars, empty tensors and any bits, NaN included: the same memory, seen twice."""
    network = network_of(shapes, frozen)
    bound = BoundNetwork(network, CPU)
    known = np.random.default_rng(seed).integers(0, 2**32, bound.space.size, np.uint32).view(np.float32)
    bound.vector.copy_(torch.from_numpy(known.copy()))
    trained = [p for p in network.parameters() if p.requires_grad and p.numel()]
    assert b"".join(map(bits, trained)) == known.tobytes()
    assert bits(bound.space.pack(dict(network.named_parameters()))) == known.tobytes()
    assert all(p.untyped_storage().data_ptr() == bound.vector.untyped_storage().data_ptr() for p in trained)
    with torch.no_grad():
        trained[-1].fill_(7)
    assert bound.vector[-1] == 7
    with torch.no_grad():
        for parameter in trained:
            parameter.grad.fill_(2)  # type: ignore[union-attr]
    assert torch.equal(bound.grad, torch.full_like(bound.grad, 2))


@examples(40)
@given(SHAPES, st.integers(-1, 5), st.integers(0, 2**32 - 1))
def test_a_state_comes_back_bit_by_bit(shapes: list[tuple[int, ...]], frozen: int, seed: int) -> None:
    first, second = (BoundNetwork(network_of(shapes, frozen), CPU) for _ in range(2))
    known = np.random.default_rng(seed).integers(0, 2**32, first.space.size, np.uint32).view(np.float32)
    first.vector.copy_(torch.from_numpy(known.copy()))
    second.load(first.state())
    assert second.state().sha256() == first.state().sha256()
    assert second.state().vector.tobytes() == known.tobytes()


# Segments and their weights ---------------------------------------------------------------------------------

KINDS: tuple[SegmentKind, ...] = ("tensor", "channel", "network")


@dataclasses.dataclass(frozen=True)
class Fusion:
    """A base, n deltas, and which of the n exits owns which tensor."""

    kind: SegmentKind
    space: FlatSpace
    owned: torch.Tensor
    eta: torch.Tensor
    base: torch.Tensor
    deltas: list[torch.Tensor]

    def alpha(self, order: list[int]) -> torch.Tensor:
        """The weights with the exits in this order."""
        owned = Segments(self.kind, self.space).spread(self.owned[order])
        return fusion_weights(self.eta[order], owned)

    def fused(self, order: list[int]) -> torch.Tensor:
        """What comes out with the exits in this order."""
        deltas = [self.deltas[exit] for exit in order]
        return fuse(self.base, deltas, self.alpha(order), Segments(self.kind, self.space))


@st.composite
def fusions(draw: st.DrawFn) -> Fusion:
    kind = draw(st.sampled_from(KINDS))
    space = FlatSpace.of(network_of(draw(SHAPES)))
    exits = draw(st.integers(1, 4))
    stream = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    owned = torch.rand(exits, len(space.slots), generator=stream) < 0.7
    eta = torch.randn(exits, Segments(kind, space).count, generator=stream, dtype=torch.float64)
    base, *deltas = torch.randn(exits + 1, space.size, generator=stream, dtype=torch.float64)
    return Fusion(kind, space, owned, eta, base, deltas)


@examples(60)
@given(fusions())
def test_segments_cover_the_space_once(case: Fusion) -> None:
    segments = Segments(case.kind, case.space)
    assert int(segments.lengths.sum()) == case.space.size
    assert int(segments.lengths.min()) > 0
    sizes = [slot.stop - slot.start for slot in case.space.slots]
    if case.kind != "network":
        assert [int(segments.lengths[part].sum()) for part in segments.of_slots] == sizes
    marks = segments.spread(case.owned)
    values = torch.rand(len(case.owned), len(sizes), dtype=torch.float64)
    if case.kind != "network":  # what is spread over a tensor's segments has its own mean
        parts = torch.tensor([part.stop - part.start for part in segments.of_slots])
        assert_close(segments.slot_means(values.repeat_interleave(parts, dim=1)), values)
        elements = (case.owned * torch.tensor(sizes)).sum(dim=1)
        assert torch.equal((marks * segments.lengths).sum(dim=1), elements)


@examples(60)
@given(fusions())
def test_the_owners_weights_sum_to_one(case: Fusion) -> None:
    owned = Segments(case.kind, case.space).spread(case.owned)
    alpha = case.alpha(list(range(len(case.owned))))
    assert_close(alpha.sum(dim=0), owned.any(dim=0).double())
    assert (alpha[~owned] == 0).all() and (alpha[owned] > 0).all()


@examples(60)
@given(fusions(), st.randoms())
def test_the_order_of_the_exits_does_not_matter(case: Fusion, draws: Any) -> None:
    order = list(range(len(case.owned)))
    plain = case.fused(order)
    draws.shuffle(order)
    assert_close(case.fused(order), plain)


@examples(40)
@given(fusions())
def test_equal_deltas_are_added_once_where_somebody_owns_them(case: Fusion) -> None:
    """The weights share one update out; they do not make it longer or shorter."""
    alike = dataclasses.replace(case, deltas=[case.deltas[0]] * len(case.deltas))
    segments = Segments(case.kind, case.space)
    anybody = segments.spread(case.owned).any(dim=0)
    per_element = torch.zeros(case.space.size, dtype=torch.float64)
    for slot, part in zip(case.space.slots, segments.of_slots, strict=True):
        length = (slot.stop - slot.start) // max(1, part.stop - part.start)
        per_element[slot.start : slot.stop] = anybody[part].double().repeat_interleave(length)
    assert_close(alike.fused(list(range(len(case.owned)))), case.base + per_element * case.deltas[0])


# Archives ---------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(["?", "i1", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", "c8", ">f4", ">i8"])
ARRAYS = DTYPES.flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TAGS = st.text("abc./0é-", min_size=1, max_size=6)
FREE = st.text(max_size=5).filter(lambda name: name not in ("format", "round", "arrays"))


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    vector = draw(arrays.arrays("f4", st.integers(0, 30)))
    named = st.dictionaries(TAGS, ARRAYS | ARRAYS.map(np.asfortranarray), max_size=3)
    meta = draw(st.dictionaries(FREE, JSON, max_size=3))
    return Checkpoint(draw(st.integers(0, 999_999)), NetworkState(vector, draw(named)), draw(named), meta)


def written(checkpoint: Checkpoint) -> bytes:
    stream = io.BytesIO()
    write_archive(stream, checkpoint)
    return stream.getvalue()


def read(content: bytes) -> Checkpoint:
    return read_archive(io.BytesIO(content))


def listed(checkpoint: Checkpoint) -> dict[str, tuple[Any, ...]]:
    """All arrays of ``checkpoint`` down to their bits."""
    parts = {"vector": checkpoint.network.vector}
    parts |= {f"b/{name}": array for name, array in checkpoint.network.buffers.items()}
    parts |= {f"m/{name}": array for name, array in checkpoint.method.items()}
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in parts.items()}


@examples(60)
@given(checkpoints())
def test_an_archive_comes_back_bit_by_bit(checkpoint: Checkpoint) -> None:
    again = read(written(checkpoint))
    assert again.round == checkpoint.round
    assert listed(again) == listed(checkpoint)
    assert {name: again.meta[name] for name in checkpoint.meta} == checkpoint.meta


@examples(150)
@given(checkpoints(), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_one_changed_byte_is_noticed_or_harmless(
    checkpoint: Checkpoint, place: float, mask: int, late: bool
) -> None:
    """Half of the changes hit the directory at the end, which has no checksum of its own."""
    content = bytearray(written(checkpoint))
    start = content.index(b"PK\x01\x02") if late else 0
    content[start + int(place * (len(content) - start))] ^= mask
    assert_noticed_or_harmless(bytes(content), checkpoint)


@examples(100)
@given(checkpoints(), st.floats(0, 1), st.floats(0, 1))
def test_missing_bytes_are_noticed_or_harmless(checkpoint: Checkpoint, one: float, other: float) -> None:
    content = written(checkpoint)
    first, last = sorted((int(one * len(content)), int(other * len(content))))
    assert_noticed_or_harmless(content[:first] + content[last:], checkpoint)


@examples(60)
@given(checkpoints(), st.floats(0, 1, exclude_max=True))
def test_a_shorter_file_is_always_noticed(checkpoint: Checkpoint, share: float) -> None:
    content = written(checkpoint)
    with pytest.raises(CheckpointError):
        read(content[: int(share * len(content))])


def assert_noticed_or_harmless(content: bytes, checkpoint: Checkpoint) -> None:
    """Nothing but CheckpointError, and no other numbers."""
    try:
        again = read(content)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert listed(again) == listed(checkpoint) and again.round == checkpoint.round


# Addresses --------------------------------------------------------------------------------------------------


@examples(100)
@given(st.text("ab1:@/?#%+", min_size=1, max_size=12), st.sampled_from(["http", "postgresql+x", "s3"]))
def test_no_password_is_shown(rest: str, scheme: str) -> None:
    """Whatever it is made of, as long as it has no blanks."""
    password = f"geheim{rest}geheim"
    shown = without_password(f"no answer at {scheme}://me:{password}@host:5000/db?x=1 (port 5000)")
    assert shown == f"no answer at {scheme}://me:***@host:5000/db?x=1 (port 5000)"
    assume("&" not in rest and "#" not in rest)
    shown = without_password(f"{scheme}://host/db?user=me&password={password}&x=1 refused")
    assert "geheim" not in shown and shown.startswith(f"{scheme}://")
