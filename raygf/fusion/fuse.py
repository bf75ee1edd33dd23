"""The fused vector W + ε Σ_i α_i Δ_i, and its gradient with respect to α.

The deltas are n separate vectors of length P, so that on the CPU they may stay where the object store put
them, and nothing of size n × P is ever allocated. The CPU walks block by block (a block fits the cache, every
delta is read once); CUDA walks exit by exit (few kernels, whatever the number of blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from raygf.fusion.segments import Block, Segments


def fuse(base: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """``base + Σ_i weights_i Δ_i`` (P,), differentiable with respect to ``weights`` only.

    The paper prints ``W − ε Σ_i α_i g_i`` (Eq. 11, Algorithm 1) although its ``g_i = W_i − W_0`` (Eq. 13)
    already points downhill; the update must be *added*, and here it is.

    Args:
        base: W (P,).
        deltas: n vectors Δ_i (P,).
        weights: ε·α (n, S).
        segments: the S segments that ``weights`` belongs to.
    """
    fused: Tensor = _Fuse.apply(weights, base, tuple(deltas), segments)  # type: ignore[no-untyped-call]
    return fused


class _Fuse(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weights: Tensor, base: Tensor, deltas: tuple[Tensor, ...], segments: Segments
    ) -> Tensor:
        ctx.deltas, ctx.segments = deltas, segments
        add = add_by_exit if base.is_cuda else add_by_block
        return add(base, deltas, weights, segments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        dot = dot_by_exit if grad.is_cuda else dot_by_block
        return dot(grad, ctx.deltas, ctx.segments), None, None, None


def add_by_block(base: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """``base + Σ_i weights_i Δ_i`` (P,), one small matrix product a block."""
    out = torch.empty_like(base)
    for block, rows in stacked_blocks(deltas, segments):
        part = weights[:, block.first : block.first + block.parts]
        old, new = base[block.start : block.stop], out[block.start : block.stop]
        if block.parts == 1:
            torch.addmv(old, rows.T, part[:, 0], out=new)
        else:
            cube = rows.view(len(deltas), block.parts, -1).transpose(0, 1)  # (parts, n, length)
            shape = (block.parts, 1, cube.shape[2])
            torch.baddbmm(old.view(shape), part.T.unsqueeze(1), cube, out=new.view(shape))
    return out


def dot_by_block(vector: Tensor, deltas: Sequence[Tensor], segments: Segments) -> Tensor:
    """``Σ_{p in s} vector_p Δ_ip`` for every exit and segment (n, S)."""
    out = vector.new_zeros(len(deltas), segments.count)
    for block, rows in stacked_blocks(deltas, segments):
        sums, part = out[:, block.first : block.first + block.parts], vector[block.start : block.stop]
        if block.parts == 1:
            sums[:, 0] += rows @ part
        else:
            cube = rows.view(len(deltas), block.parts, -1).transpose(0, 1)
            sums += torch.bmm(cube, part.view(block.parts, -1, 1)).squeeze(2).T
    return out


def add_by_exit(base: Tensor, deltas: Sequence[Tensor], weights: Tensor, segments: Segments) -> Tensor:
    """As ``add_by_block``, with two kernels an exit."""
    out, lengths = base.clone(), segments.lengths.to(base.device)
    for delta, row in zip(deltas, weights, strict=True):
        out.addcmul_(delta, row.repeat_interleave(lengths, output_size=base.numel()))
    return out


def dot_by_exit(vector: Tensor, deltas: Sequence[Tensor], segments: Segments) -> Tensor:
    """As ``dot_by_block``, with two kernels an exit."""
    lengths = segments.lengths.to(vector.device)
    sums = [torch.segment_reduce(vector * delta, "sum", lengths=lengths) for delta in deltas]
    return torch.stack(sums)


def stacked_blocks(deltas: Sequence[Tensor], segments: Segments) -> Iterator[tuple[Block, Tensor]]:
    """Every block with its rows (n, stop − start): a copy that is small enough for the cache."""
    for block in segments.blocks:
        yield block, torch.stack([delta[block.start : block.stop] for delta in deltas])
