"""Prediction, the same for every segmentation model: any image in, a mask of its size out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tokencutseg.config import Config
from tokencutseg.data.images import DataError, read_image, to_rgb
from tokencutseg.models.decoder import upsample

AnyImage = str | Path | Image.Image | np.ndarray
"""A path, a PIL image, or a uint8 array (H, W, 3) or (H, W)."""


class SegmentationModel(nn.Module):
    """Base of all segmentation models; `probabilities` is theirs to define."""

    config: Config
    segments = True
    """Whether it has learned to; `checkpoint.load` sets it."""

    def probabilities(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (B, 3, S, S) → (B, C, S, S), from a single forward pass."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_probabilities(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (B, 3, S, S) → (B, C, S, S), averaged over the four flips where the recipe asks for it."""
        predicted = self.probabilities(images)
        if self.config.segmentation.test_time_flips:
            for dims in ((-1,), (-2,), (-2, -1)):
                predicted = predicted + self.probabilities(images.flip(dims)).flip(dims)
            predicted = predicted / 4
        return predicted

    @torch.no_grad()
    def predict(self, image: AnyImage) -> np.ndarray:
        """One image of any size → its lesion mask (H, W) bool at the image's own size.

        Takes a path, a PIL image or a uint8 array (H, W, 3). Raises DataError for a file that cannot be read, and for a
        model that has learned to predict tokens only.
        """
        if not self.segments:
            raise DataError("this model has learned to predict masked tokens only; load a segmentation run's folder")
        pixels = image_array(image)
        x = resize_image(pixels, self.config.data.image_size).to(next(self.parameters()).device)[None] / 255
        was_training = self.training
        self.eval()
        try:
            skin, lesion = upsample(self.predict_probabilities(x), pixels.shape[:2])[0]  # (H, W) each
        finally:
            self.train(was_training)
        return (lesion > skin).cpu().numpy()


def image_array(image: AnyImage) -> np.ndarray:
    """A path, PIL image or array → RGB uint8 (H, W, 3). Raises ValueError for an array of another kind."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.array(to_rgb(image))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"an image array must be uint8 of shape (H, W, 3) or (H, W), not {array.dtype} {array.shape}")
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, 2)


def resize_image(image: AnyImage, size: int) -> Tensor:
    """An image of any size → RGB uint8 (3, size, size), bilinearly: the input of a model."""
    square = Image.fromarray(image_array(image)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
