import socket
import urllib.error
import urllib.request

import pytest
import torch
from torchvision.models import VGG16_Weights

from tokencutseg.models import perceptual
from tokencutseg.models.perceptual import Lite0Distance, load_lpips, load_vgg


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No server answers and nothing has been downloaded before. Gives the list of addresses that were asked."""
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, timeout))
        raise urllib.error.URLError(socket.gaierror("no network here"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    perceptual._has_imagenet_vgg.cache_clear()
    yield asked
    perceptual._has_imagenet_vgg.cache_clear()


def test_without_a_network_it_compares_lite0(no_network):
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"no network here.*EfficientNet-Lite0"):
        distance = load_lpips()
    assert torch.equal(torch.get_rng_state(), before)
    assert load_lpips().weights_name == distance.weights_name == "efficientnet_lite0-imagenet"
    assert len(no_network) == 1 and no_network[0][1] <= 5, "the server is asked once, and not for long"


def test_random_vgg_is_the_same_each_time(no_network, capsys):
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="no network here"):
        first = load_vgg()
    second = load_vgg()
    assert first.weights_name == "vgg16-random" and torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.filterwarnings("ignore:.*could not be fetched")
@pytest.mark.parametrize("load", [load_vgg, Lite0Distance])
def test_distance_is_frozen_and_differentiable_in_the_images(no_network, load):
    distance = load()
    torch.nn.Sequential(distance).train()  # as a stage's module does
    assert not any(part.training for part in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 40, 40, generator=generator)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1).requires_grad_()
    value = distance(a, b, normalize=True)
    assert value.shape == (2, 1, 1, 1) and (value > 0).all()
    assert distance(a, a, normalize=True).abs().max() == 0
    torch.testing.assert_close(value, distance(b, a, normalize=True))
    torch.testing.assert_close(value, distance(2 * a - 1, 2 * b - 1))
    value.sum().backward()
    assert b.grad.abs().sum() > 0


def test_lite0_distance_is_that_of_unit_vectors():
    """By the law of cosines, at every place: 2 − 2·cos."""
    distance, a, b = Lite0Distance(), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    pairs = zip(distance.features(a), distance.features(b), strict=True)
    expected = sum((2 - 2 * torch.cosine_similarity(p, q)).mean() for p, q in pairs) / 5
    torch.testing.assert_close(distance(a, b).item(), expected.item(), rtol=1e-4, atol=1e-5)


def test_cached_weights_are_used_without_asking(no_network, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / VGG16_Weights.IMAGENET1K_V1.url.rpartition("/")[2]).touch()
    assert perceptual._has_imagenet_vgg() and no_network == []
