"""Attention with dropout on a CPU, where torch's fused kernel has none and falls back to stored T×T matrices.

Dao et al., "FlashAttention", NeurIPS 2022: work through blocks of queries, keep nothing of size T×T, and compute the
weights again on the way back. What was dropped is drawn again too, from the same seed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_CELLS = 2_500_000
"""Attention weights in one block, at least one row; the way back holds three blocks."""


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q kᵀ / √d) v for q, k, v (B, heads, T, d), its weights dropped with probability `dropout`."""
    if dropout == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    seed = int(torch.randint(2**62, ()))  # from torch's own state: a seeded training repeats itself
    flat = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v / (1 - dropout)))
    return _BlockedAttention.apply(*flat, dropout, seed).view_as(q)


def draw_kept(out: Tensor, dropout: float, seed: int, block: int) -> Tensor:
    """Fill `out` with 1 where a weight of this block stays, and 0 where it is dropped.

    Sixteen random bits for each, many times faster than Bernoulli. They are compared as integers and then made floats,
    since torch's operators on booleans are slow.
    """
    generator = np.random.Generator(np.random.SFC64([seed, block]))
    words = generator.integers(2**64, size=-(-out.numel() // 4), dtype=np.uint64, endpoint=False)
    bits = torch.from_numpy(words.view(np.int16))
    torch.ge(bits, round(dropout * 2**16) - 2**15, out=bits)
    return out.copy_(bits[: out.numel()].view_as(out))


class _BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ), some of it dropped, times v, for q, k, v (N, T, d).

    Blocks are written into the same few buffers: fresh memory costs more than the arithmetic.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, dropout: float, seed: int) -> Tensor:
        out, buffers = torch.empty_like(q), _buffers(q, 2)
        for i, (n, rows) in enumerate(_blocks(q)):
            weights, free = _weights(q[n, rows], k[n], buffers)
            out[n, rows] = weights.mul_(draw_kept(free, dropout, seed, i)) @ v[n]
        ctx.save_for_backward(q, k, v, out)
        ctx.dropout, ctx.seed = dropout, seed
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        dq, dk, dv, buffers = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), _buffers(q, 3)
        along = (gradient * out).sum(-1, keepdim=True)  # of the weights and their gradient, row by row
        for i, (n, rows) in enumerate(_blocks(q)):
            g, (weights, free) = gradient[n, rows], _weights(q[n, rows], k[n], buffers)
            kept = draw_kept(free, ctx.dropout, ctx.seed, i)
            ds = torch.bmm(g, v[n].mT, out=_shaped(buffers[2], weights.shape))
            ds.mul_(kept).sub_(along[n, rows]).mul_(weights)  # through the softmax
            dq[n, rows] = ds @ k[n]
            dk[n].baddbmm_(ds.mT, q[n, rows])
            dv[n].baddbmm_(weights.mul_(kept).mT, g)
        return dq, dk, dv, None, None


def _blocks(q: Tensor) -> list[tuple[slice, slice]]:
    """Parts of (N, T) queries such that a block of weights has at most `BLOCK_CELLS` cells: rows of one sequence, or
    several whole ones."""
    N, T, _ = q.shape
    many, rows = max(1, BLOCK_CELLS // T**2), max(1, min(T, BLOCK_CELLS // T))
    return [(slice(n, n + many), slice(row, row + rows)) for n in range(0, N, many) for row in range(0, T, rows)]


def _buffers(q: Tensor, count: int) -> tuple[Tensor, ...]:
    """Room for `count` blocks of weights."""
    n, rows = _blocks(q)[0]
    return q.new_empty(count, math.prod(q[n, rows].shape[:2]) * q.shape[1]).unbind()


def _shaped(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def _weights(q: Tensor, k: Tensor, buffers: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ) (n, rows, T) in the second buffer, and the first, which is free again, in the same shape."""
    shape = (*q.shape[:2], k.shape[1])
    scores = torch.bmm(q, k.mT, out=_shaped(buffers[0], shape))
    return torch.softmax(scores, -1, out=_shaped(buffers[1], shape)), scores
