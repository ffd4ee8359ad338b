"""Stage 1, the tokenizer: a convolutional encoder, a quantizer with an EMA codebook, a decoder, a PatchGAN.

Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021 (VQGAN); van den Oord,
Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017 (codebook, EMA in its appendix A.1).
Module names follow the released checkpoints, so that their state dicts load as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokencutseg.config import VQGANConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Quantized(NamedTuple):
    """The output of the quantizer."""

    vectors: Tensor  # (B, D, H, W)
    tokens: Tensor  # (B, H, W) int64
    commitment_loss: Tensor  # scalar


class ResidualBlock(nn.Module):
    """x + [norm, SiLU, 3×3 convolution, norm, SiLU, 1×1 convolution](x)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        first = [_norm(channels, groups), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.block = nn.Sequential(*first, _norm(channels, groups), nn.SiLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Encoder(nn.Module):
    """(B, 3, S, S) → (B, h·2^n, H, W); each stage halves the side and doubles the channels."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        h, g = config.hidden_channels, config.norm_groups
        self.conv_in = nn.Conv2d(3, h, 3, padding=1)
        self.down = nn.ModuleList()
        for i in range(config.n_stages):
            c = h * 2 ** (i + 1)
            halve = [nn.Conv2d(c // 2, c, 4, stride=2, padding=1), _norm(c, g), nn.SiLU()]
            self.down.append(nn.Sequential(*halve, *(ResidualBlock(c, g) for _ in range(config.n_res_blocks))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return x


class Decoder(nn.Module):
    """(B, h·2^n, H, W) → (B, 3, S, S) in (−1, 1): the encoder's mirror image, with a tanh."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        h, g = config.hidden_channels, config.norm_groups
        self.up = nn.ModuleList()
        for i in reversed(range(config.n_stages)):
            c = h * 2 ** (i + 1)
            residual = [ResidualBlock(c, g) for _ in range(config.n_res_blocks)]
            double = [nn.Upsample(scale_factor=2), nn.Conv2d(c, c // 2, 3, padding=1), _norm(c // 2, g), nn.SiLU()]
            self.up.append(nn.Sequential(*residual, *double))
        self.final_conv = nn.Conv2d(h, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.up:
            x = stage(x)
        return torch.tanh(self.final_conv(x))


class EMAQuantizer(nn.Module):
    """Nearest code by squared Euclidean distance; codes follow their vectors by an exponential moving average.

    No gradient reaches the codes: in training mode each forward pass updates them (decay 0.99, Laplace smoothing), in
    evaluation mode nothing changes. Where several processes train together, their counts and sums are added up and the
    first one draws new codes, so that all have the same codebook.
    """

    DECAY, EPS = 0.99, 1e-5
    DEAD = 0.1
    """A code is dead when its EMA count falls below this share of the mean count; it restarts with twice that count,
    which is enough for some 70 updates."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config, self.codebook_size = config, config.codebook_size
        K = self.codebook_size
        self.embedding = nn.Embedding(K, config.code_dim)
        self.embedding.weight.requires_grad_(False).uniform_(-1 / K, 1 / K)
        self.register_buffer("cluster_size", torch.zeros(K))
        self.register_buffer("embedding_avg", self.embedding.weight.clone())

    def forward(self, z: Tensor) -> Quantized:
        """`z` (B, D, H, W) → its nearest codes. Gradients pass straight through to `z`."""
        B, D, H, W = z.shape
        z = z.to(self.embedding.weight.dtype)  # distances in the codebook's precision, not in the encoder's
        flat = z.permute(0, 2, 3, 1).reshape(-1, D)  # (BHW, D)
        if self.training and self.config.codebook_init == "kmeans" and not self.cluster_size.any():
            self._kmeans_init(flat.detach())
        tokens = self.nearest(flat)
        vectors = self.lookup(tokens.view(B, H, W))
        if self.training:
            self._update(flat.detach(), tokens)
        loss = self.config.commitment * (vectors - z).square().mean()
        return Quantized(z + (vectors - z).detach(), tokens.view(B, H, W), loss)

    def nearest(self, flat: Tensor) -> Tensor:
        """(N, D) → (N,) index of the nearest code. |z|² is the same for every code and left out."""
        codes = self.embedding.weight
        with torch.autocast(flat.device.type, enabled=False):
            return torch.addmm(codes.square().sum(1), flat.to(codes.dtype), codes.T, alpha=-2).argmin(1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens (B, H, W) → their codes (B, D, H, W)."""
        return self.embedding(tokens).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _kmeans_init(self, flat: Tensor) -> None:
        """Ten iterations of k-means on the first batch, the first process's (Łańcucki et al. 2020)."""
        codes = self.embedding.weight.copy_(self._draw(flat))
        for _ in range(10):
            counts, sums = self._count_and_sum(flat, self.nearest(flat))
            codes.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes))
        counts, _ = self._count_and_sum(flat, self.nearest(flat))
        self.cluster_size.copy_(counts.clamp(min=1))
        self.embedding_avg.copy_(codes * self.cluster_size[:, None])
        for tensor in (codes, self.cluster_size, self.embedding_avg):
            _broadcast(tensor)

    @torch.no_grad()
    def _update(self, flat: Tensor, tokens: Tensor) -> None:
        counts, sums = map(_all_reduce, self._count_and_sum(flat, tokens))
        self.cluster_size.lerp_(counts, 1 - self.DECAY)
        self.embedding_avg.lerp_(sums, 1 - self.DECAY)
        if self.config.restart_dead_codes:
            mean = self.cluster_size.mean()
            dead = (self.cluster_size < self.DEAD * mean)[:, None]  # (K, 1)
            fresh, count = _broadcast(self._draw(flat)), 2 * self.DEAD * mean
            self.cluster_size.copy_(torch.where(dead[:, 0], count, self.cluster_size))
            self.embedding_avg.copy_(torch.where(dead, fresh * count, self.embedding_avg))
        n = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.EPS) / (n + self.codebook_size * self.EPS) * n
        self.embedding.weight.copy_(self.embedding_avg / smoothed[:, None])

    def _draw(self, flat: Tensor) -> Tensor:
        """K of the vectors (N, D), each once where N allows: (K, D)."""
        n, k = len(flat), self.codebook_size
        return flat[torch.randperm(n, device=flat.device)[:k] if n >= k else torch.randint(n, (k,), device=flat.device)]

    def _count_and_sum(self, flat: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) and their codes (N,) → how many belong to each code (K,), and their sum (K, D)."""
        counts = torch.bincount(tokens, minlength=self.codebook_size).to(flat.dtype)
        return counts, flat.new_zeros(self.embedding_avg.shape).index_add_(0, tokens, flat)


class VQGAN(nn.Module):
    """Image ↔ tokens. `forward` takes and returns network values; `normalise` makes them from RGB."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_channels * 2**config.n_stages
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = EMAQuantizer(config)
        self.quant_conv = nn.Conv2d(width, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, width, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] → network input. `denormalise` is its inverse."""
        if self.config.input_normalisation == "imagenet_then_symmetric":
            images = (images - self.mean) / self.std
        return 2 * images - 1

    def denormalise(self, values: Tensor) -> Tensor:
        """Network values → RGB, not clamped."""
        images = (values + 1) / 2
        if self.config.input_normalisation == "imagenet_then_symmetric":
            images = images * self.std + self.mean
        return images

    def encode(self, x: Tensor) -> Tensor:
        """Network input (B, 3, S, S) → latents before quantization (B, D, H, W)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, vectors: Tensor) -> Tensor:
        """Codes (B, D, H, W) → network values (B, 3, S, S) in (−1, 1)."""
        return self.decoder(self.post_quant_conv(vectors))

    def forward(self, x: Tensor) -> tuple[Tensor, Quantized]:
        """Network input → its reconstruction and the quantizer's output."""
        quantized = self.quantize(self.encode(x))
        return self.decode(quantized.vectors), quantized

    @torch.no_grad()
    def tokenize(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (B, 3, S, S) → tokens (B, H, W) int64, in any mode without an update of the codebook."""
        latents = self.encode(self.normalise(images)).permute(0, 2, 3, 1)  # (B, H, W, D)
        return self.quantize.nearest(latents.flatten(0, 2)).view(latents.shape[:3])

    @torch.no_grad()
    def detokenize(self, tokens: Tensor) -> Tensor:
        """Tokens (B, H, W) → RGB in [0, 1] (B, 3, S, S)."""
        return self.denormalise(self.decode(self.quantize.lookup(tokens))).clamp(0, 1)


class Discriminator(nn.Module):
    """PatchGAN with three layers and BatchNorm (Isola et al. 2017): (B, 3, S, S) → a map of logits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        layers: list[nn.Module] = [nn.Conv2d(3, c, 4, 2, 1), nn.LeakyReLU(0.2)]
        for a, b, stride in ((c, 2 * c, 2), (2 * c, 4 * c, 2), (4 * c, 8 * c, 1)):
            layers += [nn.Conv2d(a, b, 4, stride, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(c * 8, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(groups, channels), channels)


def _all_reduce(x: Tensor) -> Tensor:
    """The sum over the processes that train together, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def _broadcast(x: Tensor) -> Tensor:
    """The first process's values, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(x, 0)
    return x
