import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import SimilarityTransform, warp

from tokencutseg.config import ConfigError
from tokencutseg.data import transforms
from tokencutseg.data.transforms import Augmentation, mix, recolour, turn_and_flip

STEPS = list(transforms.STRENGTHS["released"])
GEOMETRY = {"photometric": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(B: int = 4, S: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(B, 3, S, S, generator=seeded(seed))
    return images, (images[:, 0] > 0.5).long()


def blobs(B: int, S: int, seed: int = 0) -> torch.Tensor:
    """Ellipses of lesion size, off centre: (B, S, S) int64."""
    centre, radius, slant = (torch.rand(k, B, 1, 1, generator=seeded(seed)) for k in (2, 2, 1))
    y, x = torch.meshgrid(torch.linspace(0, 1, S), torch.linspace(0, 1, S), indexing="ij")
    dx, dy = x - 0.35 - 0.3 * centre[0], y - 0.35 - 0.3 * centre[1]
    dx, dy = dx + (slant[0] - 0.5) * dy, dy
    return ((dx / (0.15 + 0.2 * radius[0])) ** 2 + (dy / (0.15 + 0.2 * radius[1])) ** 2 < 1).long()


@settings(max_examples=20, deadline=None)
@given(B=st.integers(0, 5), S=st.integers(2, 33), with_masks=st.booleans())
def test_shapes_types_and_ranges(B, S, with_masks):
    images, masks = batch(B, S)
    out, out_masks = Augmentation()(images, masks if with_masks else None, seeded())
    assert out.shape == images.shape and out.dtype == torch.float32
    assert ((out >= 0) & (out <= 1)).all()
    if with_masks:
        assert out_masks.shape == masks.shape and out_masks.dtype == torch.int64
        assert ((out_masks == 0) | (out_masks == 1)).all()
    else:
        assert out_masks is None


def test_zero_probabilities_are_exactly_the_identity():
    images, masks = batch(8)
    for identity in (Augmentation("none"), Augmentation("released", **dict.fromkeys(STEPS, 0.0))):
        out, out_masks = identity(images, masks, seeded())
        assert torch.equal(out, images) and torch.equal(out_masks, masks)


def test_the_generator_is_the_only_source_of_randomness():
    images, masks = batch(6)
    before, masks_before, generator, state = images.clone(), masks.clone(), seeded(3), torch.random.get_rng_state()
    first, _ = Augmentation()(images, masks, generator)
    second, _ = Augmentation()(images, masks, generator)
    assert torch.equal(first, Augmentation()(images, masks, seeded(3))[0]) and not torch.equal(first, second)
    assert torch.equal(first, Augmentation()(images, None, seeded(3))[0]), "masks play no part"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images, before) and torch.equal(masks, masks_before), "arguments are left as they were"


def test_each_image_gets_its_own_draw():
    images = batch(1)[0].expand(32, -1, -1, -1)
    out, _ = Augmentation(shift_scale_rotate=1.0)(images, None, seeded())
    assert len({image.numpy().tobytes() for image in out}) == 32


# exact symmetries


@settings(max_examples=30, deadline=None)
@given(B=st.integers(1, 9), S=st.integers(1, 20), seed=st.integers(0, 999))
def test_turn_and_flip_equals_torch(B, S, seed):
    images, masks = batch(B, S, seed)
    draw = seeded(seed)
    horizontal, vertical = (torch.randint(2, (B,), generator=draw).bool() for _ in range(2))
    turns = torch.randint(4, (B,), generator=draw)
    for x in (images, masks):
        expected = []
        for i in range(B):
            one = x[i].flip(-1) if horizontal[i] else x[i]
            one = one.flip(-2) if vertical[i] else one
            expected.append(torch.rot90(one, int(turns[i]), (-2, -1)))
        assert torch.equal(turn_and_flip(x, horizontal, vertical, turns), torch.stack(expected))


# probabilities


@pytest.mark.parametrize("step", STEPS)
def test_steps_happen_as_often_as_they_should(step):
    n = 4000
    images = batch(1, 6)[0].expand(n, -1, -1, -1)
    p, masks = transforms.STRENGTHS["released"][step], (images[:, 0] > 0.5).long()
    out, out_masks = Augmentation("none", **{step: p})(images, masks, seeded())
    assert torch.equal(out_masks, masks) is (step == "photometric")
    changed = (out != images).flatten(1).any(1).float().mean().item()
    expected = p * 0.75 if step == "quarter_turn" else p  # one turn in four is by 0 degrees
    assert changed == pytest.approx(expected, abs=5 * (p * (1 - p) / n) ** 0.5)


# geometry


@pytest.mark.parametrize("step", ["horizontal_flip", "quarter_turn", "shift_scale_rotate", "warp", "all"])
def test_image_and_mask_stay_aligned(step):
    masks = blobs(256, 96)
    images = masks[:, None].expand(-1, 3, -1, -1).float()
    augmentation = Augmentation(**GEOMETRY) if step == "all" else Augmentation("none", **{step: 1.0})
    out, out_masks = augmentation(images, masks, seeded(1))
    seen, told = out[:, 0] > 0.5, out_masks.bool()
    iou = (seen & told).flatten(1).sum(1) / (seen | told).flatten(1).sum(1)
    assert iou.min() > 0.97
    assert not torch.equal(out_masks, masks)


def test_half_precision_around_it_moves_no_pixel():
    images, masks = batch(24, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Augmentation()(images, masks, seeded())
    for a, b in zip(inside, Augmentation()(images, masks, seeded()), strict=True):
        assert torch.equal(a, b)


def test_shift_scale_rotate_equals_scikit_image(monkeypatch):
    B, S = 6, 48
    images = F.interpolate(batch(B, 8)[0], size=S, mode="bicubic").clamp(0, 1)
    grids = []
    draw = transforms._shift_scale_rotate
    monkeypatch.setattr(transforms, "_shift_scale_rotate", lambda *args: grids.append(draw(*args)) or grids[-1])
    out, _ = Augmentation("none", shift_scale_rotate=1.0)(images, None, seeded(5))
    # where the grid sends three corners gives the similarity that was drawn: scikit-image applies the same one
    [grid] = grids
    pixels = ((grid + 1) * S - 1).div(2).double().numpy()
    target = np.array([[0, 0], [S - 1, 0], [0, S - 1]], float)
    for i in range(B):
        source = np.array([pixels[i, 0, 0], pixels[i, 0, -1], pixels[i, -1, 0]])
        similarity = SimilarityTransform.from_estimate(target, source)
        assert np.allclose(similarity(target), source, atol=1e-3)
        expected = warp(images[i].permute(1, 2, 0).double().numpy(), similarity, order=1, mode="symmetric")
        assert np.abs(out[i].permute(1, 2, 0).numpy() - expected).max() < 2e-3


def test_shift_scale_rotate_stays_within_its_limits():
    n, S = 500, 16
    grid = transforms._pixel_centres(S).repeat(n, 1, 1, 1)
    looked = transforms._shift_scale_rotate(grid, torch.ones(n, dtype=torch.bool), seeded())
    step = looked[:, 0, 1] - looked[:, 0, 0]
    scale = (2 / S) / step.norm(dim=1)
    angle = torch.rad2deg(torch.atan2(step[:, 1], step[:, 0]))
    # looked = (p - t) @ M with p centred on 0, so its mean is -t @ M; the side is 2 units long
    inverse = torch.linalg.inv(torch.stack([step, looked[:, 1, 0] - looked[:, 0, 0]], 1) / (2 / S))  # of M
    shift = -(looked.mean((1, 2))[:, None] @ inverse).squeeze(1) / 2
    for values, centre, limit in ((scale, 1, 0.1), (angle, 0, 45), (shift, 0, 0.0625)):
        deviation = (values - centre).abs().max()
        assert 0.95 * limit < deviation <= limit * (1 + 1e-4)


@pytest.mark.parametrize("S", [56, 224])
def test_elastic_displacement_is_the_same_share_of_the_side_at_every_size(S):
    grid = transforms._elastic(24, S, seeded())
    displacement = (grid - transforms._pixel_centres(S)) * 112  # in pixels of the reference size
    inner = displacement[:, S // 5 : -S // 5, S // 5 : -S // 5]
    # white noise U(-1, 1) smoothed by a Gaussian: standard deviation alpha / sqrt(3) / (2 sqrt(pi) sigma)
    expected = 120 / 3**0.5 / (2 * torch.pi**0.5 * 6)
    assert inner.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("make", [transforms._grid_distortion, transforms._optical_distortion])
def test_warps_do_not_fold(make):
    grid = make(50, 60, seeded())
    assert (grid.diff(dim=2)[..., 0] > 0).all() and (grid.diff(dim=1)[..., 1] > 0).all()


def test_optical_distortion_is_radial_within_its_limit():
    centres = transforms._pixel_centres(16)
    stretch = transforms._optical_distortion(100, 16, seeded()) / centres - 1
    radius = centres.norm(dim=-1, keepdim=True) / 2
    k = stretch / (radius**2 + radius**4)
    torch.testing.assert_close(k, k[:, :1, :1, :1].expand_as(k), atol=1e-3, rtol=0)
    assert 0.045 < k.abs().max() < 0.051


def test_grid_distortion_keeps_the_border_and_its_limits():
    S = 100
    grid = transforms._grid_distortion(50, S, seeded())
    step = grid[:, 0].diff(dim=1)[..., 0] / (2 / S)  # relative width of the cell a column lies in
    assert step.min() > 0.7 / 1.3 and step.max() < 1.3 / 0.7
    assert step.max() > 1.2 and step.min() < 0.8
    half = step[:, [0, -1]] / S  # the first and last pixel centre lie half a pixel inside
    assert torch.allclose(grid[:, 0, 0, 0], -1 + half[:, 0], atol=1e-5)
    assert torch.allclose(grid[:, 0, -1, 0], 1 - half[:, 1], atol=1e-5)


# photometry


def test_noise_has_the_variance_asked_for():
    images = torch.full((200, 3, 24, 24), 0.5)
    spread = transforms._noise(images, seeded()).sub(images).flatten(1).std(1) * 255
    assert (10 * 0.9) ** 0.5 < spread.min() < 3.6 and 6.5 < spread.max() < (50 * 1.1) ** 0.5


def test_brightness_contrast_is_affine_and_gamma_a_power():
    images, _ = batch(100)
    images = images.clamp(0.05)
    x = images.flatten(1)
    y = transforms._brightness_contrast(images, seeded()).flatten(1)
    contrast = (y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0])
    brightness = y[:, 0] - contrast * x[:, 0]
    assert torch.allclose(contrast[:, None] * x + brightness[:, None], y, atol=1e-3)
    assert 0.18 < contrast.sub(1).abs().max() < 0.201 and 0.18 < brightness.abs().max() < 0.201
    exponent = transforms._gamma(images, seeded()).flatten(1).log() / x.log()
    assert torch.allclose(exponent, exponent[:, :1].expand_as(exponent), atol=1e-2)
    assert 0.18 < exponent.sub(1).abs().max() < 0.21


# bad input


def test_bad_input():
    with pytest.raises(ConfigError, match="Known: released, plain, none"):
        Augmentation("strong")
    with pytest.raises(ConfigError, match=r"step blur\. Known: horizontal_flip"):
        Augmentation(blur=0.5)
    with pytest.raises(ValueError, match="must be square"):
        Augmentation()(torch.rand(2, 3, 8, 9), None, seeded())


def test_recolouring_scales_contrast_brightness_and_channels():
    images = 0.3 + 0.2 * torch.rand(60, 3, 8, 8, generator=seeded(1))
    torch.testing.assert_close(recolour(images, seeded(0), strength=0.0), images)
    recoloured = recolour(images, seeded(0), strength=0.2)
    assert recoloured.min() >= 0 and recoloured.max() <= 1 and not torch.equal(recoloured, images)
    fits = []
    for before, after in zip(images.flatten(0, 1), recoloured.flatten(0, 1), strict=True):  # each channel: affine
        slope, offset = np.polyfit(before.flatten().numpy(), after.flatten().numpy(), 1)
        np.testing.assert_allclose(slope * before + offset, after, atol=1e-5)
        fits.append((slope, offset))
    slope, offset = np.reshape(fits, (-1, 3, 2)).transpose(2, 0, 1)  # y = g·b·(c·(x − m) + m), by channel
    mean = images.mean((1, 2, 3), keepdim=True)[..., 0, 0].numpy()
    contrast = mean / (mean + offset / slope)
    np.testing.assert_allclose(contrast, contrast[:, :1].repeat(3, 1), atol=1e-3)
    level = slope / contrast
    assert 0.17 < np.abs(contrast - 1).max() < 0.201 and 0.17 < np.abs(level.mean(1) - 1).max() < 1.2 * 1.1 - 1
    assert 1.15 < (level.max(1) / level.min(1)).max() < 1.1 / 0.9 + 1e-3


def test_mix_pastes_a_rectangle_with_its_mask():
    """Images of one value each, which the masks repeat: what is pasted is seen."""
    values = torch.arange(6)
    images, masks = values.view(6, 1, 1, 1).expand(6, 3, 32, 32) / 8, values.view(6, 1, 1).expand(6, 32, 32)
    mixed, labels = mix(images, masks, seeded(1), 1.0)
    assert torch.equal(mixed[:, 0] * 8, labels.float()) and torch.equal(mixed[:, 0], mixed[:, 2])
    shares = []
    for own, label in zip(values, labels, strict=True):
        rows, columns = (label != own).nonzero(as_tuple=True)
        if len(rows):
            box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert box == len(rows) and len(label.unique()) == 2, "a whole rectangle of one other image"
            shares.append(len(rows) / 32**2)
    assert len(shares) > 2 and min(shares) > 0.07 and max(shares) < 0.55
    assert torch.equal(mix(images, masks, seeded(1), 0.0)[0], images)
