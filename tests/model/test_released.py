"""Equality with what the released system computes, tensor by tensor."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tokencutseg.model.losses import segmentation_loss
from tokencutseg.model.released import load_segmenter, load_tokenizer

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
    cross_entropy, dice = segmentation_loss(out.logits, out.probabilities, target, "probabilities", True, 1.0)
    assert cross_entropy.item() == pytest.approx(float(expected["cross_entropy"]), rel=1e-5)
    assert dice.item() == pytest.approx(float(expected["dice_loss"]), rel=1e-5)


def test_a_tokenizer_checkpoint_is_read_without_its_training_leftovers(tmp_path, model, images):
    state = {f"vqgan.{key}": value for key, value in model.vqgan.state_dict().items()}
    state["vqgan.loss.perceptual_loss.blocks.0.0.weight"] = torch.zeros(1)
    state["vqgan.discriminator.main.0.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    tokenizer = load_tokenizer(tmp_path / "vqgan.ckpt")
    assert torch.equal(tokenizer.tokenize(images), model.vqgan.tokenize(images))


def test_what_does_not_fit_is_listed(tmp_path, model):
    checkpoint = torch.load(FIXTURES / "tiny_seg.ckpt", weights_only=True)
    checkpoint["state_dict"].pop("lm_head.bias")
    checkpoint["state_dict"]["stranger.weight"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    with pytest.raises(ValueError, match=r"missing \['masked_gpt.lm_head.bias'\], unexpected \['stranger.weight'\]"):
        load_segmenter(tmp_path / "broken.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a Lightning checkpoint"):
        load_segmenter(tmp_path / "other.ckpt")
