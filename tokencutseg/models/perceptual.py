"""The perceptual distance LPIPS: a loss of the tokenizer and a score of its reconstructions.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924. Its VGG16
was trained on ImageNet, half a gigabyte that must be downloaded once. Without a network the same architecture is used
with random weights under a fixed seed: still a distance between images at many scales, but not the published one.
Whatever depends on it must therefore say which of the two it was.
"""

from __future__ import annotations

import functools
import http.client
import urllib.request
import warnings
from pathlib import Path

import lpips
import torch
from torchvision.models import VGG16_Weights

PROBE_SECONDS = 5.0
"""Timeout for a server of pretrained weights, asked once per process."""


class PerceptualDistance(lpips.LPIPS):
    """LPIPS, frozen. ``forward(a, b, normalize=True)`` takes RGB in [0, 1], (B, 3, S, S), and returns (B, 1, 1, 1).

    `weights_name` says whose features are compared, ``vgg16-imagenet`` or ``vgg16-random``. Gradients reach the images
    only.
    """

    weights_name: str

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in eval mode: a parent's `train()` would turn on the dropout before the learned layer weights."""
        return super().train(False)


def load_lpips() -> tuple[PerceptualDistance, str]:
    """LPIPS on the features of VGG16, frozen, and the name of the weights it has.

    ImageNet weights are taken from torch's download cache, or fetched into it if their server answers; otherwise
    the features are random under a fixed seed and a warning says so. Torch's random state is left as it was.
    """
    pretrained = _fetch(VGG16_Weights.IMAGENET1K_V1.url)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(0)
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips uses its old arguments
        distance = PerceptualDistance(net="vgg", pnet_rand=not pretrained, verbose=False)
    distance.weights_name = f"vgg16-{'imagenet' if pretrained else 'random'}"
    return distance.requires_grad_(False).eval(), distance.weights_name


@functools.cache
def unreachable(url: str) -> str | None:
    """Why `url` cannot be fetched, or None if its server answers within `PROBE_SECONDS`. Asked once per process.

    Clients that retry make a user without a network wait for half a minute; this asks before they start.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            return None
    except (OSError, http.client.HTTPException) as error:
        return str(error)


@functools.cache
def _fetch(url: str) -> bool:
    """Whether the file at `url` is, or now is, in torch's download cache."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if target.exists():
        return True
    reason = unreachable(url)
    if reason is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), hash_prefix=target.stem[-8:], progress=False)
            return True
        except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash does not match
            reason = str(error)
    warnings.warn(
        f"{target.name} could not be fetched ({reason}): LPIPS compares random features instead of ImageNet's; put the "
        f"file into {target.parent} to change that",
        stacklevel=3,
    )
    return False
