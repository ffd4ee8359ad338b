"""The perceptual distance: a loss of the tokenizer and a score of its reconstructions.

LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924)
compares features of a VGG16 that was trained on ImageNet, half a gigabyte that must be downloaded once. Where that is
not within reach, features of EfficientNet-Lite0 from ImageNet take their place, which install with the package: another
distance than the published one. Whatever depends on it must therefore say which of the two it was (`weights_name`).
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import lpips
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.transforms.functional import normalize as standardise

from tokencutseg.models.encoders import IMAGENET, build_lite0, fetch


class VGGDistance(lpips.LPIPS):
    """LPIPS, frozen: ``forward(a, b, normalize=False)`` takes RGB in [−1, 1], with `normalize` in [0, 1], (B, 3, S, S),
    and returns (B, 1, 1, 1). Gradients reach the images only."""

    weights_name = "vgg16-imagenet"

    def train(self, mode: bool = True) -> VGGDistance:
        """Stays in eval mode: a parent's `train()` would turn on the dropout before the learned layer weights."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """RGB in [−1, 1] → the activations of five slices."""
        return list(self.net(standardise((x + 1) / 2, *IMAGENET)))


class Lite0Distance(nn.Module):
    """The same on features of EfficientNet-Lite0: the mean over strides 2 to 32, with equal weights for channels."""

    weights_name = "efficientnet_lite0-imagenet"

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # its random start, soon replaced, leaves torch's state as it was
            self.net = build_lite0()
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Lite0Distance:
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """RGB in [−1, 1] → features, finest first."""
        return self.net(x)[1:]

    def forward(self, a: Tensor, b: Tensor, normalize: bool = False) -> Tensor:
        if normalize:
            a, b = 2 * a - 1, 2 * b - 1
        pairs = zip(*([F.normalize(f, dim=1) for f in self.features(x)] for x in (a, b)), strict=True)
        distances = [(p - q).square().sum(1, keepdim=True).mean((2, 3), keepdim=True) for p, q in pairs]
        return torch.stack(distances).mean(0)


def load_lpips() -> VGGDistance | Lite0Distance:
    """The perceptual distance on features of VGG16, which is taken from torch's download cache, or fetched into it if
    its server answers; otherwise on those of EfficientNet-Lite0, and a warning says so."""
    return load_vgg() if _has_imagenet_vgg() else Lite0Distance()


def load_vgg() -> VGGDistance:
    """LPIPS on VGG16, with random features under a fixed seed where ImageNet's are not within reach (and `weights_name`
    says so). Torch's random state is left as it was."""
    pretrained = _has_imagenet_vgg()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(0)
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips uses its old arguments
        distance = VGGDistance(net="vgg", pnet_rand=not pretrained, verbose=False)
    if not pretrained:
        distance.weights_name = "vgg16-random"
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
            f"{target.name} could not be fetched ({reason}): the perceptual distance is that of EfficientNet-Lite0's "
            f"features instead of VGG16's; put the file into {target.parent} to change that",
            stacklevel=3,
        )
    return reason is None
