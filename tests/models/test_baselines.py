import functools

import numpy as np
import pytest
import torch
from torch import nn

from tokencutseg.models import baselines
from tokencutseg.models.baselines import BASELINES, LenientBatchNorm, build_baseline, otsu


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
def test_every_baseline_runs_and_learns_at_any_size(name):
    torch.manual_seed(0)
    network = build_baseline(name, pretrained=False)
    assert network.weights == "scratch"
    logits = network(torch.rand(2, 3, 48, 48))
    assert logits.shape == (2, 2, 48, 48)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.network.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_single_small_image_can_be_learned_from(name):
    """Also where a branch pools the whole map into one cell, whose batch statistics would say nothing."""
    network = build_baseline(name, pretrained=False).train()
    logits = network(torch.rand(1, 3, 32, 32))
    assert logits.shape == (1, 2, 32, 32)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.network.parameters() if p.requires_grad)


def test_a_single_cell_is_normalised_as_in_prediction_and_all_else_as_usual():
    torch.manual_seed(0)
    ours, theirs = LenientBatchNorm(5), nn.BatchNorm2d(5)
    for size in ((4, 5, 3, 3), (2, 5, 1, 1)):
        x = torch.randn(size)
        torch.testing.assert_close(ours(x), theirs(x))
    one = torch.randn(1, 5, 1, 1)
    torch.testing.assert_close(ours(one), theirs.eval()(one))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_padding_keeps_pixels_in_place_and_normalisation_is_imagenets(monkeypatch):
    seen = []

    def identity(pretrained):
        class Network(nn.Module):
            def forward(self, images):
                seen.append(images)
                return images[:, :2]

        return Network(), "scratch"

    monkeypatch.setitem(BASELINES, "mine", identity)
    images = torch.rand(1, 3, 33, 70)
    logits = build_baseline("mine")(images)
    assert seen[0].shape == (1, 3, 64, 96)
    mean, std = torch.tensor([0.485, 0.456]).view(2, 1, 1), torch.tensor([0.229, 0.224]).view(2, 1, 1)
    torch.testing.assert_close(logits[0], (images[0, :2] - mean) / std)


def test_without_a_network_it_starts_from_scratch(monkeypatch, tmp_path):
    monkeypatch.setattr(baselines, "unreachable", lambda url: "no network here")
    monkeypatch.setattr(
        baselines, "try_to_load_from_cache", functools.partial(baselines.try_to_load_from_cache, cache_dir=tmp_path)
    )
    baselines._has_imagenet_weights.cache_clear()
    with pytest.warns(UserWarning, match="resnet18.*no network here.*from scratch"):
        assert build_baseline("unet").weights == "scratch"
    baselines._has_imagenet_weights.cache_clear()


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"'vnet'.*unet, unetplusplus, deeplabv3plus, fpn, segformer"):
        build_baseline("vnet")
