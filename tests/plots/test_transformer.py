"""Notebook 02's figures show the data that they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from plots.conftest import H, K, S, assert_drawn, rows, shown

from tokencutseg.evaluation.inspection import Inpainting
from tokencutseg.plots import transformer as plots
from tokencutseg.plots.transformer import PATTERNS


@pytest.fixture(scope="module")
def prediction():
    table = pd.DataFrame({"pattern": ["iid"] * 3 + ["block"] * 3, "mask_ratio": [0.1, 0.5, 0.9] * 2})
    table["accuracy"] = [0.7, 0.6, 0.5, 0.5, 0.4, 0.3]
    return table.assign(low=table["accuracy"] - 0.05, high=table["accuracy"] + 0.05, chance=0.2)


def test_masking_greys_the_masked_tokens(images):
    x, generator = images.images[0] / 255, torch.Generator().manual_seed(0)
    masks = {pattern: torch.rand(2, H, H, generator=generator) < 0.5 for pattern in PATTERNS}
    drawn = shown(plots.masking(x, masks).axes)
    for pixels, mask in zip(drawn, torch.cat(list(masks.values())), strict=True):
        grey = np.kron(mask, np.ones((8, 8))).astype(bool)
        np.testing.assert_array_equal(pixels[~grey], x.permute(1, 2, 0)[~grey])
        assert np.ptp(pixels[grey]) == 0


def test_masked_gpt_curves_draw_history_and_prediction(prediction):
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.5, 2.0], "validation_loss": [2.4, 2.1]})
    history = history.assign(train_accuracy=[0.1, 0.3], validation_accuracy=[0.2, 0.25])
    loss, accuracy, by_ratio = plots.masked_gpt_curves(history, prediction, K, mask_ratio=0.6).axes
    np.testing.assert_array_equal([loss.lines[i].get_ydata() for i in (0, 1)], history.iloc[:, 1:3].T)
    np.testing.assert_array_equal([accuracy.lines[i].get_ydata() for i in (0, 1)], history.iloc[:, 3:5].T)
    assert np.log(K) in [line.get_ydata()[0] for line in loss.lines if len(line.get_ydata())]
    for line, (_, part) in zip(by_ratio.lines, prediction.groupby("pattern", sort=False), strict=False):
        np.testing.assert_allclose(line.get_xydata(), part[["mask_ratio", "accuracy"]])
    assert by_ratio.lines[-1].get_xdata()[0] == 0.6


def test_masked_gpt_curves_of_a_joint_training_have_no_accuracy(prediction):
    history = pd.DataFrame({"epoch": [1, 2], "train_masked_tokens": [2.5, 2.0], "train_dice": [0.5, 0.4]})
    loss, _ = plots.masked_gpt_curves(history, prediction, K, mask_ratio=0.15).axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [2.5, 2.0])


def test_token_inpainting_counts_the_correct_tokens(images):
    x, tokens = images.images[:2] / 255, torch.arange(16).view(1, 4, 4).repeat(2, 1, 1)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 0] = True
    filled = tokens.clone()
    filled[1, 0] = 0  # three of four masked tokens are wrong: code 0 was right
    entropy = torch.where(filled == tokens, 0.5, 2.0)
    axes = plots.token_inpainting(Inpainting(x, tokens, mask, filled, x, entropy, None), K).axes
    np.testing.assert_array_equal(np.ma.getmaskarray(axes[2].images[0].get_array()), mask[0])
    np.testing.assert_array_equal(axes[9].images[0].get_array(), filled[1])
    assert "25% masked" in axes[8].get_title() and "25% correct" in axes[9].get_title()
    np.testing.assert_array_equal(axes[11].images[0].get_array().compressed(), [0.5, 2, 2, 2])


def test_attention_maps_are_relative_to_uniform_attention(images):
    weights = torch.rand(3, 2, 2, H, H)
    weights /= weights.sum((3, 4), keepdim=True)
    axes = plots.attention_maps(weights, images.images[0], images.masks[0], torch.tensor([4, 7])).axes
    assert len(axes) == 2 * 4
    np.testing.assert_allclose(axes[7].images[0].get_array(), weights[2, :, 1].mean(0) * H * H, rtol=1e-5)
    f = S / H
    assert axes[7].lines[0].get_xydata().tolist() == [[3.5 * f - 0.5, 1.5 * f - 0.5]]


def test_linear_probe_draws_scores_with_intervals():
    table = pd.DataFrame({"features": ["colour", "tokenizer", "output"], "balanced_accuracy": [0.8, 0.85, 0.9]})
    table = table.assign(low=[0.75, 0.8, 0.88], high=[0.82, 0.9, 0.93])
    (axis,) = plots.linear_probe(table).axes
    assert_drawn(axis, table, ["balanced_accuracy", "low", "high"])
    assert rows(axis) == list(table["features"])
    assert set(axis.lines[0].get_xdata()) == {0.8}, "the line of raw colour"
