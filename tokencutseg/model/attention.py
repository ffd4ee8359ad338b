"""Attention with dropout on a CPU, where torch's fused kernel has none and falls back to stored T×T matrices.

Dao et al., "FlashAttention", NeurIPS 2022: work through blocks of queries, keep nothing of size T×T, and compute the
weights again on the way back. What was dropped is drawn again too, from the same seed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_CELLS = 2_000_000
"""Attention weights in one block, at least one row; the way back holds two blocks and what was dropped."""


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q kᵀ / √d) v for q, k, v (B, heads, T, d), its weights dropped with probability `dropout`."""
    if dropout == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    seed = int(torch.randint(2**62, ()))  # from torch's own state, so that a seeded training repeats itself
    return _BlockedAttention.apply(q, k, v, dropout, seed)


def dropped(shape: tuple[int, ...], dropout: float, seed: int, block: int) -> Tensor:
    """Which weights of a block go: bool of `shape`. Sixteen random bits each, many times faster than Bernoulli."""
    generator = np.random.Generator(np.random.SFC64([seed, block]))
    count = int(np.prod(shape))
    bits = generator.integers(2**64, size=-(-count // 4), dtype=np.uint64, endpoint=False).view(np.int16)[:count]
    return (torch.from_numpy(bits) < round(dropout * 2**16) - 2**15).view(shape)


class _BlockedAttention(torch.autograd.Function):

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, dropout: float, seed: int) -> Tensor:
        out, scaled = torch.empty_like(q), v / (1 - dropout)
        for i, rows in enumerate(_blocks(q)):
            weights = _weights(q[:, :, rows], k)
            out[:, :, rows] = weights.masked_fill_(dropped(weights.shape, dropout, seed, i), 0) @ scaled
        ctx.save_for_backward(q, k, v, out)
        ctx.dropout, ctx.seed = dropout, seed
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        scaled = v / (1 - ctx.dropout)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        along = (gradient * out).sum(-1, keepdim=True)  # of the weights and their gradient, row by row
        for i, rows in enumerate(_blocks(q)):
            weights, g = _weights(q[:, :, rows], k), gradient[:, :, rows]
            drop = dropped(weights.shape, ctx.dropout, ctx.seed, i)
            dw = (g @ scaled.transpose(-2, -1)).masked_fill_(drop, 0)
            ds = dw.sub_(along[:, :, rows]).mul_(weights)  # through the softmax
            dq[:, :, rows] = ds @ k
            dk += ds.transpose(-2, -1) @ q[:, :, rows]
            dv += weights.masked_fill_(drop, 0).transpose(-2, -1) @ g
        scale = q.shape[-1] ** -0.5
        return dq.mul_(scale), dk.mul_(scale), dv.div_(1 - ctx.dropout), None, None


def _blocks(q: Tensor) -> list[slice]:
    """Slices of the queries such that a block of weights has at most `BLOCK_CELLS` cells."""
    B, heads, T, _ = q.shape
    rows = max(1, BLOCK_CELLS // (B * heads * T))
    return [slice(start, min(start + rows, T)) for start in range(0, T, rows)]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights (B, heads, rows, T)."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
