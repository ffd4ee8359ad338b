"""Attention with dropout on a CPU, where torch's fused kernel has none and falls back to stored T×T matrices.

Dao et al., "FlashAttention", NeurIPS 2022: one block at a time, here some whole sequences; store the logarithm of each
row's sum instead of the weights, and compute these again in the backward pass. The dropout masks are drawn again too,
from the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_CELLS = 2_100_000
"""Attention weights in one block, at least one sequence's; the backward pass holds three blocks."""


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q kᵀ / √d) v for q, k, v (B, heads, T, d), its weights dropped with probability `dropout`."""
    if dropout == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    seed = int(torch.randint(2**62, ()))  # from torch's own state: a seeded training repeats itself
    flat = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v / (1 - dropout)))
    return _BlockedAttention.apply(*flat, dropout, seed).view_as(q)


def draw_kept(shape: tuple[int, ...], dropout: float, seed: int, block: int) -> Tensor:
    """1 where a weight of this block is kept, else 0; from 16 random bits each, faster than Bernoulli."""
    generator, cells = np.random.Generator(np.random.SFC64([seed, block])), int(np.prod(shape))
    words = generator.integers(2**64, size=-(-cells // 4), dtype=np.uint64, endpoint=False)
    kept = words.view(np.uint16)[:cells] >= round(dropout * 2**16)
    return torch.from_numpy(kept.view(np.uint8)).view(shape)  # torch is slow on booleans


class _BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ), some of it dropped, times v, for q, k, v (N, T, d)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, dropout: float, seed: int) -> Tensor:
        out, log_sum = torch.empty_like(q), torch.empty_like(q[..., :1])
        for block, kept, weights in _blocks(q, dropout, seed, buffers=1):
            largest = torch.bmm(q[block], k[block].mT, out=weights).amax(-1, keepdim=True)
            total = weights.sub_(largest).exp_().sum(-1, keepdim=True)
            log_sum[block] = total.log() + largest
            torch.bmm(weights.mul_(kept), v[block], out=out[block]).div_(total)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.dropout, ctx.seed = dropout, seed
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        along = (gradient * out).sum(-1, keepdim=True)  # Σ weight · its gradient, for each row
        for block, kept, weights, dropped, ds in _blocks(q, ctx.dropout, ctx.seed, buffers=3):
            torch.bmm(q[block], k[block].mT, out=weights).sub_(log_sum[block]).exp_()
            torch.mul(weights, kept, out=dropped)
            torch.bmm(gradient[block], v[block].mT, out=ds)
            ds.mul_(dropped).addcmul_(weights, along[block], value=-1)  # through the softmax
            torch.bmm(ds, k[block], out=dq[block])
            torch.bmm(ds.mT, q[block], out=dk[block])
            torch.bmm(dropped.mT, gradient[block], out=dv[block])
        return dq, dk, dv, None, None


def _blocks(q: Tensor, dropout: float, seed: int, buffers: int) -> Iterator[tuple]:
    """For each block of sequences: its slice of N, what is kept of its weights (block, T, T), and tensors of that shape
    to write to, always the same: fresh memory is slow."""
    N, T, _ = q.shape
    step = max(1, min(N, BLOCK_CELLS // T**2))
    memory = q.new_empty(buffers, step, T, T)
    for i, start in enumerate(range(0, N, step)):
        size = min(step, N - start)
        kept = draw_kept((size, T, T), dropout, seed, i)
        yield slice(start, start + size), kept, *memory[:, :size]
