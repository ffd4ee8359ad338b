"""The figures of notebook 01: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from tokencutseg.config import configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.codebook import codebook_table
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots import tokenizer as figures

N, S, K, H = 5, 32, 16, 4


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (N, 3, S, S), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(N, S, S, dtype=torch.uint8)
    masks[:, 8:24, 8:16] = 1  # an eighth of the image, and whole cells
    return ImageSet("site", "test", [str(n) for n in range(N)], pixels, masks, None, [(S, S)] * N)


@pytest.fixture(scope="module")
def tokens():
    """Codes 0 to 13 fire; code 13 exactly on the lesion; 14 and 15 never."""
    drawn = torch.randint(13, (N, H, H), generator=torch.Generator().manual_seed(1))
    drawn[:, 1:3, 1:2] = 13
    return drawn


@pytest.fixture(scope="module")
def table(images, tokens):
    return codebook_table(tokens, downsample_mask(images.masks, (H, H)), K)


def title(figure):
    """In one line, however it is wrapped."""
    return " ".join(figure.get_suptitle().split())


def drawn_images(axes):
    return [np.asarray(axis.images[0].get_array()) for axis in axes]


def assert_labelled(*axes):
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in axes)


def test_dataset_preview_shows_each_set_and_states_its_lesion_sizes(images):
    unlabelled = ImageSet("site", "unlabelled", images.ids, images.images, None, None, images.native_sizes)
    figure = figures.dataset_preview([images, unlabelled], columns=3)
    assert isinstance(figure, Figure)
    assert "median lesion covers 12%" in title(figure)
    assert len(figure.axes) == 6
    shown = drawn_images(figure.axes)
    for picture, n in zip(shown, [0, 2, 4] * 2, strict=True):
        np.testing.assert_array_equal(picture, images.images[n].permute(1, 2, 0))
    assert [len(axis.collections) for axis in figure.axes] == [1, 1, 1, 0, 0, 0], "an outline where there is a mask"


def test_dataset_preview_leaves_places_empty_where_a_set_is_small(images):
    figure = figures.dataset_preview([images.subset([0, 1])], columns=4)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0, 0]


@pytest.mark.parametrize("with_adversary", [True, False])
def test_vqgan_curves_draw_the_history(with_adversary):
    rng = np.random.default_rng(0)
    columns = [
        "train_reconstruction",
        "train_commitment",
        "train_perceptual",
        "validation_l1",
        "validation_usage",
        "validation_perplexity",
    ] + ["train_discriminator"] * with_adversary
    history = pd.DataFrame(rng.uniform(0.1, 0.9, (4, len(columns))), columns=columns).assign(epoch=range(1, 5))
    figure = figures.vqgan_curves(history, K)
    losses, error, codes = figure.axes
    assert_labelled(losses, error, codes)
    assert len(losses.lines) == 3 + with_adversary
    np.testing.assert_array_equal(losses.lines[0].get_ydata(), history["train_reconstruction"])
    np.testing.assert_array_equal(error.lines[0].get_ydata(), history["validation_l1"])
    np.testing.assert_array_equal(codes.lines[0].get_ydata(), history["validation_usage"] * K)
    np.testing.assert_array_equal(codes.lines[1].get_ydata(), history["validation_perplexity"])
    assert error.get_ylim()[1] > history["validation_l1"].max()
    assert f"{history['validation_l1'].iloc[-1]:.3f} in 4 epochs" in title(figure)


def test_reconstructions_state_the_psnr_of_the_pictures():
    x = torch.full((2, 3, 8, 8), 0.5)
    back = torch.stack([x[0] + 0.1, x[1] + 0.01])  # errors of 0.1 and 0.01 are 20 and 40 dB
    figure = figures.reconstructions(x, back)
    assert "PSNR 20.0 to 40.0 dB" in title(figure) and "mean error 0.055" in title(figure)
    np.testing.assert_allclose(figure.axes[4].images[0].get_array(), 0.1, atol=1e-6)


def test_codebook_usage_draws_shares_by_rank(table):
    figure = figures.codebook_usage(table)
    shares, lesion = figure.axes
    assert_labelled(shares, lesion)
    heights = [bar.get_height() for bar in shares.containers[0]]
    np.testing.assert_allclose(heights, sorted(table["share"][table["count"] > 0], reverse=True))
    assert "88% of 16 codes" in title(figure)
    assert sum(bar.get_height() for bar in lesion.patches) == pytest.approx(1)
    assert lesion.patches[-1].get_height() == pytest.approx(table["share"][13]), "the pure code is in the last bin"


def test_token_maps_draw_words_and_their_lesion_share(images, tokens, table):
    x, share = images.images / 255, table["lesion_share"].to_numpy()
    figure = figures.token_maps(x[:2], tokens[:2], x[:2], images.masks[:2], share)
    shown = drawn_images(figure.axes[:8])
    np.testing.assert_array_equal(shown[1], tokens[0])
    np.testing.assert_array_equal(shown[3], share[tokens[0]])
    assert "32×32 pixels become 4×4 words" in title(figure)
    # the outline in the map of cells falls on the borders of the lesion's cells
    (outline,) = figure.axes[3].collections
    x, y = outline.get_paths()[0].vertices.T
    np.testing.assert_allclose([x.min(), x.max(), y.min(), y.max()], [0.5, 1.5, 0.5, 2.5], atol=0.07)


def test_codebook_embedding_draws_the_codes_in_use(table):
    codes = torch.zeros(K, 6)
    codes[:, 0] = torch.arange(K) * 2.0  # one direction holds nearly all variance
    codes[:, 1] = torch.arange(K) % 2
    figure = figures.codebook_embedding(codes, table, torch.rand(K, 3, 8, 8))
    dots, pictures = figure.axes[:2]
    points = dots.collections[0].get_offsets()
    assert len(points) == 14 == len(pictures.artists)
    np.testing.assert_allclose(np.ptp(points[:, 0]), 26, rtol=0.01)
    np.testing.assert_array_equal(dots.collections[0].get_array(), table["lesion_share"][:14])
    assert dots.get_xlabel() and dots.get_ylabel() and "hold 100%" in title(figure)


def test_codebook_embedding_needs_three_codes():
    table = codebook_table(torch.tensor([[0, 1]]), None, K)
    with pytest.raises(ValueError, match="three codes in use, not 2"):
        figures.codebook_embedding(torch.rand(K, 4), table, torch.rand(K, 3, 2, 2))


def test_painted_patches_average_a_codes_cells(tokens):
    values = torch.rand(N, H, H)  # one grey per cell
    back = values.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    patches = figures.mean_decoded_patch(tokens, back, K)
    assert patches.shape == (K, 3, 8, 8)
    for code in range(14):
        torch.testing.assert_close(patches[code], values[tokens == code].mean().expand(3, 8, 8))
    assert patches[14:].isnan().all()


def test_code_explorer_lights_the_cells_of_its_code(images, tokens):
    vqgan = VQGAN(configure("tiny").vqgan).eval()
    figure = figures.code_explorer(13, vqgan, images, tokens, columns=3)
    assert title(figure) == "Code 13: 12.5% of all words, 100% of its cells lesion"
    lit = drawn_images(figure.axes[:1])[0]
    first = int((tokens == 13).flatten(1).sum(1).argsort(descending=True)[0])
    true = images.images[first].permute(1, 2, 0) / 255
    np.testing.assert_allclose(lit[8:24, 8:16], true[8:24, 8:16], rtol=1e-6)
    np.testing.assert_allclose(lit[:8], 0.35 * true[:8], rtol=1e-5)
    alone = vqgan.detokenize(torch.full((1, H, H), 13))[0].permute(1, 2, 0)
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), alone, rtol=1e-5)


def test_code_explorer_says_when_a_code_never_fires(images, tokens):
    vqgan = VQGAN(configure("tiny").vqgan).eval()
    figure = figures.code_explorer(15, vqgan, images, tokens)
    assert title(figure) == "Code 15 never fires on these 5 images"
    assert [len(axis.images) for axis in figure.axes] == [0] * 6 + [1] + [0] * 5
