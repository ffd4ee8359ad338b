"""Synthetic dermoscopy: one seed is one picture, at every size, and the task is neither trivial nor impossible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.color import rgb2gray, rgb2lab
from skimage.filters import threshold_otsu

from tokencutseg.data.images import DataError
from tokencutseg.data.synthetic import SITES, _noise, _spline_weights, generate

sites = pytest.mark.parametrize("site", sorted(SITES))


@pytest.fixture(scope="module")
def lesions() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """120 lesions per site at 64 pixels, for the statistics."""
    return {site: generate(site, 120, 64, seed=0) for site in SITES}


def lesion_iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


@given(
    site=st.sampled_from(sorted(SITES)),
    n=st.integers(0, 3),
    size=st.sampled_from([8, 17, 32, 50, 96]),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=25, deadline=None)
def test_any_size_and_seed_gives_pictures_with_a_lesion(site, n, size, seed):
    images, masks = generate(site, n, size, seed)
    assert images.shape == (n, 3, size, size) and masks.shape == (n, size, size)
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) <= {0, 1}
    assert masks.any((1, 2)).all() and not masks.all((1, 2)).any()


@sites
def test_one_seed_is_one_picture_and_the_first_k_do_not_depend_on_n(site):
    images, masks = generate(site, 5, 48, seed=3)
    again, masks_again = generate(site, 2, 48, seed=3)
    np.testing.assert_array_equal(images[:2], again)
    np.testing.assert_array_equal(masks[:2], masks_again)


def test_seeds_indices_and_sites_share_no_picture():
    pictures = [image.tobytes() for site in SITES for seed in range(3) for image in generate(site, 4, 32, seed)[0]]
    assert len(set(pictures)) == len(pictures)


@sites
@pytest.mark.parametrize("size", [64, 96])
def test_one_seed_is_one_picture_at_every_size(site, size):
    (images, masks), (fine, fine_masks) = (generate(site, 12, side, seed=1) for side in (size, 2 * size))
    coarse_masks = fine_masks.reshape(12, size, 2, size, 2).mean((2, 4)) >= 0.5
    assert min(map(lesion_iou, masks, coarse_masks)) > 0.8
    coarse = fine.reshape(12, 3, size, 2, size, 2).mean((3, 5))
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, coarse, strict=True)]
    assert min(correlations) > 0.7 and np.mean(correlations) > 0.9


@sites
def test_lesion_area_is_spread_as_in_the_isic_archive(site, lesions):
    area = lesions[site][1].mean((1, 2))
    assert 0.1 < np.median(area) < 0.2
    assert area.min() > 0.004 and area.max() < 0.75
    assert np.quantile(area, 0.9) > 4 * np.quantile(area, 0.1)


@sites
def test_the_main_lesion_is_one_piece_and_some_have_satellites(site, lesions):
    pieces = [ndimage.label(mask, np.ones((3, 3))) for mask in lesions[site][1]]
    assert all(np.bincount(labels[labels > 0]).max() > 0.75 * (labels > 0).sum() for labels, _ in pieces)
    assert 0.02 < np.mean([count > 1 for _, count in pieces]) < 0.3


@sites
def test_lesions_are_darker_than_the_skin_around_them(site, lesions):
    images, masks = lesions[site]
    contrasts = []
    for image, mask in zip(images, masks, strict=True):
        ring = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask, iterations=2)
        contrasts.append(image.mean(0)[ring].mean() - image.mean(0)[mask == 1].mean())
    assert np.mean(np.array(contrasts) > 5) > 0.9


def test_site_b_is_cooler_and_pinker_than_site_a(lesions):
    centre_of_skin = {}
    for site, (images, masks) in lesions.items():
        lab = np.stack([rgb2lab(image.transpose(1, 2, 0)) for image in images])
        skin = ~ndimage.binary_dilation(masks, np.ones((1, 5, 5))) & (lab[..., 0] > 30)
        centre_of_skin[site] = np.median(lab[skin], 0)
    _, redness, yellowness = centre_of_skin["site_b"] - centre_of_skin["site_a"]
    assert yellowness < -5
    assert np.hypot(redness, yellowness) > 6


@sites
def test_a_grey_threshold_is_neither_hopeless_nor_enough(site, lesions):
    scores = []
    for image, mask in zip(*lesions[site], strict=True):
        grey = rgb2gray(image.transpose(1, 2, 0))
        scores.append(lesion_iou(grey < threshold_otsu(grey), mask))
    assert 0.3 < np.mean(scores) < 0.72


def test_spline_noise_has_the_scale_it_claims_and_shows_the_same_field_at_every_size():
    np.testing.assert_allclose(_spline_weights(37, 5).sum(1), 1, atol=1e-6)  # a partition of unity
    fields = {size: _noise(np.random.default_rng(0), size, 12, octaves=1) for size in (96, 192)}
    assert 0.85 < fields[192].std() < 1.15
    np.testing.assert_allclose(fields[192].reshape(96, 2, 96, 2).mean((1, 3)), fields[96], atol=0.05)


@pytest.mark.parametrize("arguments", [("clinic", 1, 32, 0), ("site_a", -1, 32, 0), ("site_a", 1, 4, 0)])
def test_what_cannot_be_drawn_is_said_in_words(arguments):
    with pytest.raises(DataError, match=r"unknown synthetic site 'clinic'|n >= 0"):
        generate(*arguments)
