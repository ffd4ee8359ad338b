"""What TokenCutSeg is compared with: Otsu's threshold, and networks of segmentation_models_pytorch.

Those on EfficientNet-Lite0 start from ImageNet, as everybody in practice does. A network of your own joins the
comparison by a name. It sees ImageNet-normalised RGB (B, 3, H, W), sides divisible by `STRIDE`, and gives two logits
per pixel (B, 2, H, W):

    from tokencutseg.models.baselines import BASELINES

    BASELINES["mine"] = MyNetwork     # a class or function without arguments
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor, nn

from tokencutseg.config import Config, ConfigError
from tokencutseg.models.encoders import IMAGENET, LITE0, normalisation, start_encoder, use_lenient_batch_norm
from tokencutseg.models.predict import SegmentationModel

STRIDE = 32
"""The networks halve their input five times."""


@dataclass(frozen=True)
class SMP:
    """A network of segmentation_models_pytorch: the names of its class and its encoder."""

    architecture: str
    encoder: str
    pretrained: bool = True
    """Whether the encoder starts from ImageNet weights, where they can be had."""
    self_training: bool = False
    """Whether it also learns from unlabelled images, as our method does."""

    def build(self, pretrained: bool) -> tuple[nn.Module, str]:
        """The network, and what it starts from: "imagenet" or "scratch"."""
        import segmentation_models_pytorch as smp  # slow to import

        network = getattr(smp, self.architecture)(self.encoder, encoder_weights=None, classes=2)
        return network, start_encoder(network.encoder, self.encoder, pretrained and self.pretrained)


BASELINES: dict[str, SMP | Callable[[], nn.Module]] = {
    "unet": SMP("Unet", LITE0),
    "unet_self_training": SMP("Unet", LITE0, self_training=True),
    "unet_scratch": SMP("Unet", "resnet18", pretrained=False),
    "unetplusplus": SMP("UnetPlusPlus", LITE0),
    "deeplabv3plus": SMP("DeepLabV3Plus", LITE0),
    "fpn": SMP("FPN", LITE0),
    "segformer": SMP("Segformer", "mit_b0"),
    "upernet": SMP("UPerNet", "mit_b1"),
}


def declaration(name: str) -> dict[str, Any]:
    """What a baseline is declared as, in JSON's types: another declaration under the same name is another network.

    Raises ConfigError for a name that is not in `BASELINES`, and for a callable whose source cannot be read.
    """
    declared = _declared(name)
    if isinstance(declared, SMP):
        return dataclasses.asdict(declared)
    try:
        return {"source": _source(declared)}
    except (OSError, TypeError) as error:
        what = f"the source of baseline {name!r} cannot be read, but is in its runs' ids"
        raise ConfigError(f"{what}; define it as a class or function in a file or a notebook cell") from error


def _source(declared: Callable[[], nn.Module]) -> str:
    """The text of a class or function. That of a class in a notebook is found by its methods only."""
    try:
        return inspect.getsource(declared)
    except (OSError, TypeError):
        if not (methods := [part for part in vars(declared).values() if inspect.isfunction(part)]):
            raise
        return "".join(map(inspect.getsource, methods))


class Baseline(SegmentationModel):
    """The baseline `name`: RGB in [0, 1] (B, 3, S, S) of any size → logits (B, 2, S, S), 1 is lesion.

    Sides that `STRIDE` does not divide are padded by repeating the edge, equally on both sides, and the logits are
    cropped; so are sides below 2·`STRIDE`, since BatchNorm needs a deepest map of more than one cell. `initialisation`
    says what the network starts from. Raises ConfigError for a name that is not in `BASELINES`.
    """

    def __init__(self, name: str, config: Config, pretrained: bool = True) -> None:
        super().__init__()
        self.name, self.config, declared = name, config, _declared(name)
        if isinstance(declared, SMP):
            self.network, self.initialisation = declared.build(pretrained)
        else:
            self.network = declared()
            self.initialisation = getattr(self.network, "initialisation", "scratch")
        use_lenient_batch_norm(self.network)
        statistics = normalisation(declared.encoder) if isinstance(declared, SMP) else IMAGENET
        for part, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(part, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        (H, W), (left, right, top, bottom) = images.shape[-2:], padding(*images.shape[-2:])
        padded = F.pad((images - self.mean) / self.std, (left, right, top, bottom), mode="replicate")
        padded = padded.contiguous(memory_format=torch.channels_last)  # which is faster on a CPU, by a third
        return self.network(padded)[..., top : top + H, left : left + W]

    def probabilities(self, images: Tensor) -> Tensor:
        return self(images).softmax(1)


def padding(H: int, W: int) -> tuple[int, int, int, int]:
    """How many pixels a baseline adds left, right, above and below an image of H × W."""
    h, w = (max(-side % STRIDE, 2 * STRIDE - side) for side in (H, W))
    return w // 2, w - w // 2, h // 2, h - h // 2


def self_trains(name: str | None) -> bool:
    """Whether a baseline learns from unlabelled images, too."""
    declared = _declared(name or "")
    return isinstance(declared, SMP) and declared.self_training


def _declared(name: str) -> SMP | Callable[[], nn.Module]:
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline {name!r}. Known: {', '.join(BASELINES)}")
    return BASELINES[name]


def otsu(images: Tensor) -> Tensor:
    """The classical segmentation of a dark lesion on brighter skin, without learning.

    Blue channel, in which lesions stand out most; Gaussian blur against hairs (σ 1.5 % of the side); Otsu's threshold
    (1979) of the pixels in the inscribed disc, so that the dermoscope's dark corners have no part in it; darker is
    lesion. Of the connected components the one that weighs most under a centred Gaussian window (σ a quarter of the
    side) is kept, so that a dark corner does not win by its size, and its holes are filled. RGB in [0, 1] (B, 3, S, S)
    → (B, S, S) bool.
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
