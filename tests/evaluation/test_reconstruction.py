import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from tokencutseg.evaluation.reconstruction import reconstruction_scores


def pair(n=3, size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, size, size, generator=generator)
    return images, (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def ssim_by_formula(a, b, c1=0.01**2, c2=0.03**2):
    """Wang et al. 2004, eq. 13, with a Gaussian window of 11 px and mirrored borders."""

    def local_mean(x):
        return gaussian_filter(x, sigma=(0, 1.5, 1.5), truncate=3.5, mode="mirror")

    mean_a, mean_b = local_mean(a), local_mean(b)
    covariance = local_mean(a * b) - mean_a * mean_b
    variances = local_mean(a**2) - mean_a**2 + local_mean(b**2) - mean_b**2
    return np.mean(
        (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    )


def test_scores_equal_the_formulas():
    images, reconstructions = pair()
    scores = reconstruction_scores(images, reconstructions)
    assert scores.columns.tolist() == ["l1", "psnr", "ssim"]
    for row, a, b in zip(scores.itertuples(), images.double().numpy(), reconstructions.double().numpy(), strict=True):
        assert row.l1 == pytest.approx(np.abs(a - b).mean(), rel=1e-4)
        assert row.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), rel=1e-4)
        assert row.ssim == pytest.approx(ssim_by_formula(a, b), abs=1e-5)


def test_lpips_is_per_image():
    def distance(a, b, normalize):
        assert normalize
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    images, reconstructions = pair(n=20)
    scores = reconstruction_scores(images, reconstructions, distance)
    assert scores.lpips.to_numpy() == pytest.approx(scores.l1.to_numpy())


def test_one_image_and_equal_images():
    images, _ = pair(n=1)
    row = reconstruction_scores(images, images).iloc[0]
    assert (row.l1, row.psnr) == (0, math.inf)
    assert row.ssim == pytest.approx(1)


def test_bad_input_is_named():
    images, reconstructions = pair()
    with pytest.raises(ValueError, match="one shape"):
        reconstruction_scores(images, reconstructions[:1])
    with pytest.raises(ValueError, match="reconstructions must lie in"):
        reconstruction_scores(images, 2 * reconstructions - 1)
