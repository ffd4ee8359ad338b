"""What a trained model does inside: masked-token prediction, attention maps, decoded codes, features as colours."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from tokencutseg.config import MaskedGPTConfig
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.tokencutseg import TokenCutSeg


def sample_token_masks(
    config: MaskedGPTConfig, pattern: str, ratio: float, grid: tuple[int, int], n: int = 1, seed: int = 0
) -> Tensor:
    """Token masks (n, H, W) bool of a pattern (`iid` or `block`) and mask ratio, True where a token is masked."""
    config = dataclasses.replace(config, mask_pattern=pattern)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    return sample_token_mask((n, *grid), config, generator, ratio).unflatten(1, grid)


class Inpainting(NamedTuple):
    """Images whose masked tokens were predicted, all at once, each as its likeliest code."""

    images: Tensor  # (N, 3, S, S) in [0, 1]
    tokens: Tensor  # (N, H, W) int64, of the whole image
    mask: Tensor  # (N, H, W) bool
    filled: Tensor  # (N, H, W) int64: the tokens, predicted where they were masked
    decoded: Tensor  # (N, 3, S, S) in [0, 1], from `filled`
    entropy: Tensor  # (N, H, W), of the predicted distribution over the codes, in nats
    probabilities: Tensor  # (N, H, W, K), that distribution


@torch.no_grad()
def inpaint(model: TokenCutSeg, images: Tensor, mask: Tensor) -> Inpainting:
    """Mask tokens of images (N, 3, S, S) in [0, 1] and let the transformer predict them. mask: (N, H, W) bool."""
    tokens, logits = model.predict_masked(images, mask.flatten(1))
    # a prediction is a code: without the mask token's own slot
    logits = logits[..., : model.masked_gpt.codebook_size].unflatten(1, mask.shape[1:])
    distribution = torch.distributions.Categorical(logits=logits)
    filled = torch.where(mask, distribution.probs.argmax(-1), tokens)
    decoded = model.vqgan.detokenize(filled)
    return Inpainting(images, tokens, mask, filled, decoded, distribution.entropy(), distribution.probs)


@torch.no_grad()
def attention(model: TokenCutSeg, image: Tensor, query: Tensor) -> Tensor:
    """Attention (n_layer, n_head, Q, H, W) of the tokens `query` (Q,) of an image (3, S, S) to all tokens."""
    tokens, latents = model.encode_to_tokens(image[None])
    grid = tuple(tokens.shape[1:])
    states = model.masked_gpt.hidden_states(tokens.flatten(1), latents.flatten(2).transpose(1, 2), grid=grid)
    blocks = zip(model.masked_gpt.blocks, states, strict=False)  # the last two states are no block's input
    return torch.stack([block.attention_weights(state, query)[0] for block, state in blocks]).unflatten(3, grid)


def lesion_and_skin(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Two query tokens (2,): the one nearest the middle of the lesion mask (S, S), and the one farthest from it; of the
    image's where the mask is empty."""
    share = downsample_mask(mask[None], grid)[0] if mask.any() else torch.ones(grid)
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in grid), indexing="ij")
    distance = (y - (share * y).sum() / share.sum()) ** 2 + (x - (share * x).sum() / share.sum()) ** 2
    return torch.stack([distance.flatten().argmin(), distance.flatten().argmax()])


def mean_decoded_patch(tokens: Tensor, decoded: Tensor, codebook_size: int) -> Tensor:
    """What each code decodes to on average: (K, 3, f, f), with f pixels to a token; NaN for a code without tokens.

    tokens: (N, H, W) int64. decoded: (N, 3, S, S), the images decoded from them.
    """
    f = decoded.shape[-1] // tokens.shape[-1]
    patches = decoded.unfold(2, f, f).unfold(3, f, f).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, f, f)
    sums = torch.zeros(codebook_size, 3, f, f).index_add_(0, tokens.flatten(), patches)
    return sums / torch.bincount(tokens.flatten(), minlength=codebook_size)[:, None, None, None]


def principal_colours(features: Tensor) -> Tensor:
    """Features (T, E) on their three main axes, each stretched to [0, 1]: (T, 3)."""
    centred = features - features.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    shown = centred @ axes[:3].T
    low, high = shown.quantile(torch.tensor([0.02, 0.98]), dim=0)
    return ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
