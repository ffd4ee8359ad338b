"""Equality with what the released system computes, tensor by tensor."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from tokencutseg.config import ConfigError, SegmentationConfig, configure
from tokencutseg.data.images import DataError
from tokencutseg.models.losses import segmentation_loss
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.upstream import load_segmenter, load_tokenizer, save_segmenter, save_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FIXTURES / "tiny_expected.npz"))


@pytest.fixture(scope="module")
def model():
    return load_segmenter(FIXTURES / "tiny_seg.ckpt")


@pytest.fixture(scope="module")
def images(expected):
    return torch.from_numpy(expected["images_uint8"]).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
@torch.no_grad()
def out(model, images):
    return model(images)


def close(actual, wanted, tolerance=1e-4):
    np.testing.assert_allclose(actual.detach().numpy(), wanted, atol=tolerance, rtol=0)
    return True


@torch.no_grad()
def test_tokenizer(model, images, expected):
    x = model.vqgan.normalise(images)
    reconstruction, quantized = model.vqgan(x)
    assert close(x, expected["network_input"], 1e-6)
    assert np.array_equal(quantized.tokens.flatten(1).numpy(), expected["tokens"])
    assert close(quantized.vectors, expected["quantized"])
    assert close(reconstruction, expected["reconstruction"])
    assert quantized.commitment_loss.item() == pytest.approx(float(expected["commit_loss"]), rel=1e-5)


def test_tokens_features_and_masks(out, expected):
    assert np.array_equal(out.tokens.numpy(), expected["tokens"])
    assert close(out.features, expected["token_features"])
    assert close(out.assignments, expected["assignments"])
    assert close(out.probabilities, expected["probabilities"])
    assert (out.mask.numpy() == expected["prediction"]).mean() >= 0.999


@torch.no_grad()
def test_both_vocabulary_heads(model, out, expected):
    gpt = model.masked_gpt
    assert close(gpt.lm_head(out.features)[:, :8], expected["lm_head_logits"])
    assert close(gpt.tied_head(out.features, gpt.token_embedding.weight)[:, :8], expected["mlm_logits_tied"])


def test_losses(out, expected):
    assert out.deepcut_loss.item() == pytest.approx(float(expected["deepcut_loss"]), rel=1e-5)
    target = torch.from_numpy(expected["target"]).long()
    config = SegmentationConfig(class_weighted_dice=True, cross_entropy_weight=1.0)
    ours = segmentation_loss(out.probabilities, out.probabilities, target, config)
    assert ours["cross_entropy"].item() == pytest.approx(float(expected["cross_entropy"]), rel=1e-5)
    assert ours["dice"].item() == pytest.approx(float(expected["dice_loss"]), rel=1e-5)


def test_misfits_are_listed(tmp_path, model):
    checkpoint = torch.load(FIXTURES / "tiny_seg.ckpt", weights_only=True)
    checkpoint["state_dict"].pop("lm_head.bias")
    checkpoint["state_dict"]["stranger.weight"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    with pytest.raises(DataError, match=r"missing \['lm_head.bias'\], unexpected \['stranger.weight'\]"):
        load_segmenter(tmp_path / "broken.ckpt")


@pytest.mark.parametrize("load", [load_segmenter, load_tokenizer])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"not a checkpoint", "cannot be read as a checkpoint"),
        ({"state_dict": {}, "hyper_parameters": argparse.Namespace()}, "cannot be read as a checkpoint"),
        ({"weights": 1}, "not a Lightning checkpoint"),
        ({"state_dict": {"a": torch.zeros(1)}}, r"not a released .* checkpoint: .* is missing"),
    ],
)
def test_other_files_are_refused(tmp_path, load, content, message):
    path = tmp_path / "model.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DataError, match=message):
        load(path)


def test_sizes_without_hyper_parameters(tmp_path, images):
    """Everything but the number of heads shows in the tensors; four is what the released code has."""
    model = released(heads=4)
    save_segmenter(model, tmp_path / "whole.ckpt")
    checkpoint = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    torch.save({"state_dict": checkpoint["state_dict"]}, tmp_path / "bare.ckpt")
    opened = load_segmenter(tmp_path / "bare.ckpt")
    assert opened.config.masked_gpt.n_head == 4
    small = images[..., :32, :32]
    assert torch.equal(opened(small).probabilities, model(small).probabilities)


def released(heads=2, **overrides):
    """An untrained model of the released recipe, of other sizes than the fixture's."""
    torch.manual_seed(1)
    sizes = {"hidden_channels": 32, "n_res_blocks": 3, "codebook_size": 11, "code_dim": 6}
    sizes = {f"vqgan.{key}": value for key, value in sizes.items()} | {"data.image_size": 32}
    sizes |= {"masked_gpt.n_layer": 3, "masked_gpt.n_head": heads, "masked_gpt.d_model": 24}
    return TokenCutSeg(configure("full", "released", overrides=sizes | overrides)).eval()


def test_export_is_the_inverse_of_load(tmp_path, model, images):
    """Both ways round: their file → ours → their file, and our model → their file → our model."""
    save_segmenter(model, tmp_path / "back.ckpt")
    theirs, back = (
        torch.load(path, weights_only=True) for path in (FIXTURES / "tiny_seg.ckpt", tmp_path / "back.ckpt")
    )
    assert back["state_dict"].keys() >= theirs["state_dict"].keys()
    for key, value in theirs["state_dict"].items():
        assert torch.equal(value, back["state_dict"][key]), key
    assert back["hyper_parameters"] == theirs["hyper_parameters"]
    ours = released()
    save_segmenter(ours, tmp_path / "ours.ckpt")
    opened = load_segmenter(tmp_path / "ours.ckpt")
    assert opened.config.data.image_size == 32
    state = opened.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    inside = load_tokenizer(tmp_path / "ours.ckpt")
    small = images[..., :32, :32]
    assert torch.equal(inside.tokenize(small), ours.vqgan.tokenize(small))


def test_exported_file_loads_strictly(tmp_path, model):
    """The PatchGAN and VGG16's 13 convolutions, under the slices [:4] [4:9] [9:16] [16:23] [23:30]."""
    config = model.config
    save_tokenizer(model.vqgan, config, tmp_path / "vqgan.ckpt")
    state = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)["state_dict"]
    vgg = {
        key.removeprefix("vqgan.loss.perceptual_loss.blocks."): tuple(value.shape)
        for key, value in state.items()
        if ".blocks." in key
    }
    with torch.device("meta"):  # for its shapes
        reference = models.vgg16().features
    wanted = {
        f"{block}.{name}": tuple(value.shape)
        for block, part in enumerate((slice(4), slice(4, 9), slice(9, 16), slice(16, 23), slice(23, 30)))
        for name, value in reference[part].state_dict().items()
    }
    assert vgg == wanted and len(vgg) == 26
    assert state["vqgan.loss.perceptual_loss.mean"].shape == (1, 3, 1, 1)
    assert state["vqgan.discriminator.main.0.weight"].shape == (64, 3, 4, 4)
    assert state["vqgan.discriminator.main.11.weight"].shape == (1, 512, 4, 4)
    again = load_tokenizer(tmp_path / "vqgan.ckpt").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.vqgan.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vqgan.input_normalisation", "symmetric"),
        ("segmentation.use_deepcut", False),
        ("segmentation.graph_radius", 0.1),
        ("segmentation.loss_input", "logits"),
        ("vqgan.norm_groups", 16),
    ],
)
def test_other_models_cannot_be_exported(tmp_path, setting, value):
    with pytest.raises(ConfigError, match=r"the released code cannot hold this model: .* is .*, not "):
        save_segmenter(released(**{setting: value}), tmp_path / "no.ckpt")
    assert not (tmp_path / "no.ckpt").exists()


def test_fewer_tokens_than_positions_take_the_first(images):
    model = released()
    small = images[..., :24, :24]  # 36 tokens, 64 positions
    tokens, _ = model.encode_to_tokens(small)
    x = model.masked_gpt.embed(tokens.flatten(1))
    table = model.masked_gpt
    wanted = table.embedding_norm(table.token_embedding(tokens.flatten(1)) + table.position_embedding.weight[:36])
    assert torch.equal(x, wanted)
    assert model(images[..., :36, :36]).features.shape == (len(images), 81, 24)  # more tokens: interpolated
