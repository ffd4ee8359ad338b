"""Trained models over whole image sets, in batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tokencutseg.data.image_set import ImageSet
from tokencutseg.models.vqgan import VQGAN


@torch.no_grad()
def map_batches(function: Callable[[Tensor], Tensor], images: ImageSet, batch_size: int, device: str = "cpu") -> Tensor:
    """Apply `function` to float batches (B, 3, S, S) in [0, 1] of a set, and join the results on the CPU."""
    return torch.cat([function(chunk.to(device).float() / 255).cpu() for chunk in images.images.split(batch_size)])


def predict_lesion_scores(model: nn.Module, images: ImageSet, batch_size: int = 32) -> Tensor:
    """Lesion scores of a set: p(lesion) − p(skin) of every pixel, (N, S, S) float32, lesion where positive."""

    def scores(x: Tensor) -> Tensor:
        skin, lesion = model.predict_probabilities(x).float().unbind(1)
        return lesion - skin

    return map_batches(scores, images, batch_size, next(model.parameters()).device)


def predict_masks(model: nn.Module, images: ImageSet, batch_size: int = 32) -> Tensor:
    """The predicted lesion masks of a set: (N, S, S) uint8 of {0, 1}."""
    return (predict_lesion_scores(model, images, batch_size) > 0).to(torch.uint8)


def tokenize(vqgan: VQGAN, images: ImageSet, batch_size: int = 32) -> Tensor:
    """The tokens of a set: (N, H, W) int64."""
    return map_batches(vqgan.tokenize, images, batch_size, next(vqgan.parameters()).device)


def downsample_mask(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each token's area is lesion: masks (N, S, S) of {0, 1} → (N, H, W) float in [0, 1]."""
    return torch.nn.functional.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0]


def upsample_nearest(values: Tensor, size: int) -> Tensor:
    """Values of tokens (…, H, W) at their pixels, (…, S, S) with S = `size`."""
    f = size // values.shape[-1]
    return values.repeat_interleave(f, -2).repeat_interleave(f, -1)
