"""The trainable parameters of a network as one flat float32 vector, shallow to deep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where one parameter tensor lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


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

        Raises:
            ValueError: there is no trainable parameter, or one is not float32.
        """
        slots, start = [], 0
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad or not parameter.numel():
                continue
            if parameter.dtype != torch.float32:
                raise ValueError(f"parameter {name} is {parameter.dtype}: raygf trains float32 weights")
            stop = start + parameter.numel()
            slots.append(Slot(name, tuple(parameter.shape), start, stop))
            start = stop
        if not slots:
            raise ValueError("the network has no trainable parameter")
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
