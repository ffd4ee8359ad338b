"""Notebook 01's figures show the data that they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from plots.conftest import H, K, shown

from tokencutseg.data.image_set import ImageSet
from tokencutseg.plots import tokenizer as plots


def test_dataset_preview_spaces_images_evenly(images):
    unlabelled = ImageSet("site", "unlabelled", images.ids, images.images, None, None, images.native_sizes)
    figure = plots.dataset_preview([images, unlabelled], columns=3)
    for pixels, n in zip(shown(figure.axes), [0, 2, 4] * 2, strict=True):
        np.testing.assert_array_equal(pixels, images.images[n].permute(1, 2, 0))
    assert [len(axis.collections) for axis in figure.axes] == [1, 1, 1, 0, 0, 0], "an outline where there is a mask"


@pytest.mark.parametrize("adversarial", [True, False])
def test_vqgan_curves_draw_the_history(adversarial):
    terms = ["reconstruction", "perceptual", "commitment"] + ["discriminator"] * adversarial
    columns = [f"train_{term}" for term in terms] + ["validation_l1", "validation_usage", "validation_perplexity"]
    values = np.random.default_rng(0).uniform(0.1, 0.9, (4, len(columns)))
    history = pd.DataFrame(values, columns=columns).assign(epoch=range(1, 5))
    losses, error, codes = plots.vqgan_curves(history, K).axes
    drawn = [[line.get_ydata() for line in axis.lines if len(line.get_ydata()) == 4] for axis in (losses, error, codes)]
    np.testing.assert_array_equal(drawn[0], history[[f"train_{term}" for term in terms]].T)
    np.testing.assert_array_equal(drawn[1], [history["validation_l1"]])
    np.testing.assert_array_equal(drawn[2], [history["validation_usage"] * K, history["validation_perplexity"]])
    assert error.get_ylim()[0] == 0 and codes.get_ylim()[1] > K


def test_reconstructions_state_the_psnr_of_each_image():
    x = torch.full((2, 3, 8, 8), 0.5)
    axes = plots.reconstructions(x, torch.stack([x[0] + 0.1, x[1] + 0.01])).axes  # errors of 0.1 and 0.01: 20, 40 dB
    assert [axis.get_title() for axis in axes[2:4]] == ["20.0 dB", "40.0 dB"]
    np.testing.assert_allclose(axes[4].images[0].get_array(), 0.1, atol=1e-6)


def test_codebook_usage_draws_shares_by_rank(usage):
    shares, lesion = plots.codebook_usage(usage).axes
    heights = [bar.get_height() for bar in shares.containers[0]]
    np.testing.assert_allclose(heights, sorted(usage["share"][usage["count"] > 0], reverse=True))
    assert sum(bar.get_height() for bar in lesion.patches) == pytest.approx(1)
    assert lesion.patches[-1].get_height() == pytest.approx(usage["share"][13]), "the pure code is in the last bin"


def test_token_maps_draw_tokens_and_their_lesion_share(images, tokens, usage):
    x, share = images.images / 255, usage["lesion_share"].to_numpy()
    axes = plots.token_maps(x[:2], tokens[:2], x[:2], images.masks[:2], share).axes
    drawn = shown(axes[:8])
    np.testing.assert_array_equal(drawn[1], tokens[0])
    np.testing.assert_array_equal(drawn[3], share[tokens[0]])
    np.testing.assert_array_equal(drawn[6], x[1].permute(1, 2, 0))
    for axis in (axes[0], axes[3]):
        x, y = axis.collections[0].get_paths()[0].vertices.T
        assert (x.min(), x.max(), y.min(), y.max()) == (7.5, 15.5, 7.5, 23.5), "in pixels, on the map as on the image"


def test_codebook_embedding_draws_the_codes_in_use(usage):
    codes = torch.zeros(K, 6)
    codes[:, 0] = torch.arange(K) * 2.0  # one direction holds nearly all variance
    codes[:, 1] = torch.arange(K) % 2
    dots, pictures = plots.codebook_embedding(codes, usage, torch.rand(K, 3, 8, 8)).axes[:2]
    points = dots.collections[0].get_offsets()
    assert len(points) == 14 == len(pictures.artists)
    np.testing.assert_allclose(np.ptp(points[:, 0]), 26, rtol=0.01)
    np.testing.assert_array_equal(dots.collections[0].get_array(), usage["lesion_share"][:14])
    assert "100%" in dots.get_xlabel()
    few = plots.codebook_embedding(codes, usage.assign(count=usage["count"].where(usage["code"] < 2, 0)), None)
    assert "these images have 2" in few.get_suptitle()


def test_code_explorer_highlights_the_tokens_of_its_code(images, tokens, usage):
    back, alone = images.images / 255, torch.rand(3, 32, 32)
    axes = np.array(plots.code_explorer(13, usage, images, tokens, back, alone).axes).reshape(2, 6)
    first = int((tokens == 13).flatten(1).sum(1).argmax())
    true = back[first].permute(1, 2, 0)
    np.testing.assert_array_equal(axes[0, 0].images[0].get_array(), alone.permute(1, 2, 0))
    lit = axes[0, 1].images[0].get_array()
    np.testing.assert_allclose(lit[8:24, 8:16], true[8:24, 8:16], rtol=1e-6)
    np.testing.assert_allclose(lit[:8], 0.35 * true[:8], rtol=1e-5)
    assert axes[0, 1].get_title() == f"{(tokens[first] == 13).sum()} of {H * H} tokens"


def test_code_explorer_of_an_unused_code(images, tokens, usage):
    figure = plots.code_explorer(15, usage, images, tokens, images.images / 255, torch.rand(3, 32, 32))
    assert "no token of these 5 images" in figure.get_suptitle()
    assert [len(axis.images) for axis in figure.axes] == [1] + [0] * 11
