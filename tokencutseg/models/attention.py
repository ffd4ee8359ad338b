"""Attention with dropout on a CPU, where torch's fused kernel has none and falls back to stored T×T matrices.

Dao et al., "FlashAttention", NeurIPS 2022: compute blocks of queries, store nothing of size T×T, compute the weights
again in the backward pass. The dropout masks are drawn again too, from the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_CELLS = 2_500_000
"""Attention weights in one block, at least one row of each sequence; the backward pass holds three blocks."""


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q kᵀ / √d) v for q, k, v (B, heads, T, d), its weights dropped with probability `dropout`."""
    if dropout == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    seed = int(torch.randint(2**62, ()))  # from torch's own state: a seeded training repeats itself
    flat = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v / (1 - dropout)))
    return _BlockedAttention.apply(*flat, dropout, seed).view_as(q)


def draw_kept(out: Tensor, dropout: float, seed: int, block: int) -> Tensor:
    """Fill `out` with 1 where a weight of this block is kept, else 0; 16 random bits each, faster than Bernoulli."""
    generator = np.random.Generator(np.random.SFC64([seed, block]))
    words = generator.integers(2**64, size=-(-out.numel() // 4), dtype=np.uint64, endpoint=False)
    bits = torch.from_numpy(words.view(np.int16))
    torch.ge(bits, round(dropout * 2**16) - 2**15, out=bits)  # as integers: operators on booleans are slow
    return out.copy_(bits[: out.numel()].view_as(out))


class _BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ), some of it dropped, times v, for q, k, v (N, T, d). Blocks share buffers: fresh memory is slow."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, dropout: float, seed: int) -> Tensor:
        out = torch.empty_like(q)
        for i, (rows, weights, free) in enumerate(_blocks(q, k, buffers=2)):
            out[:, rows] = weights.mul_(draw_kept(free, dropout, seed, i)) @ v
        ctx.save_for_backward(q, k, v, out)
        ctx.dropout, ctx.seed = dropout, seed
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        along = (gradient * out).sum(-1, keepdim=True)  # Σ weight · its gradient, for each row
        for i, (rows, weights, free, ds) in enumerate(_blocks(q, k, buffers=3)):
            g, kept = gradient[:, rows], draw_kept(free, ctx.dropout, ctx.seed, i)
            torch.bmm(g, v.mT, out=ds)
            ds.mul_(kept).sub_(along[:, rows]).mul_(weights)  # through the softmax
            dq[:, rows] = ds @ k
            dk.baddbmm_(ds.mT, q[:, rows])
            dv.baddbmm_(weights.mul_(kept).mT, g)
        return dq, dk, dv, None, None


def _blocks(q: Tensor, k: Tensor, buffers: int) -> Iterator[tuple]:
    """For each block of queries: its rows, softmax(q kᵀ) (N, rows, T) of them, and free tensors of that shape."""
    N, T, _ = q.shape
    step = max(1, min(T, BLOCK_CELLS // (N * T)))
    memory = q.new_empty(buffers, N * step * T)
    for start in range(0, T, step):
        rows = slice(start, min(T, start + step))
        scores, weights, *free = memory[:, : N * (rows.stop - start) * T].view(buffers, N, -1, T)
        torch.softmax(torch.bmm(q[:, rows], k.mT, out=scores), -1, out=weights)
        yield rows, weights, scores, *free
