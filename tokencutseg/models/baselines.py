"""What TokenCutSeg is compared with: Otsu's threshold, and networks of segmentation_models_pytorch.

A network of your own joins the comparison by a name; it sees ImageNet-normalised RGB and gives two logits per pixel:

    from tokencutseg.models.baselines import BASELINES

    def mine(pretrained):
        return MyNetwork(), "scratch"     # the network and the name of the weights that it starts from

    BASELINES["mine"] = mine
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import nn

from tokencutseg.models.perceptual import unreachable

STRIDE = 32
"""The networks halve their input five times."""


def otsu(images: torch.Tensor) -> torch.Tensor:
    """The classical segmentation of a dark lesion on brighter skin, without learning.

    Blue channel, in which lesions stand out most; Gaussian blur against hairs (σ 1.5 % of the side); Otsu's threshold
    (1979) of the pixels in the inscribed disc, so that the dermoscope's dark corners have no part in it; darker is
    lesion. Of the connected components the one that weighs most under a centred Gaussian window (σ a quarter of the
    side) is kept, so that a dark corner does not win by its size, and its holes are filled.

    Args:
        images: (B, 3, S, S) float RGB in [0, 1].

    Returns:
        (B, S, S) bool, on the images' device.
    """
    size = images.shape[-1]
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    disc, window = x**2 + y**2 <= 1, np.exp(-(x**2 + y**2) / (2 * 0.5**2))
    blue = ndimage.gaussian_filter(images[:, 2].cpu().numpy(), (0, 0.015 * size, 0.015 * size))
    return torch.from_numpy(np.stack([_otsu_mask(b, disc, window) for b in blue])).to(images.device)


def _otsu_mask(channel: np.ndarray, disc: np.ndarray, window: np.ndarray) -> np.ndarray:
    components, count = ndimage.label(channel < threshold_otsu(channel[disc]))
    if count == 0:
        return np.zeros(channel.shape, dtype=bool)
    weights = ndimage.sum_labels(window, components, np.arange(1, count + 1))
    return ndimage.binary_fill_holes(components == 1 + weights.argmax())


class LenientBatchNorm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a batch is one value per channel, of which nothing can be
    learned: one image whose whole map was pooled."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Baseline(nn.Module):
    """A network in the study's terms: RGB in [0, 1] (B, 3, S, S) of any size → logits (B, 2, S, S), 1 is lesion.

    Normalisation (ImageNet's mean and standard deviation) belongs to the module. Sides that `STRIDE` does not divide
    are padded by repeating the edge, equally on both sides, and the logits are cropped; so are sides below 2·`STRIDE`,
    for BatchNorm cannot learn from one image whose deepest map is one cell. `weights` names what the encoder started
    from, "imagenet" or "scratch".
    """

    def __init__(self, network: nn.Module, weights: str) -> None:
        super().__init__()
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = LenientBatchNorm
        self.network = network
        self.weights = weights
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (H, W), (left, right, top, bottom) = images.shape[-2:], padding(*images.shape[-2:])
        padded = F.pad((images - self.mean) / self.std, (left, right, top, bottom), mode="replicate")
        return self.network(padded)[..., top : top + H, left : left + W]


def padding(H: int, W: int) -> tuple[int, int, int, int]:
    """How many pixels a baseline adds left, right, above and below an image of H × W."""
    h, w = (max(-side % STRIDE, 2 * STRIDE - side) for side in (H, W))
    return w // 2, w - w // 2, h // 2, h - h // 2


def build_baseline(name: str, pretrained: bool = True) -> Baseline:
    """The baseline of that name, on an encoder with ImageNet weights if they can be had, else from scratch.

    Raises ValueError for a name that is not in `BASELINES`.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}. Known: {', '.join(BASELINES)}")
    return Baseline(*BASELINES[name](pretrained))


def _smp(architecture: Callable[..., nn.Module], encoder: str) -> Callable[[bool], tuple[nn.Module, str]]:
    def build(pretrained: bool) -> tuple[nn.Module, str]:
        weights = "imagenet" if pretrained and _has_imagenet_weights(encoder) else None
        return architecture(encoder, encoder_weights=weights, classes=2), weights or "scratch"

    return build


@functools.cache
def _has_imagenet_weights(encoder: str) -> bool:
    """Whether the encoder's weights are, or now are, in the Hugging Face cache, where smp looks for them."""
    settings = smp.encoders.encoders[encoder]["pretrained_settings"]["imagenet"]
    files = [
        {"repo_id": settings["repo_id"], "filename": filename, "revision": settings["revision"]}
        for filename in ("config.json", "model.safetensors")
    ]
    if all(isinstance(try_to_load_from_cache(**file), str) for file in files):
        return True
    reason = unreachable(hf_hub_url(**files[0]))
    if reason is None:
        try:
            for file in files:
                hf_hub_download(**file)
            return True
        except OSError as error:
            reason = str(error)
    warnings.warn(
        f"ImageNet weights of {encoder} could not be fetched ({reason}): the baseline starts from scratch", stacklevel=2
    )
    return False


BASELINES: dict[str, Callable[[bool], tuple[nn.Module, str]]] = {
    "unet": _smp(smp.Unet, "resnet18"),
    "unetplusplus": _smp(smp.UnetPlusPlus, "resnet18"),
    "deeplabv3plus": _smp(smp.DeepLabV3Plus, "resnet18"),
    "fpn": _smp(smp.FPN, "resnet18"),
    "segformer": _smp(smp.Segformer, "mit_b0"),
    "upernet": _smp(smp.UPerNet, "mit_b1"),
}
"""Name → function of whether ImageNet weights are wanted, giving a network and the name of the weights it has.

The network maps normalised RGB (B, 3, H, W), sides divisible by `STRIDE`, to logits (B, 2, H, W)."""
