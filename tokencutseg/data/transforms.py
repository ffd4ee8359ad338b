"""Training augmentation on whole batches: every image gets its own draw, and no Python loop runs over images.

The list and its probabilities are those of the released training code: flips, quarter turns, shift-scale-rotate, one of
three warps, one of three photometric changes. Limits that the released code leaves to its library are that library's
defaults (Buslaev et al. 2020, Albumentations, doi 10.3390/info11020125). Flips and quarter turns only permute pixels.
Everything else that moves pixels is composed into one sampling grid, so that an image is interpolated at most once.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from tokencutseg.config import ConfigError

_FLIPS = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
STRENGTHS: dict[str, dict[str, float]] = {
    "released": _FLIPS | {"quarter_turn": 0.5, "shift_scale_rotate": 0.5, "warp": 0.3, "photometric": 0.3},
    "plain": _FLIPS | {"quarter_turn": 1.0, "photometric": 1.0},
    "none": {},
}
"""Probability of each step, by name; a step that is not named has probability 0. "plain" only permutes pixels."""

SHIFT, SCALE, ANGLE = 0.0625, 0.1, math.radians(45)
"""Largest shift (share of the side), change of scale and rotation, either way."""
REFERENCE_SIZE = 224
ELASTIC_ALPHA, ELASTIC_SIGMA = 120.0, 6.0
"""Amplitude and smoothness of the elastic warp, in pixels of an image of side `REFERENCE_SIZE`."""
GRID_CELLS, GRID_LIMIT = 5, 0.3
"""Cells per axis of the grid distortion, and how much wider or narrower each may become."""
OPTICAL_LIMIT = 0.05
"""Largest radial distortion coefficient k1 = k2, for a camera whose focal length is the image's side."""
NOISE_VARIANCE = (10 / 255**2, 50 / 255**2)
BRIGHTNESS = CONTRAST = 0.2
GAMMA = 0.2


class Augmentation:
    """Random augmentation of a batch of images together with their masks.

    `strength` is "released" (the released training code's list), "plain" (its flips, turns and photometric changes) or
    "none" (the identity); `probability` replaces single probabilities of that list, such as ``warp=0.0``. Raises
    ConfigError for an unknown strength or step.
    """

    def __init__(self, strength: str = "released", **probability: float):
        if strength not in STRENGTHS:
            raise ConfigError(f"unknown augmentation {strength!r}. Known: {', '.join(STRENGTHS)}")
        steps = STRENGTHS["released"]
        if unknown := probability.keys() - steps:
            raise ConfigError(f"unknown augmentation step {', '.join(sorted(unknown))}. Known: {', '.join(steps)}")
        self.probability = dict.fromkeys(steps, 0.0) | STRENGTHS[strength] | probability

    def __call__(
        self, images: Tensor, masks: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Augmented copies of images (B, 3, S, S) float32 in [0, 1] and of masks (B, S, S) int64 of {0, 1}, or None.

        Masks move with their images, sampled at the nearest pixel. The CPU generator is the only source of randomness;
        what is computed from its draws is computed where the images are. Raises ValueError if they are not square.
        """
        if images.ndim != 4 or images.shape[-1] != images.shape[-2]:
            raise ValueError(f"images must be square, (B, 3, S, S), not {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):  # half precision would move pixels
            return self._apply(images, masks, generator)

    def _apply(self, images: Tensor, masks: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        (B, _, _, S), device = images.shape, images.device

        def happens(step: str) -> Tensor:  # (B,)
            return torch.rand(B, generator=generator) < self.probability[step]

        def one_of_three(step: str) -> list[Tensor]:  # which images get the first, second, third kind
            kind = torch.randint(3, (B,), generator=generator).masked_fill(~happens(step), -1)
            return [(kind == k).nonzero().squeeze(1) for k in range(3)]

        flips = happens("horizontal_flip"), happens("vertical_flip")
        turns = torch.randint(4, (B,), generator=generator) * happens("quarter_turn")
        images = turn_and_flip(images, *flips, turns)
        masks = None if masks is None else turn_and_flip(masks, *flips, turns)

        rotated = happens("shift_scale_rotate")
        warps = one_of_three("warp")
        moved = rotated.index_fill(0, torch.cat(warps), True).nonzero().squeeze(1)  # the others keep their pixels
        if len(moved):
            grid = _pixel_centres(S, device).repeat(B, 1, 1, 1)
            for warp, chosen in zip((_elastic, _grid_distortion, _optical_distortion), warps, strict=True):
                if len(chosen):
                    grid[chosen.to(device)] = warp(len(chosen), S, generator, device)
            moved = moved.to(device)
            grid = _shift_scale_rotate(grid, rotated.to(device), generator)[moved]
            sample = functools.partial(F.grid_sample, grid=grid, padding_mode="reflection", align_corners=False)
            # clamped because bilinear weights sum to 1 only up to rounding
            images = images.index_copy(0, moved, sample(images[moved], mode="bilinear").clamp(0, 1))
            if masks is not None:
                new = sample(masks[moved, None].to(grid.dtype), mode="nearest").squeeze(1).to(masks.dtype)
                masks = masks.index_copy(0, moved, new)

        for change, chosen in zip((_noise, _brightness_contrast, _gamma), one_of_three("photometric"), strict=True):
            if len(chosen):
                chosen = chosen.to(device)
                images = images.index_copy(0, chosen, change(images[chosen], generator).clamp(0, 1))
        return images, masks


def turn_and_flip(x: Tensor, horizontal: Tensor, vertical: Tensor, turns: Tensor) -> Tensor:
    """Flip each (…, S, S) entry of a batch left-right and top-bottom where told, then turn it counter-clockwise.

    `horizontal` and `vertical` are (B,) bool and `turns` (B,) quarter turns in {0, 1, 2, 3}. Pixels are only permuted.
    """
    transposed = turns % 2 == 1  # k quarter turns are: transpose if k is odd, then these two flips
    flip_rows, flip_columns = (turns == 1) | (turns == 2), turns >= 2
    # a flip before the transpose is the other axis's flip after it
    flip_rows = flip_rows ^ torch.where(transposed, horizontal, vertical)
    flip_columns = flip_columns ^ torch.where(transposed, vertical, horizontal)
    steps = (transposed, lambda x: x.mT), (flip_rows, lambda x: x.flip(-2)), (flip_columns, lambda x: x.flip(-1))
    for where, changed in steps:
        chosen = where.nonzero().squeeze(1).to(x.device)
        x = x.index_copy(0, chosen, changed(x[chosen]).contiguous())
    return x


# Grids say where in the input each output pixel looks: (n, S, S, 2) of (x, y), from -1 to 1 edge to edge.


def _uniform(limit: float, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return ((2 * torch.rand(shape, generator=generator) - 1) * limit).to(device)


def _pixel_centres(S: int, device: torch.device | str = "cpu") -> Tensor:
    axis = (2 * torch.arange(S, device=device) + 1) / S - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # (S, S, 2)


def _shift_scale_rotate(grid: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
    """Look through a random similarity: the content turns, grows by the scale, then moves by the shift."""
    n, device = len(grid), grid.device
    shift = _uniform(2 * SHIFT, (n, 2), generator, device)  # the side is 2 units long
    scale = 1 + _uniform(SCALE, (n,), generator, device)
    angle = _uniform(ANGLE, (n,), generator, device)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    back = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # (n, 2, 2), applied from right
    looked = (grid - shift[:, None, None]).flatten(1, 2) @ back  # (n, S·S, 2)
    return torch.where(where[:, None, None, None], looked.view_as(grid), grid)


def _elastic(n: int, S: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Smoothed noise as displacement (Simard et al. 2003, Best Practices for Convolutional Neural Networks).

    Smoothing over s times as many pixels divides the noise's spread by s, so the amplitude grows with s² for the
    displacement to stay the same share of the side.
    """
    s = S / REFERENCE_SIZE
    smooth = _smoothing(S, ELASTIC_SIGMA * s).to(device)
    displacement = smooth @ _uniform(ELASTIC_ALPHA * s**2, (n, 2, S, S), generator, device) @ smooth.T  # pixels
    return _pixel_centres(S, device) + displacement.movedim(1, -1) * (2 / S)


@functools.lru_cache(maxsize=4)
def _smoothing(S: int, sigma: float) -> Tensor:
    """The Gaussian filter along one axis as an (S, S) matrix: as a product, it costs less than a convolution here."""
    return torch.from_numpy(gaussian_filter1d(np.eye(S), sigma, axis=0, mode="reflect")).float()


def _grid_distortion(n: int, S: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Columns and rows of cells become wider or narrower; the image's border stays where it is."""
    widths = 1 + _uniform(GRID_LIMIT, (n, 2, GRID_CELLS), generator, device)
    edges = F.pad((widths / widths.sum(-1, keepdim=True)).cumsum(-1), (1, 0)) * 2 - 1  # (n, 2, cells + 1)
    position = (torch.arange(S, device=device) + 0.5) / S * GRID_CELLS
    cell = position.long()
    x, y = torch.lerp(edges[..., cell], edges[..., cell + 1], position - cell).unbind(1)  # (n, S) each
    return torch.stack([x[:, None, :].expand(n, S, S), y[:, :, None].expand(n, S, S)], dim=-1)


def _optical_distortion(n: int, S: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Barrel or pincushion distortion of a camera, with equal coefficients of r² and r⁴."""
    k = _uniform(OPTICAL_LIMIT, (n, 1, 1, 1), generator, device)
    grid = _pixel_centres(S, device)
    r2 = (grid / 2).square().sum(-1, keepdim=True)  # in units of the focal length
    return grid * (1 + k * (r2 + r2.square()))


# Photometric changes: (n, 3, S, S) in [0, 1] → the same shape, to be clamped by the caller.


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    low, high = NOISE_VARIANCE
    variance = low + (high - low) * torch.rand((len(images), 1, 1, 1), generator=generator)
    return images + (torch.randn(images.shape, generator=generator) * variance.sqrt()).to(images.device)


def _brightness_contrast(images: Tensor, generator: torch.Generator) -> Tensor:
    contrast = 1 + _uniform(CONTRAST, (len(images), 1, 1, 1), generator, images.device)
    brightness = _uniform(BRIGHTNESS, (len(images), 1, 1, 1), generator, images.device)
    return images * contrast + brightness


def _gamma(images: Tensor, generator: torch.Generator) -> Tensor:
    return images ** (1 + _uniform(GAMMA, (len(images), 1, 1, 1), generator, images.device))


def recolour(images: Tensor, generator: torch.Generator, strength: float = 0.3) -> Tensor:
    """Contrast, brightness and the balance of channels of each image (B, 3, S, S) in [0, 1], drawn anew: contrast and
    brightness by up to `strength`, each channel by up to half of that. `generator` is a CPU one."""

    def factor(limit: float, channels: int) -> Tensor:
        return 1 + _uniform(limit, (len(images), channels, 1, 1), generator, images.device)

    mean = images.mean((1, 2, 3), keepdim=True)
    contrasted = (images - mean) * factor(strength, 1) + mean
    return (contrasted * factor(strength, 1) * factor(strength / 2, 3)).clamp(0, 1)


def mix(images: Tensor, masks: Tensor, generator: torch.Generator, probability: float) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): into some of the images (B, 3, S, S), and their masks (B, S, S), a rectangle of another
    one is pasted, of a tenth to a half of the area and with sides up to 1 : 2. `generator` is a CPU one."""
    (B, _, _, S), device = images.shape, images.device
    area, ratio = 0.1 + 0.4 * torch.rand(B, generator=generator), 2 ** (2 * torch.rand(B, generator=generator) - 1)
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(max=1)  # (2, B), of a side of 1
    first = torch.rand(2, B, generator=generator) * (1 - sides)
    centres = (torch.arange(S) + 0.5) / S
    rows, columns = (centres >= first[..., None]) & (centres < (first + sides)[..., None])  # (B, S) each
    chosen = torch.rand(B, generator=generator) < probability
    inside = (rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]).to(device)
    other = torch.randperm(B, generator=generator).to(device)
    return torch.where(inside[:, None], images[other], images), torch.where(inside, masks[other], masks)
