"""From token logits to pixel logits: bilinear up-sampling (released), or the decoder of a U-Net (revised)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokencutseg.models.encoders import LITE0, LITE0_CHANNELS


class UNetUpsampler(nn.Module):
    """The decoder of a U-Net (Ronneberger et al. 2015, as in segmentation_models_pytorch) over EfficientNet-Lite0.

    Token features and logits join the encoder's features at their grid, through a projection that starts at zero and
    learns at a tenth of the rate: the model starts as a U-Net, and at the full rate the projection would outgrow the
    pretrained features within an epoch. To correct the bilinearly up-sampled token logits instead was worse.
    """

    TOKEN_SCALE = 0.1
    """Factor of the projection; under optimizers that normalise gradients its output changes that much slower."""

    def __init__(self, level: int, n_features: int, n_classes: int = 2) -> None:
        """The tokens' grid is that of the encoder's features number `level`, finest first."""
        super().__init__()
        import segmentation_models_pytorch as smp  # slow to import

        unet = smp.Unet(LITE0, encoder_weights=None, classes=n_classes)
        self.level, self.decoder, self.out = level, unet.decoder, unet.segmentation_head
        self.tokens = nn.Conv2d(n_features + n_classes, LITE0_CHANNELS[level], 1)
        nn.init.zeros_(self.tokens.weight)
        nn.init.zeros_(self.tokens.bias)

    def forward(self, features: Tensor, logits: Tensor, pyramid: list[Tensor], pixels: Tensor) -> Tensor:
        """features (B, E, H, W), logits (B, C, H, W), pyramid finest first, pixels (B, 3, S, S) → (B, C, S, S)."""
        levels = list(pyramid)
        levels[self.level] = levels[self.level] + self.TOKEN_SCALE * self.tokens(torch.cat([features, logits], 1))
        return self.out(self.decoder([pixels, *levels]))


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners not aligned (released)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
