"""The three stages joined: image in, mask out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokencutseg.config import Config
from tokencutseg.models.decoder import UNetUpsampler, upsample
from tokencutseg.models.deepcut import DeepCut, to_grid
from tokencutseg.models.encoders import build_lite0, use_lenient_batch_norm
from tokencutseg.models.masked_transformer import MaskedTransformer
from tokencutseg.models.predict import SegmentationModel
from tokencutseg.models.vqgan import VQGAN

Encoded = tuple[Tensor, Tensor]
"""Tokens (B, H, W) int64, and the latents (B, D, H, W) that they came from."""


@dataclass
class Segmentation:
    """The segmenter's output for B images of side S with T = H·W tokens and C classes."""

    tokens: Tensor  # (B, T) int64
    features: Tensor  # (B, T, E), of the transformer
    assignments: Tensor  # (B, T, C), probabilities at the tokens
    logits: Tensor  # (B, C, S, S)
    probabilities: Tensor  # (B, C, S, S), their softmax; in the released way the assignments, up-sampled
    deepcut_loss: Tensor  # scalar; zero without the graph module

    @property
    def mask(self) -> Tensor:
        """(B, S, S) int64, the likeliest class."""
        return self.probabilities.argmax(1)


class LinearHead(nn.Module):
    """The ablation of the graph module: one linear layer on the same features."""

    def __init__(self, n_features: int, n_classes: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.linear(features)

    def loss(self, assignments: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return assignments.new_zeros(())


class TokenCutSeg(SegmentationModel):
    """Image → tokens → contextual features → graph cut → mask.

    `n_positions` as for the transformer; `pretrained` says whether the up-sampler's encoder starts from ImageNet.
    """

    encoder: nn.Module | None  # EfficientNet-Lite0, whose features the up-sampler takes
    upsampler: UNetUpsampler | None

    def __init__(self, config: Config, n_positions: int | None = None, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        seg, n_features = config.segmentation, config.masked_gpt.d_model
        self.vqgan = VQGAN(config.vqgan)
        self.masked_gpt = MaskedTransformer(config, n_positions)
        self.head = DeepCut(seg, n_features) if seg.use_deepcut else LinearHead(n_features)
        self.encoder = self.upsampler = None
        if seg.upsampling == "unet":
            self.upsampler = UNetUpsampler(config.vqgan.n_stages - 1, n_features)
            self.encoder = build_lite0(pretrained)
            use_lenient_batch_norm(self.encoder)
        self.vqgan.requires_grad_(False)
        self.masked_gpt.requires_grad_(not seg.frozen_transformer)
        self.train()  # a frozen tokenizer must never be in training mode, in which modules start

    def train(self, mode: bool = True) -> TokenCutSeg:
        """Training mode; the tokenizer stays in evaluation mode where its codebook is to stay frozen."""
        super().train(mode)
        if self.config.segmentation.frozen_codebook:
            self.vqgan.eval()
        if self.config.segmentation.frozen_transformer:
            self.masked_gpt.eval()
        return self

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens that images (B, 3, S, S) have."""
        stride = 2**self.config.vqgan.n_stages
        return images.shape[-2] // stride, images.shape[-1] // stride

    @torch.no_grad()
    def encode_to_tokens(self, images: Tensor) -> Encoded:
        """RGB in [0, 1] (B, 3, S, S) → tokens (B, H, W) int64 and the latents (B, D, H, W) that they came from."""
        latents = self.vqgan.encode(self.vqgan.normalise(images))
        return self.vqgan.quantize(latents).tokens, latents

    def transformer_features(self, tokens: Tensor, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, H, W) and their latents → (B, T, E); mask (B, T) True where a token is masked."""
        grid = tuple(tokens.shape[1:])
        return self.masked_gpt(tokens.flatten(1), latents.flatten(2).transpose(1, 2), mask, grid)

    def predict_masked(self, images: Tensor, mask: Tensor, encoded: Encoded | None = None) -> tuple[Tensor, Tensor]:
        """Masked-token prediction: RGB in [0, 1] (B, 3, S, S), mask (B, T) True where a token is masked → all tokens
        (B, H, W) and logits (B, T, K + 1) for each. `encoded` is `encode_to_tokens(images)`, where it is known."""
        tokens, latents = self.encode_to_tokens(images) if encoded is None else encoded
        return tokens, self.masked_gpt.lm_head(self.transformer_features(tokens, latents, mask))

    def pyramid(self, images: Tensor, blank: Tensor | None = None) -> list[Tensor]:
        """RGB in [0, 1] (B, 3, S, S) → the encoder's features at strides 2 to 32, without the pixels of tokens where
        `blank` (B, T) is True."""
        assert self.encoder is not None, "only the up-sampler `unet` has an encoder"
        x = 2 * images - 1
        if blank is not None:
            visible = (~blank).view(-1, 1, *self.grid(images)).to(x.dtype)
            x = x * F.interpolate(visible, images.shape[-2:])
        return self.encoder(x.contiguous(memory_format=torch.channels_last))[1:]  # faster on a CPU, by a third

    def forward(self, images: Tensor, token_mask: Tensor | None = None, blank: bool = False) -> Segmentation:
        """RGB in [0, 1] (B, 3, S, S); token_mask (B, T) masks tokens for the transformer, as in released training, and
        with `blank` their pixels for the up-sampler's encoder.

        Any S that is a multiple of the tokenizer's stride works, twice or more.
        """
        tokens, latents = self.encode_to_tokens(images)
        grid, size = tuple(tokens.shape[1:]), images.shape[-2:]
        features = self.transformer_features(tokens, latents, token_mask)
        token_logits = self.head(features, grid).float()
        assignments = token_logits.softmax(-1)
        logits = to_grid(token_logits, grid)
        if self.upsampler is None:
            logits = upsample(logits, size)
        else:
            pyramid = self.pyramid(images, token_mask if blank else None)
            logits = self.upsampler(to_grid(features, grid), logits, pyramid, self.vqgan.normalise(images))
        probabilities = logits.softmax(1)
        if self.upsampler is None and self.config.segmentation.loss_input == "probabilities":
            probabilities = upsample(to_grid(assignments, grid), size)  # released: after the softmax, not before
        with torch.autocast(images.device.type, enabled=False):  # sums over all tokens
            loss = self.head.loss(assignments, features.float(), grid)
        return Segmentation(tokens.flatten(1), features, assignments, logits, probabilities, loss)

    def probabilities(self, images: Tensor) -> Tensor:
        return self(images).probabilities
