import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.segmentation import dice_score

from tokencutseg.config import SegmentationConfig
from tokencutseg.models.losses import (
    PerceptualLoss,
    dice_loss,
    discriminator_loss,
    flatness,
    generator_loss,
    masked_token_loss,
    reconstruction_loss,
    segmentation_loss,
)


@given(st.integers(1, 4), st.integers(4, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_dice_of_hard_masks_equals_torchmetrics(B, S, seed):
    generator = torch.Generator().manual_seed(seed)
    target, predicted = (torch.randint(2, (B, S, S), generator=generator) for _ in range(2))
    target[:, 0, 0], target[:, 0, 1] = 0, 1  # both classes present, where every reduction agrees
    onehot = F.one_hot(predicted, 2).movedim(-1, 1).float()
    theirs = dice_score(onehot, F.one_hot(target, 2).movedim(-1, 1), 2, average="none").mean()
    assert dice_loss(onehot, target, class_weighted=False).item() == pytest.approx(1 - theirs.item(), abs=1e-5)


def test_class_weights_follow_the_batch_and_are_clamped():
    target = torch.zeros(1, 10, 10, dtype=torch.long)
    target[0, 0, 0] = 1
    probabilities = torch.full((1, 2, 10, 10), 0.5)
    skin, lesion = (1 - 2 * 0.5 * n / (50 + n) for n in (99, 1))
    expected = (skin * (100 / (99 * 2)) + lesion * 2.0) / 2
    assert dice_loss(probabilities, target, class_weighted=True).item() == pytest.approx(expected, abs=1e-5)


def test_floor_of_a_double_softmax():
    target = torch.randint(2, (1, 6, 6))
    perfect = F.one_hot(target, 2).movedim(-1, 1).float()
    released = segmentation_loss(perfect, perfect, target, SegmentationConfig())
    corrected = segmentation_loss(perfect * 100, perfect, target, SegmentationConfig())
    assert released["cross_entropy"].item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert max(loss.item() for loss in corrected.values()) == pytest.approx(0, abs=1e-6)


def test_gradient_of_the_clamped_reconstruction():
    x, reconstruction = torch.full((1, 3, 8, 8), 2.0), torch.zeros(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(reconstruction_loss(x, reconstruction, True, False), reconstruction)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(reconstruction_loss(x, reconstruction, False, False), reconstruction)
    assert gradient.all()


def test_flat_areas_weigh_most():
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    weight = flatness(step)
    assert weight.shape == (1, 1, 8, 8)
    assert torch.allclose(weight[..., :3], torch.ones(1)) and torch.allclose(weight[..., 6:], torch.ones(1))
    assert torch.allclose(weight[..., 3:5], torch.tensor(math.exp(-5 * 0.25)))  # central difference of a unit step / 4
    loss = reconstruction_loss(step, torch.zeros_like(step), False, True)
    assert loss.item() == pytest.approx(((1 + math.exp(-1.25)) * 1 + 2 * 3) / 8, abs=1e-6)


def test_released_discriminator_loss_starts_without_a_gradient():
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss = discriminator_loss(real, fake, clamped=True)
    assert loss.item() == pytest.approx(0.01)
    assert not any(g.any() for g in torch.autograd.grad(loss, [real, fake]))
    loss = discriminator_loss(real, fake, clamped=False)
    assert loss.item() == pytest.approx(1.0)
    assert all(g.any() for g in torch.autograd.grad(loss, [real, fake]))
    for steps, share in ((999, 0.01), (1000, 0.02), (50_500, 0.51)):
        assert discriminator_loss(real, fake, True, steps).item() == pytest.approx(share)
    late = discriminator_loss(real + 9, fake - 9, clamped=True, steps_since_start=500_000)
    assert late.item() == pytest.approx(2 * math.log1p(math.exp(-9)), rel=1e-4)


def test_generator_loss():
    fake = torch.full((3,), -4.0)
    assert generator_loss(fake, clamped=False).item() == 4 and generator_loss(fake, clamped=True).item() == 1


def test_masked_token_loss():
    logits, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    expected = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0][mask].mean()
    torch.testing.assert_close(masked_token_loss(logits, tokens, mask), expected)


@pytest.mark.parametrize("kind", ["lpips", "vgg_l1"])
def test_perceptual_distance(kind):
    loss = PerceptualLoss(kind, 32)
    x = torch.rand(2, 3, 48, 48) * 2 - 1
    noisy = (x + 0.3 * torch.randn_like(x)).requires_grad_()
    assert loss(x, x).item() == pytest.approx(0, abs=1e-6)
    value = loss(x, noisy)
    a, b = (F.interpolate(v.clamp(-1, 1), (32, 32), mode="bilinear") for v in (x, noisy))
    slices = [(p - q).abs().mean() for p, q in zip(loss.lpips.features(a), loss.lpips.features(b), strict=True)]
    expected = loss.lpips(a, b).mean() if kind == "lpips" else sum(slices).clamp(max=10)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert value.item() > 0 and noisy.grad.abs().sum() > 0
