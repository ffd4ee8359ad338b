"""Reconstruction quality of the tokenizer: per-image L1, PSNR, SSIM and LPIPS."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tokencutseg.data.image_set import ImageSet
from tokencutseg.models.perceptual import Lite0Distance, VGGDistance
from tokencutseg.models.vqgan import VQGAN

BATCH = 16
"""Images compared at once; VGG16's feature maps of one at 224 px take about 0.1 GB."""
Distance = VGGDistance | Lite0Distance


@torch.no_grad()
def decoding_scores(vqgan: VQGAN, images: ImageSet, lpips_model: Distance | None = None) -> pd.DataFrame:
    """`reconstruction_scores` of a set's images decoded from their tokens."""
    parts = []
    for chunk in images.images.split(BATCH):
        batch = chunk.float() / 255
        parts.append(reconstruction_scores(batch, vqgan.detokenize(vqgan.tokenize(batch)), lpips_model))
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def reconstruction_scores(images: Tensor, reconstructions: Tensor, lpips_model: Distance | None = None) -> pd.DataFrame:
    """Compare images with their reconstructions, each (N, 3, S, S) float RGB in [0, 1].

    Returns N rows `l1` (mean absolute error), `psnr` (dB; infinite for equal images), `ssim` (Wang et al. 2004, window
    of 11 px, Gaussian, borders mirrored), and with `lpips_model` (of `load_lpips`, on the images' device) also `lpips`.
    Raises ValueError where the shapes differ or a value lies outside [0, 1].
    """
    if images.shape != reconstructions.shape or images.ndim != 4:
        shapes = f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)}"
        raise ValueError(f"{shapes} must both have one shape (N, 3, S, S)")
    for name, values in (("images", images), ("reconstructions", reconstructions)):
        if not (values.min() >= 0 and values.max() <= 1):
            span = f"{values.min():.3f} to {values.max():.3f}"
            raise ValueError(f"{name} must lie in [0, 1], not {span}: undo the network's normalisation and clamp first")
    scores = {
        "l1": (images - reconstructions).abs().mean(dim=(1, 2, 3)),
        "psnr": peak_signal_noise_ratio(reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3)),
        "ssim": structural_similarity_index_measure(reconstructions, images, data_range=1.0, reduction="none"),
    }
    if lpips_model is not None:
        scores["lpips"] = lpips_model(images, reconstructions, normalize=True)
    return pd.DataFrame({name: values.reshape(-1).cpu().numpy() for name, values in scores.items()})
