import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tokencutseg
from tokencutseg.config import configure
from tokencutseg.files import write_json
from tokencutseg.models.baselines import Baseline
from tokencutseg.models.checkpoint import CONFIG, build, save_weights
from tokencutseg.models.predict import image_array, resize_image
from tokencutseg.models.tokencutseg import TokenCutSeg


def model_of(recipe="revised", **overrides):
    torch.manual_seed(0)
    return TokenCutSeg(configure("tiny", recipe, overrides=overrides)).eval()


@given(st.sampled_from(["released", "described", "revised"]), st.integers(1, 3), st.integers(2, 5))
@settings(max_examples=12, deadline=None)
def test_shapes_of_forward(recipe, B, cells):
    model = model_of(recipe)
    S = 8 * cells
    side = S // 2**model.config.vqgan.n_stages
    T, E = side**2, model.config.masked_gpt.d_model
    out = model(torch.rand(B, 3, S, S))
    assert out.tokens.shape == (B, T) and out.tokens.dtype == torch.int64
    assert out.features.shape == (B, T, E) and out.assignments.shape == (B, T, 2)
    assert out.probabilities.shape == out.logits.shape == (B, 2, S, S)
    assert out.mask.shape == (B, S, S) and out.mask.max() <= 1
    assert out.deepcut_loss.shape == () and torch.isfinite(out.deepcut_loss)
    for probabilities, axis in ((out.assignments, -1), (out.probabilities, 1)):
        torch.testing.assert_close(probabilities.sum(axis), torch.ones_like(probabilities.sum(axis)))


def test_images_of_a_batch_are_independent():
    model, images = model_of(), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(model(images).probabilities[1:2], model(images[1:2]).probabilities, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_parts_stay_in_evaluation_mode(frozen):
    model = model_of(**{"segmentation.frozen_transformer": frozen}).train()
    before = {name: value.clone() for name, value in model.vqgan.state_dict().items()}
    model(torch.rand(2, 3, 32, 32))
    assert not model.vqgan.training and model.masked_gpt.training == (not frozen)
    assert all(torch.equal(value, before[name]) for name, value in model.vqgan.state_dict().items())


def test_codebook_drift_is_an_option():
    model = model_of(**{"segmentation.frozen_codebook": False}).train()
    before = model.vqgan.quantize.embedding.weight.clone()
    model(torch.rand(2, 3, 32, 32))
    assert not torch.equal(model.vqgan.quantize.embedding.weight, before)
    assert not any(p.requires_grad for p in model.vqgan.parameters())


def test_mask_reaches_the_encoder_from_imagenet_and_no_frozen_part():
    model, images = model_of(), torch.rand(2, 3, 32, 32)
    model(images).logits[:, 1].sum().backward()
    assert all(p.grad is None for part in (model.vqgan, model.masked_gpt) for p in part.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


def test_masked_prediction_knows_all_tokens_and_sees_the_others():
    model, images = model_of(), torch.rand(2, 3, 32, 32)
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[0, 1:3, 2], hidden[1, 0] = True, True
    tokens, logits = model.predict_masked(images, hidden.flatten(1))
    known, latents = model.encode_to_tokens(images)
    assert torch.equal(tokens, known) and logits.shape == (2, 16, model.config.vqgan.codebook_size + 1)
    replaced = torch.where(hidden, torch.randint_like(known, model.config.vqgan.codebook_size), known)
    noise = torch.where(hidden[:, None], torch.randn_like(latents), latents)
    _, unseen = model.predict_masked(images, hidden.flatten(1), (replaced, noise))
    torch.testing.assert_close(unseen, logits)
    _, other = model.predict_masked(images.flip(0), hidden.flatten(1))
    assert not torch.allclose(other, logits)


def test_flips_make_the_prediction_equivariant():
    model, images = model_of(**{"segmentation.test_time_flips": True}), torch.rand(2, 3, 32, 32)
    straight = model.predict_probabilities(images)
    for side in (-1, -2):
        flipped = model.predict_probabilities(images.flip(side)).flip(side)
        torch.testing.assert_close(straight, flipped, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(straight.sum(1), torch.ones(2, 32, 32))


@pytest.mark.parametrize("recipe", ["released", "revised"])
@pytest.mark.parametrize("upsampling", ["bilinear", "unet"])
@pytest.mark.parametrize("loss_input", ["logits", "probabilities"])
def test_trained_parts_reach_the_prediction(recipe, upsampling, loss_input):
    """The up-sampler, where there is one, shapes the probabilities under either kind of loss."""
    settings = {"segmentation.upsampling": upsampling, "segmentation.loss_input": loss_input}
    model = model_of(recipe, **settings)
    model(torch.rand(1, 3, 32, 32)).probabilities[:, 1].sum().backward()
    learns = [p for p in (model.upsampler or model.head).parameters() if p.grad is not None and p.grad.any()]
    assert learns


@pytest.mark.parametrize("size", [(32, 32), (50, 41), (17, 90)])
def test_predict_takes_any_image(tmp_path, size):
    model = model_of()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    masks = [
        model.predict(x) for x in (pixels, Image.fromarray(pixels), tmp_path / "image.png", str(tmp_path / "image.png"))
    ]
    assert masks[0].shape == size and masks[0].dtype == bool
    assert all(np.array_equal(masks[0], mask) for mask in masks)


def test_image_array_and_resize():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert torch.equal(resize_image(pixels, 32), torch.from_numpy(pixels).permute(2, 0, 1))
    small = resize_image(pixels, 8)
    assert small.shape == (3, 8, 8) and small.dtype == torch.uint8
    assert image_array(np.zeros((4, 5), np.uint8)).shape == (4, 5, 3)
    for wrong in (np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8 of shape"):
            image_array(wrong)


@pytest.mark.parametrize(("stage", "name"), [("segmentation", None), ("vqgan", None), ("baseline", "unet")])
def test_saved_models_reopen(tmp_path, tiny, stage, name):
    model = build(stage, tiny, name).eval()
    save_weights(model.state_dict(), tmp_path)
    write_json({"stage": stage, "name": name, "config": tiny.to_dict()}, tmp_path / CONFIG)
    opened = tokencutseg.load(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    if stage == "vqgan":
        assert torch.equal(opened.tokenize(images), model.tokenize(images))
    else:
        assert torch.equal(opened.predict_probabilities(images), model.predict_probabilities(images))
        assert opened.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)
    assert isinstance(opened, Baseline) == (stage == "baseline")
    assert not opened.training
