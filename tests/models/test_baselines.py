import functools
import json
import linecache

import numpy as np
import pytest
import torch
from segmentation_models_pytorch.encoders import get_preprocessing_params
from torch import nn

from tokencutseg.config import ConfigError
from tokencutseg.models.baselines import BASELINES, SMP, Baseline, declaration, otsu, self_trains


def dermoscopy(size=96, lesion_radius=0.4, corners=False):
    """A dark disc on bright skin, with a hole, hairs' worth of noise and, if wanted, the dermoscope's dark corners."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    truth = (x - 0.1) ** 2 + (y + 0.1) ** 2 <= lesion_radius**2
    grey = np.where(truth, 0.35, 0.8)
    grey[(x - 0.1) ** 2 + (y + 0.1) ** 2 <= 0.1**2] = 0.8
    if corners:
        grey[x**2 + y**2 > 1.1**2] = 0.02
    noise = np.random.default_rng(0).normal(0, 0.03, (3, size, size))
    return torch.from_numpy((grey + noise).clip(0, 1)).float(), torch.from_numpy(truth)


@pytest.mark.parametrize("corners", [False, True])
def test_otsu_finds_a_dark_disc(corners):
    image, truth = dermoscopy(corners=corners)
    mask = otsu(torch.stack([image, image.flip(-1)]))
    assert mask.shape == (2, 96, 96) and mask.dtype == torch.bool
    for found, expected in zip(mask, (truth, truth.flip(-1)), strict=True):
        assert (found & expected).sum() / (found | expected).sum() > 0.9, "the hole is filled, the corners are left out"


def test_otsu_of_a_flat_image_is_empty():
    assert not otsu(torch.full((1, 3, 32, 32), 0.5)).any()


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_trains_at_any_size(tiny, name):
    """Also on a single image, where a branch pools the whole map into one cell."""
    torch.manual_seed(0)
    model = Baseline(name, tiny, pretrained=False).train()
    assert model.initialisation == "scratch"
    for B, size in ((2, 48), (1, 32)):
        logits = model(torch.rand(B, 3, size, size))
        assert logits.shape == (B, 2, size, size)
        model.zero_grad()
        logits.square().mean().backward()
        assert all(p.grad is not None for p in model.network.parameters() if p.requires_grad)


class Identity(nn.Module):
    initialisation = "elsewhere"

    def forward(self, images):
        self.seen = images
        return images[:, :2]


def test_own_network_with_padding_and_normalisation(monkeypatch, tiny):
    monkeypatch.setitem(BASELINES, "mine", Identity)
    images = torch.rand(1, 3, 33, 70)
    model = Baseline("mine", tiny)
    logits = model(images)
    assert model.initialisation == "elsewhere" and model.network.seen.shape == (1, 3, 64, 96)
    mean, std = torch.tensor([0.485, 0.456]).view(2, 1, 1), torch.tensor([0.229, 0.224]).view(2, 1, 1)
    torch.testing.assert_close(logits[0], (images[0, :2] - mean) / std)


@pytest.mark.parametrize("name", list(BASELINES))
def test_encoder_sees_what_its_weights_were_trained_on(monkeypatch, tiny, name):
    network, images = Identity(), torch.rand(2, 3, 64, 64)
    monkeypatch.setattr(SMP, "build", lambda *_: (network, "imagenet"))
    Baseline(name, tiny)(images)
    lite0 = "lite0" in BASELINES[name].encoder
    known = get_preprocessing_params("tu-tf_efficientnet_lite0" if lite0 else "tu-resnet18")  # MiT has that of ResNet
    mean, std = (torch.tensor(known[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(network.seen, (images - mean) / std)


CELL = """
class Mine(torch.nn.Module):
    def forward(self, images):
        return images[:, 1:]
"""


def test_declaration_tells_networks_apart(monkeypatch):
    unet = declaration("unet")
    monkeypatch.setitem(BASELINES, "unet", SMP("Unet", "resnet34"))
    assert declaration("unet") != unet and json.loads(json.dumps(unet)) == unet
    monkeypatch.setitem(BASELINES, "mine", Identity)
    assert "images[:, :2]" in declaration("mine")["source"]
    in_notebook = {"torch": torch}
    linecache.cache["<cell>"] = (0, None, CELL.splitlines(keepends=True), "<cell>")
    exec(compile(CELL, "<cell>", "exec"), in_notebook)
    # a class of no module: inspect finds its methods only
    monkeypatch.setitem(BASELINES, "mine", in_notebook["Mine"])
    assert "images[:, 1:]" in declaration("mine")["source"]
    monkeypatch.setitem(BASELINES, "mine", functools.partial(Identity))
    with pytest.raises(ConfigError, match="source of baseline 'mine'"):
        declaration("mine")


def test_self_training_is_part_of_a_declaration():
    assert self_trains("unet_self_training") and not self_trains("unet")
    assert declaration("unet_self_training") != declaration("unet")


@pytest.mark.parametrize("call", [declaration, lambda name: Baseline(name, None)])
def test_unknown_name_lists_the_known(call):
    with pytest.raises(ConfigError, match=r"'vnet'.*unet, unet_self_training.*segformer"):
        call("vnet")
