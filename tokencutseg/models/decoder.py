"""From token logits to pixel logits: bilinear up-sampling (released), or a light decoder (revised)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokencutseg.config import VQGANConfig
from tokencutseg.models.encoders import LITE0, LITE0_CHANNELS
from tokencutseg.models.vqgan import ResidualBlock


class GuidedUpsampler(nn.Module):
    """Token features and logits → pixel logits, guided by the encoder's feature pyramid and by the pixels.

    Two levels coarser than the token grid gather context. From the coarsest one, each step doubles the side, joins the
    level of that side, and applies one 3×3 convolution. The token features join at their grid, through a projection
    that starts at zero. The result is a correction to the bilinearly up-sampled token logits and starts at zero, too.
    """

    CONTEXT = (192, 256)
    """Channels of the levels below the token grid."""

    def __init__(self, config: VQGANConfig, n_features: int, n_classes: int, width: int = 32) -> None:
        super().__init__()
        channels = [config.hidden_channels * 2 ** (i + 1) for i in range(config.n_stages)] + list(self.CONTEXT)
        self.context = nn.ModuleList(_context_block(a, b) for a, b in itertools.pairwise(channels[-3:]))
        self.lift = nn.Conv2d(channels[-1], width, 1)
        self.skips = nn.ModuleList(nn.Conv2d(c, width, 1) for c in reversed(channels[:-1]))
        self.blocks = nn.ModuleList(conv_block(2 * width, width) for _ in self.skips)
        self.tokens = nn.Conv2d(n_features + n_classes, width, 1)
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.pixels = conv_block(3, width // 2)
        self.last = conv_block(width, width // 2)
        self.out = nn.Conv2d(width // 2, n_classes, 1)
        for layer in (self.tokens, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, logits: Tensor, pyramid: list[Tensor], pixels: Tensor) -> Tensor:
        """features (B, E, H, W), logits (B, C, H, W), pyramid finest first, pixels (B, 3, S, S) → (B, C, S, S)."""
        size, levels = pixels.shape[-2:], list(pyramid)
        for block in self.context:
            levels.append(block(levels[-1]))
        x = self.lift(levels.pop())
        for skip, block, level in zip(self.skips, self.blocks, reversed(levels), strict=True):
            joined = skip(level)
            if level is pyramid[-1]:
                joined = joined + self.tokens(torch.cat([features, logits], 1))
            x = upsample(x, level.shape[-2:])
            x = x + block(torch.cat([x, joined], 1))
        x = upsample(self.narrow(x), size)
        x = x + self.last(torch.cat([x, self.pixels(pixels)], 1))
        return upsample(logits, size) + self.out(x)


class UNetUpsampler(nn.Module):
    """The same with the decoder of a U-Net (Ronneberger et al. 2015, as in segmentation_models_pytorch) over Lite0.

    Token features and logits join the encoder's features at their grid, through a projection that starts at zero and
    learns at a tenth of the rate: the model starts as a U-Net, and at the full rate the projection would outgrow the
    pretrained features within an epoch. To correct the up-sampled token logits instead, as `GuidedUpsampler` does, was
    worse.
    """

    TOKEN_SCALE = 0.1
    """Factor of the projection; under optimizers that normalise gradients its output changes that much slower."""

    def __init__(self, level: int, n_features: int, n_classes: int) -> None:
        """The tokens' grid is that of the encoder's features number `level`, finest first."""
        super().__init__()
        import segmentation_models_pytorch as smp  # slow to import

        unet = smp.Unet(LITE0, encoder_weights=None, classes=n_classes)
        self.level, self.decoder, self.out = level, unet.decoder, unet.segmentation_head
        self.tokens = nn.Conv2d(n_features + n_classes, LITE0_CHANNELS[level], 1)
        nn.init.zeros_(self.tokens.weight)
        nn.init.zeros_(self.tokens.bias)

    def forward(self, features: Tensor, logits: Tensor, pyramid: list[Tensor], pixels: Tensor) -> Tensor:
        """As for `GuidedUpsampler`."""
        levels = list(pyramid)
        levels[self.level] = levels[self.level] + self.TOKEN_SCALE * self.tokens(torch.cat([features, logits], 1))
        return self.out(self.decoder([pixels, *levels]))


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners not aligned (released)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """3×3 convolution, GroupNorm, GELU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.GELU())


def _context_block(inputs: int, outputs: int) -> nn.Sequential:
    halve = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(halve, nn.GroupNorm(8, outputs), nn.SiLU(), ResidualBlock(outputs, 8))
