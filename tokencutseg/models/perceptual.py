"""The perceptual distance LPIPS: a loss of the tokenizer and a score of its reconstructions.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924. Its VGG16
was trained on ImageNet, half a gigabyte that must be downloaded once. Without a network the same architecture is used
with random weights under a fixed seed: still a distance between images at many scales, but not the published one.
Whatever depends on it must therefore say which of the two it was.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import lpips
import torch
from torchvision.models import VGG16_Weights

from tokencutseg.models.encoders import fetch


class PerceptualDistance(lpips.LPIPS):
    """LPIPS, frozen. ``forward(a, b, normalize=True)`` takes RGB in [0, 1], (B, 3, S, S), and returns (B, 1, 1, 1).

    Gradients reach the images only.
    """

    weights_name: str
    """Whose features are compared: ``vgg16-imagenet`` or ``vgg16-random``."""

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in eval mode: a parent's `train()` would turn on the dropout before the learned layer weights."""
        return super().train(False)


def load_lpips() -> PerceptualDistance:
    """LPIPS on the features of VGG16.

    ImageNet weights are taken from torch's download cache, or fetched into it if their server answers; otherwise
    the features are random under a fixed seed and a warning says so. Torch's random state is left as it was.
    """
    pretrained = _has_imagenet_vgg()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(0)
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips uses its old arguments
        distance = PerceptualDistance(net="vgg", pnet_rand=not pretrained, verbose=False)
    distance.weights_name = f"vgg16-{'imagenet' if pretrained else 'random'}"
    return distance.requires_grad_(False).eval()


@functools.cache
def _has_imagenet_vgg() -> bool:
    """Whether ImageNet's VGG16 is, or now is, in torch's download cache. Asked once per process."""
    url = VGG16_Weights.IMAGENET1K_V1.url
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if target.exists():
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = fetch(url, lambda: torch.hub.download_url_to_file(url, str(target), target.stem[-8:], progress=False))
    if reason is not None:
        warnings.warn(
            f"{target.name} could not be fetched ({reason}): LPIPS compares random features instead of ImageNet's; put "
            f"the file into {target.parent} to change that",
            stacklevel=3,
        )
    return reason is None
