"""The three stages joined: image in, mask out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tokencutseg.config import Config, VQGANConfig
from tokencutseg.data.images import read_image, to_rgb
from tokencutseg.models.deepcut import DeepCut, to_grid
from tokencutseg.models.masked_transformer import MaskedTransformer
from tokencutseg.models.vqgan import VQGAN, Encoder, Encoding, ResidualBlock


@dataclass
class Segmentation:
    """What the segmenter says about a batch of B images of side S with T = H·W tokens and C classes."""

    tokens: Tensor
    """(B, T) int64."""
    features: Tensor
    """(B, T, E), the transformer's."""
    assignments: Tensor
    """(B, T, C) probabilities at the tokens."""
    logits: Tensor
    """(B, C, S, S); `probabilities` is their softmax, except in the released way: token probabilities, up-sampled."""
    probabilities: Tensor
    """(B, C, S, S)."""
    deepcut_loss: Tensor
    """Scalar; zero without the graph module."""

    @property
    def mask(self) -> Tensor:
        """(B, S, S) int64, the likeliest class."""
        return self.probabilities.argmax(1)


class EncoderOutput(NamedTuple):
    """What the parts after the tokenizer read of an image."""

    tokens: Tensor
    """(B, H, W) int64."""
    encoding: Encoding
    """For the transformer, whose vectors it may read."""
    guide: Encoding
    """For the up-sampler, which reads its feature maps: the fine-tuned encoder's, where there is one."""


class LinearHead(nn.Module):
    """What the graph module is measured against: the same features, one linear layer."""

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.linear(features)

    def loss(self, assignments: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return assignments.new_zeros(())


class FineTunedEncoder(nn.Module):
    """The tokenizer's encoder once more, to be trained; `TokenCutSeg.load_pretrained` gives it the tokenizer's weights."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.hidden_channels * 2**config.n_stages, config.code_dim, 1)

    def forward(self, x: Tensor) -> Encoding:
        """Network input (B, 3, S, S) → the same as `VQGAN.encode`."""
        stages = self.encoder(x)
        return Encoding(self.quant_conv(stages[-1]), stages)


class GuidedUpsampler(nn.Module):
    """Token features and logits → pixel logits, guided by the encoder's feature maps and by the pixels.

    Two levels coarser than the token grid gather context. From the coarsest one, each step doubles the side, joins what
    is known at that side, and mixes with one 3×3 convolution. What the tokens say joins at their grid, through a
    projection that starts at zero. The result is a correction to the bilinearly up-sampled token logits and starts at
    zero, too.
    """

    CONTEXT = (192, 256)
    """Channels of the levels below the token grid."""

    def __init__(self, config: VQGANConfig, n_features: int, n_classes: int, width: int = 32) -> None:
        super().__init__()
        channels = [config.hidden_channels * 2 ** (i + 1) for i in range(config.n_stages)] + list(self.CONTEXT)
        self.context = nn.ModuleList(_coarser(a, b) for a, b in itertools.pairwise(channels[-3:]))
        self.lift = nn.Conv2d(channels[-1], width, 1)
        self.skips = nn.ModuleList(nn.Conv2d(c, width, 1) for c in reversed(channels[:-1]))
        self.mixes = nn.ModuleList(_mix(2 * width, width) for _ in self.skips)
        self.tokens = nn.Conv2d(n_features + n_classes, width, 1)
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.pixels = _mix(3, width // 2)
        self.last = _mix(width, width // 2)
        self.out = nn.Conv2d(width // 2, n_classes, 1)
        for layer in (self.tokens, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, logits: Tensor, stages: list[Tensor], pixels: Tensor) -> Tensor:
        """features (B, E, H, W), logits (B, C, H, W), stages finest first, pixels (B, 3, S, S) → (B, C, S, S)."""
        size, levels = pixels.shape[-2:], list(stages)
        for level in self.context:
            levels.append(level(levels[-1]))
        x = self.lift(levels.pop())
        for skip, mix, level in zip(self.skips, self.mixes, reversed(levels), strict=True):
            known = skip(level)
            if level is stages[-1]:
                known = known + self.tokens(torch.cat([features, logits], 1))
            x = upsample(x, level.shape[-2:])
            x = x + mix(torch.cat([x, known], 1))
        x = upsample(self.narrow(x), size)
        x = x + self.last(torch.cat([x, self.pixels(pixels)], 1))
        return upsample(logits, size) + self.out(x)


def _coarser(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        ResidualBlock(outputs, 8),
    )


def _mix(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.GELU())


class TokenCutSeg(nn.Module):
    """Image → visual words → contextual features → graph cut → mask.

    `n_positions` is the length of the transformer's position table, by default one for each token of an image.
    """

    def __init__(self, config: Config, n_classes: int = 2, n_positions: int | None = None) -> None:
        super().__init__()
        self.config = config
        seg, n_features = config.segmentation, config.masked_gpt.d_model
        self.vqgan = VQGAN(config.vqgan)
        self.masked_gpt = MaskedTransformer(
            config.masked_gpt,
            config.vqgan.codebook_size,
            config.vqgan.code_dim,
            n_positions or config.grid_size**2,
            tied_head=config.recipe == "released",
        )
        self.head = DeepCut(seg, n_features, n_classes) if seg.use_deepcut else LinearHead(n_features, n_classes)
        self.upsampler = GuidedUpsampler(config.vqgan, n_features, n_classes) if seg.upsampling == "guided" else None
        self.encoder = FineTunedEncoder(config.vqgan) if seg.encoder == "fine_tuned" else None
        self.vqgan.requires_grad_(False)
        self.masked_gpt.requires_grad_(not seg.frozen_transformer)
        self.train()  # modules are born in training mode, which a frozen tokenizer must never be in

    def load_pretrained(
        self,
        tokenizer: dict[str, Tensor],
        transformer: dict[str, Tensor] | None = None,
        encoder: dict[str, Tensor] | None = None,
    ) -> TokenCutSeg:
        """Take over the weights of a trained tokenizer and, where there are such, of a transformer and of the encoder
        that was trained with it: their state dicts. Else the encoder starts as the tokenizer's."""
        self.vqgan.load_state_dict(tokenizer)
        if self.encoder is not None:
            own = {key: tokenizer[key] for key in self.encoder.state_dict()}
            self.encoder.load_state_dict(own if encoder is None else encoder)
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
    def encode_to_tokens(self, images: Tensor) -> tuple[Tensor, Encoding]:
        """RGB in [0, 1] (B, 3, S, S) → tokens (B, H, W) int64 and the encoding they came from."""
        encoding = self.vqgan.encode(self.vqgan.normalise(images))
        return self.vqgan.quantize(encoding.latents).tokens, encoding

    def encode(self, images: Tensor, encoded: tuple[Tensor, Encoding] | None = None) -> EncoderOutput:
        """What is read of RGB in [0, 1] (B, 3, S, S). `encoded` is what `encode_to_tokens(images)` returns, where it is known."""
        tokens, own = self.encode_to_tokens(images) if encoded is None else encoded
        tuned = own if self.encoder is None else self.encoder(self.vqgan.normalise(images))
        # a frozen transformer reads what it was pretrained on
        stays = self.config.segmentation.frozen_transformer and not self.config.masked_gpt.trains_encoder
        return EncoderOutput(tokens, own if stays else tuned, tuned)

    def transformer_features(self, tokens: Tensor, encoding: Encoding, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, H, W) and their encoding → (B, T, E); mask (B, T) True where a token is hidden."""
        grid = tuple(tokens.shape[1:])
        return self.masked_gpt(tokens.flatten(1), encoding.latents.flatten(2).transpose(1, 2), mask, grid)

    def predict_masked(
        self, images: Tensor, mask: Tensor, encoded: tuple[Tensor, Encoding] | None = None
    ) -> tuple[Tensor, Tensor]:
        """RGB in [0, 1] (B, 3, S, S), of which the tokens in mask (B, T) are hidden → all tokens (B, H, W), and what
        the transformer thinks of each, logits (B, T, K + 1). `encoded` as for `encode`.

        An encoder that was pretrained with the transformer reads the image with the hidden cells blanked.
        """
        tokens, encoding = self.encode_to_tokens(images) if encoded is None else encoded
        if self.config.masked_gpt.trains_encoder:
            visible = (~mask).view(-1, 1, *tokens.shape[1:]).to(images.dtype)
            encoding = self.encoder(self.vqgan.normalise(images) * F.interpolate(visible, images.shape[-2:]))
        return tokens, self.masked_gpt.lm_head(self.transformer_features(tokens, encoding, mask))

    def forward(
        self, images: Tensor, token_mask: Tensor | None = None, encoded: tuple[Tensor, Encoding] | None = None
    ) -> Segmentation:
        """RGB in [0, 1] (B, 3, S, S); token_mask (B, T) hides tokens from the transformer, as in released training.

        Any S that is a multiple of the tokenizer's stride works. `encoded` as for `encode`.
        """
        tokens, encoding, guide = self.encode(images, encoded)
        grid, size = tuple(tokens.shape[1:]), images.shape[-2:]
        features = self.transformer_features(tokens, encoding, token_mask)
        token_logits = self.head(features, grid).float()
        assignments = token_logits.softmax(-1)
        if self.upsampler is not None:
            logits = self.upsampler(
                to_grid(features, grid), to_grid(token_logits, grid), guide.stages, self.vqgan.normalise(images)
            )
        else:
            logits = upsample(to_grid(token_logits, grid), size)
        if self.upsampler is None and self.config.segmentation.loss_input == "probabilities":
            probabilities = upsample(to_grid(assignments, grid), size)  # released: after the softmax, not before
        else:
            probabilities = logits.softmax(1)
        with torch.autocast(images.device.type, enabled=False):  # sums over all tokens
            loss = self.head.loss(assignments, features.float(), grid)
        return Segmentation(tokens.flatten(1), features, assignments, logits, probabilities, loss)

    def probabilities(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (B, 3, S, S) → (B, C, S, S), from one look at each image."""
        return self(images).probabilities

    def predict_probabilities(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (B, 3, S, S) → (B, C, S, S), averaged over the four flips where the recipe says so."""
        return predict_probabilities(self, images, self.config.segmentation.test_time_flips)

    def predict(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """One image of any size → its lesion mask (H, W) bool at the image's own size.

        Takes a path, a PIL image or a uint8 array (H, W, 3). Raises DataError for a file that cannot be read.
        """
        return predict_mask(self, image, self.config.data.image_size)


@torch.no_grad()
def predict_probabilities(model: nn.Module, images: Tensor, flips: bool) -> Tensor:
    """What any model with `probabilities` predicts, (B, C, S, S), or the mean over the image and its three flips."""
    predicted = model.probabilities(images)
    if flips:
        for dims in ((-1,), (-2,), (-2, -1)):
            predicted = predicted + model.probabilities(images.flip(dims)).flip(dims)
        predicted = predicted / 4
    return predicted


@torch.no_grad()
def predict_mask(model: nn.Module, image: str | Path | Image.Image | np.ndarray, size: int) -> np.ndarray:
    """The mask (H, W) bool of one image of any size, by any model that has `predict_probabilities`."""
    pixels = image_array(image)
    x = resized(pixels, size).to(next(model.parameters()).device)[None] / 255
    was_training = model.training
    model.eval()
    probabilities = upsample(model.predict_probabilities(x), pixels.shape[:2])
    model.train(was_training)
    return probabilities.argmax(1)[0].bool().cpu().numpy()


def image_array(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A path, PIL image or array → RGB uint8 (H, W, 3). Raises ValueError for an array of another kind."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.array(to_rgb(image))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"an image array must be uint8 of shape (H, W, 3) or (H, W), not {array.dtype} {array.shape}")
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, 2)


def resized(image: str | Path | Image.Image | np.ndarray, size: int) -> Tensor:
    """What a model looks at: a path, PIL image or array of any size → RGB uint8 (3, size, size), bilinearly."""
    square = Image.fromarray(image_array(image)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners not aligned (released)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
