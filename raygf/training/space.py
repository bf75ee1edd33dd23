"""The trainable parameters as one flat float32 vector, shallow to deep: names, segments, ownership.

A segment is a piece of the vector that gets one fusion weight per exit. An exit owns what its output
depends on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import ne

import torch
from torch import Tensor, nn

from raygf.config.run import Segmentation
from raygf.models.multi_exit import evaluating, trainable_parameters


@dataclass(frozen=True)
class Slot:
    """Where one parameter tensor lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def matrix(self, vector: Tensor) -> Tensor:
        """Its part of ``vector`` (P,) as a matrix (rows, the rest), which shares the memory."""
        return vector[self.start : self.stop].view(self.shape[0], -1)


class FlatSpace:
    """Bookkeeping between named parameter tensors and the flat vector of length ``size`` (P).

    Tensors keep the order of ``network.named_parameters()``; those that need no gradient, or are empty, are
    not part of the space (they travel with the buffers).
    """

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        self.slots = slots
        self.size = slots[-1].stop if slots else 0
        self._lengths = [slot.stop - slot.start for slot in slots]

    @classmethod
    def of(cls, network: nn.Module) -> FlatSpace:
        """The space of ``network``'s trainable parameters; a tensor that is used twice counts once.

        Raises ValueError: there is no trainable parameter, or one is not float32.
        """
        slots, start = [], 0
        for name, parameter in trainable_parameters(network):
            stop = start + parameter.numel()
            slots.append(Slot(name, tuple(parameter.shape), start, stop))
            start = stop
        return cls(tuple(slots))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in order."""
        return tuple(slot.name for slot in self.slots)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new flat vector (P,) holding ``tensors``, one for every name of the space."""
        return torch.cat([tensors[slot.name].detach().reshape(-1) for slot in self.slots])

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """``vector`` (P,) as named tensors that share its memory; gradients flow back into ``vector``."""
        parts = torch.split(vector, self._lengths)
        return {slot.name: part.view(slot.shape) for slot, part in zip(self.slots, parts, strict=True)}


class Stretches:
    """Some tensors of a flat space as stretches of the flat vector; ``size``: their elements in all."""

    def __init__(self, space: FlatSpace, spans: Sequence[slice]) -> None:
        self._space = space
        self.spans = spans
        self.size = sum(span.stop - span.start for span in spans)

    @classmethod
    def of(cls, space: FlatSpace, chosen: Sequence[bool] | None = None) -> Stretches:
        """The tensors that are ``chosen`` (T,), by default all; neighbours become one stretch."""
        if chosen is None:
            return cls(space, [slice(0, space.size)])
        spans: list[slice] = []
        for slot, wanted in zip(space.slots, chosen, strict=True):
            if wanted and spans and spans[-1].stop == slot.start:
                spans[-1] = slice(spans[-1].start, slot.stop)
            elif wanted:
                spans.append(slice(slot.start, slot.stop))
        return cls(space, spans)

    @property
    def slots(self) -> list[Slot]:
        """Its tensors."""
        return [slot for slot in self._space.slots if any(s.start <= slot.start < s.stop for s in self.spans)]

    def among(self, matrices: bool) -> Stretches:
        """Those of its tensors that have two dimensions or more, as kernels, or those that have not."""
        starts = {slot.start for slot in self.slots if (len(slot.shape) > 1) is matrices}
        return Stretches.of(self._space, [slot.start in starts for slot in self._space.slots])

    def cut(self, vector: Tensor) -> list[Tensor]:
        """``vector`` (P,) as its stretches, which share its memory."""
        return [vector[span] for span in self.spans]

    def pack(self, vector: Tensor) -> Tensor:
        """The stretches of ``vector`` (P,) in one (``size``,), which is ``vector`` if that is all of it."""
        return vector if self.size == self._space.size else torch.cat(self.cut(vector))

    def unpack(self, packed: Tensor) -> Tensor:
        """``packed`` (``size``,) as a vector (P,) that is 0 elsewhere."""
        if self.size == self._space.size:
            return packed
        vector, start = packed.new_zeros(self._space.size), 0
        for part in self.cut(vector):
            part.copy_(packed[start : start + len(part)])
            start += len(part)
        return vector


_MODULE = re.compile(r"(?:stages|heads)\.\d+|[^.]+")  # a stage or head; in other networks the top module
_BLOCK = 1 << 17  # elements: the running sum of a block stays in the CPU's cache


@dataclass(frozen=True)
class Block:
    """A stretch [start, stop) of the flat vector, at most about 130 000 long where segments allow it.

    It holds ``parts`` stretches of equal length, which belong to the segments ``first`` …
    ``first + parts - 1``; a long segment (``parts`` = 1) may go on in the next block.
    """

    start: int
    stop: int
    first: int
    parts: int

    @property
    def last(self) -> int:
        """The number after that of its last segment."""
        return self.first + self.parts


class Segments:
    """All segments of a flat space (``count`` = S), those of each tensor, and the blocks that cover it."""

    def __init__(self, kind: Segmentation, space: FlatSpace) -> None:
        self.kind = kind
        self.space = space
        parts = [slot.shape[0] if kind == "channel" and slot.shape else 1 for slot in space.slots]
        ends = list(accumulate(parts))
        if kind in ("block", "network"):
            blocks = [_MODULE.findall(name)[0] if kind == "block" else "" for name in space.names]
            ends = list(accumulate(map(ne, blocks, blocks[1:]), initial=1))  # neighbours share a segment
        self.of_slots = [slice(end - count, end) for end, count in zip(ends, parts, strict=True)]
        self.count = ends[-1]
        self.blocks = tuple(self._cut())
        self._moved: dict[torch.device, Tensor] = {}

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """``first`` and ``last`` of every block, int64."""
        return (
            torch.tensor([block.first for block in self.blocks]),
            torch.tensor([block.last for block in self.blocks]),
        )

    @cached_property
    def lengths(self) -> Tensor:
        """Length of every segment (S,), int64."""
        lengths = torch.zeros(self.count, dtype=torch.int64)
        for block in self.blocks:
            lengths[block.first : block.last] += (block.stop - block.start) // block.parts
        return lengths

    def lengths_on(self, device: torch.device) -> Tensor:
        """``lengths`` on ``device``, moved there once."""
        if device not in self._moved:
            self._moved[device] = self.lengths.to(device)
        return self._moved[device]

    def spread(self, per_slot: Tensor) -> Tensor:
        """Masks per tensor (n, T) → per segment (n, S): a segment is true where any of its tensors is."""
        spread = per_slot.new_zeros(len(per_slot), self.count)
        for column, part in zip(per_slot.T, self.of_slots, strict=True):
            spread[:, part] |= column[:, None]
        return spread

    def name(self, segment: int) -> str:
        """The parameter tensor that ``segment`` is in (of the whole network: the first)."""
        within = zip(self.space.names, self.of_slots, strict=True)
        return next(name for name, part in within if part.start <= segment < part.stop)

    def slot_means(self, per_segment: Tensor) -> Tensor:
        """Values per segment (n, S) → their mean over each tensor's segments (n, T)."""
        return torch.stack([per_segment[:, part].mean(dim=1) for part in self.of_slots], dim=1)

    def _cut(self) -> Iterator[Block]:
        for slot, numbers in zip(self.space.slots, self.of_slots, strict=True):
            parts = numbers.stop - numbers.start
            yield from _pieces(slot, numbers.start) if parts == 1 else _groups(slot, numbers.start, parts)


def _pieces(slot: Slot, segment: int) -> Iterator[Block]:
    """A tensor that is (part of) one segment, in pieces."""
    for start in range(slot.start, slot.stop, _BLOCK):
        yield Block(start, min(start + _BLOCK, slot.stop), segment, 1)


def _groups(slot: Slot, first: int, parts: int) -> Iterator[Block]:
    """A tensor of ``parts`` segments, in groups of whole segments."""
    length = (slot.stop - slot.start) // parts
    size = max(1, _BLOCK // length)
    for group in range(0, parts, size):
        stop = min(group + size, parts)
        yield Block(slot.start + group * length, slot.start + stop * length, first + group, stop - group)


def find_ownership(network: nn.Module, example: Tensor, space: FlatSpace) -> Tensor:
    """The mask ``m`` (n, T), bool: true where the output of exit i depends on tensor t.

    One forward pass of ``example`` (B, C, H, W) in evaluation mode, so that buffers stay as they are.
    """
    with evaluating(network), torch.enable_grad():
        logits: Sequence[Tensor] = network(example)
        parameters = dict(network.named_parameters())
        tensors = [parameters[name] for name in space.names]
        owned = torch.zeros(len(logits), len(tensors), dtype=torch.bool)
        for exit, output in enumerate(logits):
            if output.requires_grad:
                found = torch.autograd.grad(output.sum(), tensors, retain_graph=True, allow_unused=True)
                owned[exit] = torch.tensor([gradient is not None for gradient in found])
    return owned
