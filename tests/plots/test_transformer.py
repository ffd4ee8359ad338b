"""The figures of notebook 02: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from tokencutseg.config import configure
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.plots import transformer as figures

K, S, GRID = 16, 32, (4, 4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TokenCutSeg(configure("tiny")).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, S, S, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prediction():
    rows = [
        {
            "pattern": pattern,
            "mask_ratio": ratio,
            "accuracy": accuracy,
            "low": accuracy - 0.05,
            "high": accuracy + 0.05,
            "chance": 0.2,
        }
        for pattern, start in (("iid", 0.7), ("block", 0.5))
        for ratio, accuracy in ((0.1, start), (0.5, start - 0.1), (0.9, start - 0.2))
    ]
    return pd.DataFrame(rows)


def title(figure):
    """In one line, however it is wrapped."""
    return " ".join(figure.get_suptitle().split())


def assert_labelled(*axes):
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in axes)


def test_alone_counts_hidden_words_without_a_visible_neighbour():
    hidden = torch.zeros(1, 5, 5, dtype=torch.bool)
    hidden[0, :3, :3] = True  # nine words, of which the four in the corner see only each other
    assert figures.alone(hidden) == pytest.approx(4 / 9)


@pytest.mark.parametrize("pattern", figures.PATTERNS)
def test_hidden_words_keep_to_the_ratio_and_the_seed(pattern):
    config = configure("tiny").masked_gpt
    hidden = figures.sample_token_masks(config, pattern, 0.3, (12, 12), 50, seed=3)
    assert hidden.shape == (50, 12, 12)
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(hidden, figures.sample_token_masks(config, pattern, 0.3, (12, 12), 50, seed=3))


def test_masking_greys_the_hidden_cells(images):
    config = configure("tiny").masked_gpt
    figure = figures.masking(images[0], GRID, config, ratios=(0.2, 0.6))
    assert isinstance(figure, Figure) and "At 60% hidden" in title(figure)
    hidden = figures.sample_token_masks(config, "block", 0.6, GRID)[0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    shown = np.asarray(figure.axes[3].images[0].get_array())
    np.testing.assert_array_equal(shown[~hidden], images[0].permute(1, 2, 0)[~hidden])
    assert np.ptp(shown[hidden]) == 0


def test_masked_gpt_curves_draw_history_and_prediction(prediction):
    history = pd.DataFrame(
        {
            "epoch": [1, 2],
            "train_loss": [2.5, 2.0],
            "validation_loss": [2.4, 2.1],
            "train_accuracy": [0.1, 0.3],
            "validation_accuracy": [0.2, 0.25],
        }
    )
    figure = figures.masked_gpt_curves(history, prediction, K, mask_ratio=0.6)
    loss, accuracy, by_ratio = figure.axes
    assert_labelled(loss, accuracy, by_ratio)
    assert title(figure).startswith("40% of words are guessed exactly with 50% hidden in blobs")
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), history["train_loss"])
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), history["validation_loss"])
    assert loss.lines[2].get_ydata()[0] == pytest.approx(np.log(K))
    np.testing.assert_array_equal(accuracy.lines[1].get_ydata(), history["validation_accuracy"])
    np.testing.assert_allclose(by_ratio.lines[0].get_ydata(), [0.7, 0.6, 0.5])
    np.testing.assert_array_equal(by_ratio.lines[1].get_xdata(), [0.1, 0.5, 0.9])
    band = by_ratio.collections[1].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.25) and band[:, 1].max() == pytest.approx(0.55)


def test_masked_gpt_curves_of_a_joint_training_have_no_accuracy(prediction):
    history = pd.DataFrame({"epoch": [1, 2], "train_masked_tokens": [2.5, 2.0], "train_dice": [0.5, 0.4]})
    loss, by_ratio = figures.masked_gpt_curves(history, prediction, K, mask_ratio=0.15).axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [2.5, 2.0])
    assert_labelled(loss, by_ratio)


def test_inpaint_fills_hidden_words_only(model, images):
    hidden = figures.sample_token_masks(model.config.masked_gpt, "block", 0.5, GRID, 2)
    result = figures.inpaint(model, images, hidden)
    tokens, _ = model.encode_to_tokens(images)
    assert torch.equal(result.tokens, tokens)
    assert torch.equal(result.filled[~hidden], tokens[~hidden])
    cell = images.shape[-1] // GRID[0]
    blanked = model.vqgan.normalise(images) * ~hidden.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, None]
    features = model.transformer_features(tokens, model.encoder(blanked), hidden.flatten(1))
    p = model.masked_gpt.lm_head(features)[..., :K].double().softmax(-1)
    assert torch.equal(result.filled[hidden], p.argmax(-1).view(2, *GRID)[hidden])
    torch.testing.assert_close(result.entropy.double(), -(p * p.log()).sum(-1).view(2, *GRID), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.decoded, model.vqgan.detokenize(result.filled))


def test_token_inpainting_counts_the_right_words(images):
    tokens = torch.arange(16).view(1, 4, 4).repeat(2, 1, 1)
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[:, 0] = True
    filled = tokens.clone()
    filled[1, 0] = 0  # three of eight hidden words wrong: code 0 was right
    entropy = torch.where(filled == tokens, 0.5, 2.0)
    figure = figures.token_inpainting(figures.Inpainting(images, tokens, hidden, filled, images, entropy, None), K)
    assert title(figure) == "62% of 8 hidden words guessed; mean entropy 0.50 nats where right, 2.00 where wrong"
    seen = figure.axes[2].images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(seen), hidden[0])
    np.testing.assert_array_equal(figure.axes[9].images[0].get_array(), filled[1])
    assert "25% right" in figure.axes[9].get_title()
    np.testing.assert_array_equal(figure.axes[11].images[0].get_array().compressed(), [0.5, 2, 2, 2])


def test_inpainting_explorer_is_one_row(model, images):
    figure = figures.inpainting_explorer(model, images, image=1, mask_ratio=0.25, pattern="block")
    assert "of 4 hidden words" in title(figure)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[1].permute(1, 2, 0))


def test_attention_is_a_distribution_over_the_words(model, images):
    weights = figures.attention(model, images[0], torch.tensor([0, 7, 15])).mean(1)
    assert weights.shape == (2, 3, *GRID)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 3))


def test_lesion_and_skin_choose_the_middle_and_the_far_corner():
    mask = torch.zeros(S, S, dtype=torch.uint8)
    mask[:8, 8:16] = 1  # the cell (0, 1)
    assert figures.lesion_and_skin(mask, GRID).tolist() == [1, 15]


def test_attention_maps_state_the_share_on_the_lesion(model, images):
    mask = torch.zeros(S, S, dtype=torch.uint8)
    mask[:, :16] = 1
    query = torch.tensor([4, 7])
    figure = figures.attention_maps(model, images[0], mask, query)
    weights = figures.attention(model, images[0], query).mean(1)
    paid = [f"{weights[-1, q, :, :2].sum():.0%}" for q in (0, 1)]
    assert title(figure).startswith(f"The last block pays {paid[0]} and {paid[1]} of its attention to the lesion, 50% ")
    assert len(figure.axes) == 2 * 3
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), weights[1, 0] * 16, rtol=1e-5)


def test_linear_probe_draws_scores_with_intervals():
    table = pd.DataFrame(
        {
            "features": ["colour", "tokenizer", "output"],
            "balanced_accuracy": [0.8, 0.85, 0.9],
            "low": [0.75, 0.8, 0.88],
            "high": [0.82, 0.9, 0.93],
        }
    )
    figure = figures.linear_probe(table)
    (axis,) = figure.axes
    assert "read best from output: balanced accuracy 0.900; from raw colour 0.800" in title(figure)
    assert axis.get_xlabel() and axis.get_ylabel()
    intervals, points = axis.collections
    np.testing.assert_array_equal(points.get_offsets(), np.column_stack([table["balanced_accuracy"], [2, 1, 0]]))
    spans = [segment[:, 0].tolist() for segment in intervals.get_segments()]
    assert spans == table[["low", "high"]].to_numpy().tolist()
    assert [label.get_text() for label in axis.get_yticklabels()] == list(table["features"])
    assert set(axis.lines[0].get_xdata()) == {0.8}, "the line of raw colour"


def test_linear_probe_says_when_no_layer_beats_raw_colour():
    table = pd.DataFrame({"features": ["colour", "output"], "balanced_accuracy": [0.8, 0.7], "low": 0.6, "high": 0.9})
    assert title(figures.linear_probe(table)) == "Lesion or skin is read best from raw colour: balanced accuracy 0.800"
