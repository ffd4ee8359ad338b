"""Stage 2, the transformer: a bidirectional encoder of token maps, trained to predict masked tokens.

Devlin et al., "BERT", 2019 (masked-token training); Chang et al., "MaskGIT", CVPR 2022 (the same on image tokens,
with a variable high ratio); Bao et al., "BEiT", 2022 (block masking).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tokencutseg.config import Config, MaskedGPTConfig
from tokencutseg.models.attention import attention

Grid = tuple[int, int]


class Block(nn.Module):
    """Self-attention and a four times wider MLP, with LayerNorm after (`post`) or before (`pre`) each."""

    def __init__(self, config: MaskedGPTConfig) -> None:
        super().__init__()
        C = config.d_model
        self.n_head, self.dropout, self.pre_norm = config.n_head, config.dropout, config.norm == "pre"
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.norm1, self.norm2 = nn.LayerNorm(C, eps=1e-12), nn.LayerNorm(C, eps=1e-12)
        self.fc1, self.fc2 = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        if self.pre_norm:
            x = x + self.drop(self.attend(self.norm1(x)))
            return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        x = self.norm1(x + self.drop(self.attend(x)))
        return self.norm2(x + self.drop(self.fc2(F.gelu(self.fc1(x)))))

    def attend(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self._heads(x)
        y = attention(q, k, v, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, T, C))

    def attention_weights(self, x: Tensor, query: Tensor) -> Tensor:
        """Attention (B, n_head, Q, T) that the positions `query` (Q,) pay to every token; x is the block's input."""
        q, k, _ = self._heads(self.norm1(x) if self.pre_norm else x)
        return (q[:, :, query] @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        return self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)


class TiedHead(nn.Module):
    """The unused BERT MLM head of the released code, tied to the token embedding: never trained, kept for its files."""

    def __init__(self, d_model: int, vocabulary: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.layernorm = nn.LayerNorm(d_model, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.layernorm(F.gelu(self.dense(x))) @ embedding.T + self.bias


class MaskedTransformer(nn.Module):
    """Token map → contextual features, and logits over the codebook.

    The vocabulary is one wider than the codebook: id K is the slot for a masked position (the released code leaves it
    unused and masks with id 0, which is also a code). `n_positions` is the length of the position table, by default one
    for each token of an image.
    """

    def __init__(self, config: Config, n_positions: int | None = None) -> None:
        super().__init__()
        self.config = c = config.masked_gpt
        self.codebook_size = K = config.vqgan.codebook_size
        self.mask_id, C = 0 if c.mask_id == "zero" else K, c.d_model
        self.token_embedding = nn.Embedding(K + 1, C)
        self.position_embedding = nn.Embedding(n_positions or config.grid_size**2, C)
        self.vector_embedding = nn.Linear(config.vqgan.code_dim, C) if c.inputs == "tokens_and_vectors" else None
        self.embedding_norm = nn.LayerNorm(C, eps=1e-12)
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.final_norm = nn.LayerNorm(C, eps=1e-12) if c.norm == "pre" else nn.Identity()
        self.lm_head = nn.Linear(C, K + 1)
        self.tied_head = TiedHead(C, K + 1) if config.recipe == "released" else None
        self.apply(_initialise)

    def forward(self, tokens: Tensor, *context: Any, **by_name: Any) -> Tensor:
        """Contextual features (B, T, C); takes what `embed` takes."""
        return self.hidden_states(tokens, *context, **by_name)[-1]

    def hidden_states(self, tokens: Tensor, *context: Any, **by_name: Any) -> list[Tensor]:
        """The embedding, each block's output, and the final features: n_layer + 2 tensors (B, T, C)."""
        states = [self.embed(tokens, *context, **by_name)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return [*states, self.final_norm(states[-1])]

    def embed(
        self, tokens: Tensor, vectors: Tensor | None = None, mask: Tensor | None = None, grid: Grid | None = None
    ) -> Tensor:
        """Token, position and (where the recipe says so) vector embedding: (B, T, C).

        tokens: (B, T) int64 in [0, K]. vectors: (B, T, D), the encoder's latents, for `inputs: tokens_and_vectors`.
        mask: (B, T) bool, True where a token is masked. grid: (H, W) when it is not the square one of the position
        table; positions are then interpolated (under `positions: first`, where T fits the table, its first T). Raises
        ValueError where that is needed and `grid` is missing.
        """
        if mask is not None:
            tokens = tokens.masked_fill(mask, self.mask_id)
        x = self.token_embedding(tokens) + self._positions(tokens.shape[1], grid)
        if self.vector_embedding is not None:
            if vectors is None:
                raise ValueError("this transformer takes the tokenizer's vectors too; pass `vectors` (B, T, D)")
            embedded = self.vector_embedding(vectors)
            x = x + (embedded if mask is None else embedded.masked_fill(mask[..., None], 0))
        return self.drop(self.embedding_norm(x))

    def _positions(self, T: int, grid: Grid | None) -> Tensor:
        table = self.position_embedding.weight  # (T0, C)
        side = math.isqrt(len(table))
        if len(table) == T and grid in (None, (side, side)):
            return table
        if self.config.positions == "first" and len(table) >= T:
            return table[:T]
        if grid is None:
            raise ValueError(f"{T} tokens, but positions for {len(table)}; pass `grid` to have them interpolated")
        square = table.T.reshape(1, -1, side, side)
        return F.interpolate(square, grid, mode="bicubic", align_corners=True)[0].flatten(1).T


def sample_token_mask(
    shape: tuple[int, int, int], config: MaskedGPTConfig, generator: Generator | None = None, ratio: float | None = None
) -> Tensor:
    """Which tokens to mask: (B, H·W) bool, True is masked. Drawn on the CPU.

    iid: every position alone with probability `mask_ratio` (released: 15 %). block: ragged clumps that cover the
    ratio exactly (in place of BEiT's blocks). variable: the same with the ratio drawn anew for each image from
    mask_ratio ± 0.3 (after MaskGIT). At least one token is masked and one is left. `ratio` replaces the configured one.
    """
    B, H, W = shape
    T = H * W
    ratios = torch.full((B,), config.mask_ratio if ratio is None else ratio)
    if config.mask_pattern == "iid":
        return _keep_one_of_each(torch.rand(B, T, generator=generator) < ratios[:, None], generator)
    if config.mask_pattern == "variable" and ratio is None:
        ratios = (ratios + 0.6 * (torch.rand(B, generator=generator) - 0.5)).clamp(0.05, 0.95)
    # a smooth random field, thresholded at the wanted share, masks clumps without a loop over squares
    cells = max(2, min(H, W) // 4)
    coarse = torch.rand(B, 1, max(2, H // cells + 1), max(2, W // cells + 1), generator=generator)
    field = F.interpolate(coarse, (H, W), mode="nearest") + 0.5 * torch.rand(B, 1, H, W, generator=generator)
    rank = field.flatten(1).argsort(1).argsort(1)  # (B, T), 0 for the smallest
    return rank < (ratios * T).round().clamp(1, T - 1)[:, None]


def _keep_one_of_each(mask: Tensor, generator: Generator | None) -> Tensor:
    """Mask one token where none is masked, unmask one where all are."""
    B, T = mask.shape
    at = torch.randint(T, (B, 1), generator=generator)
    mask = mask.scatter(1, at, mask.gather(1, at) | ~mask.any(1, keepdim=True))
    return mask.scatter(1, at, mask.gather(1, at) & ~mask.all(1, keepdim=True))


def _initialise(module: nn.Module) -> None:
    """Truncated normal, deviation 0.02, bounds ±0.04 (released)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
