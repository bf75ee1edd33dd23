"""Segments: the pieces of the flat vector that get one fusion weight per exit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from raygf.fusion.flat import FlatSpace, Slot

SegmentKind = Literal["tensor", "channel", "network"]

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
    """All segments of a flat space (``count`` = S) and the blocks that cover it."""

    def __init__(self, kind: SegmentKind, space: FlatSpace) -> None:
        self.kind = kind
        self.space = space
        self._per_slot = [slot.shape[0] if kind == "channel" and slot.shape else 1 for slot in space.slots]
        self.count = 1 if kind == "network" else sum(self._per_slot)
        self.of_slots = self._number()
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
        if self.kind == "network":
            return per_slot.any(dim=1, keepdim=True)
        return per_slot.repeat_interleave(torch.tensor(self._per_slot), dim=1)

    def name(self, segment: int) -> str:
        """The parameter tensor that ``segment`` is in (of the whole network: the first)."""
        within = zip(self.space.names, self.of_slots, strict=True)
        return next(name for name, part in within if part.start <= segment < part.stop)

    def slot_means(self, per_segment: Tensor) -> Tensor:
        """Values per segment (n, S) → their mean over each tensor's segments (n, T)."""
        return torch.stack([per_segment[:, part].mean(dim=1) for part in self.of_slots], dim=1)

    def _number(self) -> list[slice]:
        """For every tensor of the space the segments that cover it."""
        if self.kind == "network":
            return [slice(0, 1)] * len(self.space.slots)
        ends = torch.tensor(self._per_slot).cumsum(0).tolist()
        return [slice(end - parts, end) for end, parts in zip(ends, self._per_slot, strict=True)]

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
