"""The three stages joined: image in, mask out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokencutseg.config import Config
from tokencutseg.models.decoder import GuidedUpsampler, UNetUpsampler, upsample
from tokencutseg.models.deepcut import DeepCut, to_grid
from tokencutseg.models.encoders import Lite0Encoder
from tokencutseg.models.masked_transformer import MaskedTransformer
from tokencutseg.models.predict import SegmentationModel
from tokencutseg.models.vqgan import VQGAN, Encoding, ImageEncoder

State = dict[str, Tensor]
Encoded = tuple[Tensor, Encoding]
"""Tokens (B, H, W) int64, and the tokenizer's encoding that they came from."""


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


class EncoderOutput(NamedTuple):
    """What the parts after the tokenizer take as input."""

    tokens: Tensor  # (B, H, W) int64
    encoding: Encoding  # the transformer's, which embeds its latents where the recipe says so
    guide: Encoding  # the up-sampler's, which takes its features: of the fine-tuned encoder, where there is one


class LinearHead(nn.Module):
    """The ablation of the graph module: one linear layer on the same features."""

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.linear(features)

    def loss(self, assignments: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return assignments.new_zeros(())


class TokenCutSeg(SegmentationModel):
    """Image → tokens → contextual features → graph cut → mask.

    `n_positions` as for the transformer; `pretrained` says whether an encoder of the recipe's starts from ImageNet.
    """

    encoder: ImageEncoder | Lite0Encoder | None
    upsampler: GuidedUpsampler | UNetUpsampler | None

    def __init__(
        self, config: Config, n_classes: int = 2, n_positions: int | None = None, pretrained: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        seg, n_features = config.segmentation, config.masked_gpt.d_model
        self.vqgan = VQGAN(config.vqgan)
        self.masked_gpt = MaskedTransformer(config, n_positions)
        self.head = DeepCut(seg, n_features, n_classes) if seg.use_deepcut else LinearHead(n_features, n_classes)
        self.encoder = self.upsampler = None
        level = config.vqgan.n_stages - 1
        if seg.upsampling == "guided":
            self.upsampler = GuidedUpsampler(config.vqgan, n_features, n_classes)
        elif seg.upsampling == "unet":
            self.upsampler = UNetUpsampler(level, n_features, n_classes)
        if seg.encoder == "fine_tuned":
            self.encoder = self.vqgan.copy_encoder()
        elif seg.encoder == "imagenet":
            code_dim = config.vqgan.code_dim if config.masked_gpt.trains_encoder else 0  # what the transformer takes
            self.encoder = Lite0Encoder(level, code_dim, pretrained)
        self.vqgan.requires_grad_(False)
        self.masked_gpt.requires_grad_(not seg.frozen_transformer)
        self.train()  # a frozen tokenizer must never be in training mode, in which modules start

    def load_pretrained(
        self, tokenizer: State, transformer: State | None = None, encoder: State | None = None
    ) -> TokenCutSeg:
        """Load state dicts: of a trained tokenizer, a transformer, and the encoder that was trained with it; without
        the last one a copy of the tokenizer's encoder starts as that."""
        self.vqgan.load_state_dict(tokenizer)
        if encoder is None and isinstance(self.encoder, ImageEncoder):
            encoder = {key: tokenizer[key] for key in self.encoder.state_dict()}
        if self.encoder is not None and encoder is not None:
            self.encoder.load_state_dict(encoder)
        if transformer is not None:
            self.masked_gpt.load_state_dict(transformer)
        return self

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
        """RGB in [0, 1] (B, 3, S, S) → tokens (B, H, W) int64 and the tokenizer's encoding that they came from."""
        encoding = self.vqgan.encode(self.vqgan.normalise(images))
        return self.vqgan.quantize(encoding.latents).tokens, encoding

    def encode(self, images: Tensor, encoded: Encoded | None = None, blank: Tensor | None = None) -> EncoderOutput:
        """RGB in [0, 1] (B, 3, S, S) → the input of transformer and up-sampler.

        `encoded` is the result of `encode_to_tokens(images)`, where it is known. `blank` (B, T) is True for tokens
        whose pixels an encoder beside the tokenizer's does not see.
        """
        tokens, own = self.encode_to_tokens(images) if encoded is None else encoded
        tuned = own if self.encoder is None else self._encode(images, blank)
        # the transformer gets latents like those that it was pretrained on: a frozen one, and any beside ImageNet's
        fixed = self.config.segmentation.frozen_transformer or self.config.segmentation.encoder == "imagenet"
        keeps_own = fixed and not self.config.masked_gpt.trains_encoder
        return EncoderOutput(tokens, own if keeps_own else tuned, tuned)

    def transformer_features(self, tokens: Tensor, encoding: Encoding, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, H, W) and their encoding → (B, T, E); mask (B, T) True where a token is masked."""
        grid = tuple(tokens.shape[1:])
        return self.masked_gpt(tokens.flatten(1), encoding.latents.flatten(2).transpose(1, 2), mask, grid)

    def predict_masked(self, images: Tensor, mask: Tensor, encoded: Encoded | None = None) -> tuple[Tensor, Tensor]:
        """Masked-token prediction: RGB in [0, 1] (B, 3, S, S), mask (B, T) True where a token is masked → all tokens
        (B, H, W) and logits (B, T, K + 1) for each. `encoded` as for `encode`.

        An encoder that was pretrained with the transformer encodes the image with the masked patches blanked.
        """
        tokens, encoding = self.encode_to_tokens(images) if encoded is None else encoded
        if self.encoder is not None and self.config.masked_gpt.trains_encoder:
            encoding = self._encode(images, mask)
        return tokens, self.masked_gpt.lm_head(self.transformer_features(tokens, encoding, mask))

    def _encode(self, images: Tensor, blank: Tensor | None = None) -> Encoding:
        """The encoding by `encoder`, without the pixels of tokens where `blank` (B, T) is True."""
        assert self.encoder is not None, "the recipe has no encoder of its own"
        x = 2 * images - 1 if isinstance(self.encoder, Lite0Encoder) else self.vqgan.normalise(images)
        if blank is not None:
            visible = (~blank).view(-1, 1, *self.grid(images)).to(x.dtype)
            x = x * F.interpolate(visible, images.shape[-2:])
        return self.encoder.encode(x)

    def forward(self, images: Tensor, token_mask: Tensor | None = None, blank: bool = False) -> Segmentation:
        """RGB in [0, 1] (B, 3, S, S); token_mask (B, T) masks tokens for the transformer, as in released training, and
        with `blank` their pixels for an encoder beside the tokenizer's.

        Any S that is a multiple of the tokenizer's stride works.
        """
        tokens, encoding, guide = self.encode(images, blank=token_mask if blank else None)
        grid, size = tuple(tokens.shape[1:]), images.shape[-2:]
        features = self.transformer_features(tokens, encoding, token_mask)
        token_logits = self.head(features, grid).float()
        assignments = token_logits.softmax(-1)
        logits = to_grid(token_logits, grid)
        if self.upsampler is None:
            logits = upsample(logits, size)
        else:
            pixels = self.vqgan.normalise(images)
            logits = self.upsampler(to_grid(features, grid), logits, guide.features, pixels)
        probabilities = logits.softmax(1)
        if self.upsampler is None and self.config.segmentation.loss_input == "probabilities":
            probabilities = upsample(to_grid(assignments, grid), size)  # released: after the softmax, not before
        with torch.autocast(images.device.type, enabled=False):  # sums over all tokens
            loss = self.head.loss(assignments, features.float(), grid)
        return Segmentation(tokens.flatten(1), features, assignments, logits, probabilities, loss)

    def probabilities(self, images: Tensor) -> Tensor:
        return self(images).probabilities
