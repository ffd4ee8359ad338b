"""The figures of notebook 02: what is hidden, what the transformer fills in, where it looks, what its layers know."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from tokencutseg.config import MaskedGPTConfig
from tokencutseg.evaluation.inference import downsample_mask, upsample_nearest
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.plots.style import (
    BLUE,
    CHOSEN,
    GREY,
    HIDDEN,
    NARROW,
    REFERENCE,
    SEQUENTIAL,
    SKY,
    SMALL,
    canvas,
    interval_bars,
    legend_below,
    outline,
    percent,
    picture,
    word_map,
)

PATTERNS = {"iid": ("single words", SKY, "s"), "block": ("blobs", BLUE, "o")}
"""How a pattern of hidden words is called and drawn."""
MOST_LAYERS = 5
"""Blocks that a figure of attention shows, evenly chosen from the first to the last."""


# ---- what is hidden ------------------------------------------------------------------------------------------------


def sample_token_masks(
    config: MaskedGPTConfig, pattern: str, ratio: float, grid: tuple[int, int], n: int = 1, seed: int = 0
) -> Tensor:
    """Masks (n, H, W) bool of a pattern (`iid` or `block`) and ratio, True where a word is hidden."""
    config = dataclasses.replace(config, mask_pattern=pattern)
    generator = torch.Generator().manual_seed(seed)
    return sample_token_mask((n, *grid), config, generator, ratio).unflatten(1, grid)


def alone(hidden: Tensor) -> float:
    """Share of the hidden words (B, H, W) that have no visible word among their eight neighbours."""
    visible = F.max_pool2d((~hidden).float()[:, None], 3, 1, 1)[:, 0] > 0
    return float((hidden & ~visible).sum() / hidden.sum())


def masking(
    image: Tensor,
    grid: tuple[int, int],
    config: MaskedGPTConfig,
    ratios: tuple[float, ...] = (0.15, 0.3, 0.6, 0.9),
    seed: int = 0,
) -> Figure:
    """One image (3, S, S) with growing shares of its words hidden, one row per pattern."""
    middle = ratios[len(ratios) // 2]
    cut_off = {pattern: alone(sample_token_masks(config, pattern, middle, grid, 200, seed)) for pattern in PATTERNS}
    figure, axes = canvas(
        len(PATTERNS),
        len(ratios),
        height=1.75,
        title=(
            f"At {middle:.0%} hidden, {cut_off['block']:.0%} of words hidden in blobs have no visible neighbour, "
            f"of single ones {cut_off['iid']:.0%}"
        ),
    )
    for row, (pattern, (name, _, _)) in zip(axes, PATTERNS.items(), strict=True):
        for axis, ratio in zip(row, ratios, strict=True):
            hidden = sample_token_masks(config, pattern, ratio, grid, seed=seed)[0]
            picture(
                axis,
                _greyed(image, upsample_nearest(hidden, image.shape[-1])),
                f"{name}, {hidden.float().mean():.0%} hidden",
            )
    return figure


# ---- training and prediction ---------------------------------------------------------------------------------------


def masked_gpt_curves(history: pd.DataFrame, prediction: pd.DataFrame, codebook_size: int, mask_ratio: float) -> Figure:
    """Training curves, and the accuracy on hidden words of test images by mask ratio.

    Args:
        history: of the run that trained the transformer. Trained on its own it logs losses and accuracies, in a joint
            training only the loss.
        prediction: of `tables.masked_prediction`.
        codebook_size: size K of the codebook; ln K is the loss of a uniform guess.
        mask_ratio: the one of training; the title speaks of the nearest one measured, in blobs.
    """
    block = prediction[prediction["pattern"] == "block"]
    said = block.iloc[(block["mask_ratio"] - mask_ratio).abs().argmin()]
    has_accuracy = "train_accuracy" in history
    figure, (row,) = canvas(
        1,
        2 + has_accuracy,
        title=(
            f"{said.accuracy:.0%} of words are guessed exactly with {said.mask_ratio:.0%} hidden in blobs; the commonest "
            f"word: {said.chance:.0%}"
        ),
    )
    loss, by_ratio = row[0], row[-1]
    losses = {
        "train_masked_tokens": ("training (joint)", SKY, "s"),
        "train_loss": ("training", SKY, "s"),
        "validation_loss": ("validation", BLUE, "o"),
    }
    _lines(loss, history, losses)
    loss.axhline(np.log(codebook_size), color=GREY, ls="--", lw=1, label=f"uniform guess, ln {codebook_size}")
    loss.set(title="loss on hidden words", ylabel="cross-entropy (nats)")
    loss.set_ylim(
        0, 1.1 * max(np.log(codebook_size), *(history[column].max() for column in losses if column in history))
    )
    if has_accuracy:
        _lines(
            row[1],
            history,
            {"train_accuracy": ("training", SKY, "s"), "validation_accuracy": ("validation", BLUE, "o")},
        )
        row[1].set(
            title="accuracy on hidden words",
            ylabel="share guessed exactly",
            ylim=(0, 1.1 * history[["train_accuracy", "validation_accuracy"]].max(axis=None)),
        )
        row[1].yaxis.set_major_formatter(percent)
    for axis in row[:-1]:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for pattern, part in prediction.groupby("pattern", sort=False):
        name, colour, marker = PATTERNS[pattern]
        by_ratio.plot(part["mask_ratio"], part["accuracy"], marker, ls="-", ms=3.5, color=colour, label=name)
        by_ratio.fill_between(part["mask_ratio"], part["low"], part["high"], color=colour, alpha=0.25, linewidth=0)
    by_ratio.plot(block["mask_ratio"], block["chance"], color=GREY, ls="--", lw=1, label="commonest word")
    by_ratio.set(
        title="test images, 95% interval",
        xlabel="share of words hidden",
        ylabel="share guessed exactly",
        ylim=(0, 1.1 * prediction[["high", "chance"]].max(axis=None)),
    )
    by_ratio.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    by_ratio.yaxis.set_major_formatter(percent)
    legend_below(row)
    return figure


# ---- filling in ----------------------------------------------------------------------------------------------------


class Inpainting(NamedTuple):
    """Images whose hidden words were filled in, all at once, with the likeliest code."""

    images: Tensor
    """(N, 3, S, S) in [0, 1]."""
    tokens: Tensor
    """(N, H, W) int64, the truth."""
    hidden: Tensor
    """(N, H, W) bool."""
    filled: Tensor
    """(N, H, W) int64: the truth where it was visible, the guess where it was hidden."""
    decoded: Tensor
    """(N, 3, S, S) in [0, 1], from `filled`."""
    entropy: Tensor
    """(N, H, W), of the guessed distribution over the codes, in nats."""
    probabilities: Tensor
    """(N, H, W, K), that distribution."""


@torch.no_grad()
def inpaint(model: TokenCutSeg, images: Tensor, hidden: Tensor) -> Inpainting:
    """Hide words of images (N, 3, S, S) in [0, 1] and let the transformer fill them in. hidden: (N, H, W) bool."""
    tokens, logits = model.predict_masked(images, hidden.flatten(1))
    grid, codebook_size = tuple(tokens.shape[1:]), model.masked_gpt.codebook_size
    distribution = torch.distributions.Categorical(logits=logits[..., :codebook_size])  # without the slot of the mask
    guess = distribution.probs.argmax(-1).unflatten(1, grid)
    filled = torch.where(hidden, guess, tokens)
    return Inpainting(
        images,
        tokens,
        hidden,
        filled,
        model.vqgan.detokenize(filled),
        distribution.entropy().unflatten(1, grid),
        distribution.probs.unflatten(1, grid),
    )


def token_inpainting(result: Inpainting, codebook_size: int) -> Figure:
    """From an image to its filled-in words, one row per image; visible words have no entropy to show."""
    hidden, right = result.hidden, result.filled == result.tokens
    sure, unsure = (_mean(result.entropy[hidden & part]) for part in (right, ~right))
    figure, axes = canvas(
        len(result.images),
        6,
        height=1.25,
        title=(
            f"{right[hidden].float().mean():.0%} of {int(hidden.sum())} hidden words guessed; mean entropy {sure} nats "
            f"where right, {unsure} where wrong"
        ),
    )
    certainty = {"cmap": mpl.colormaps[SEQUENTIAL].with_extremes(bad="white"), "vmin": 0, "vmax": np.log(codebook_size)}
    for n, row in enumerate(axes):
        picture(row[0], result.images[n])
        word_map(row[1], result.tokens[n], codebook_size)
        word_map(row[2], result.tokens[n], codebook_size, f"{hidden[n].float().mean():.0%} hidden", hidden[n])
        word_map(row[3], result.filled[n], codebook_size, f"{right[n][hidden[n]].float().mean():.0%} right")
        picture(row[4], result.decoded[n])
        picture(row[5], result.entropy[n].masked_fill(~hidden[n], torch.nan), **certainty)
    for axis, name in zip(
        axes[0], ("image", "its words", "what is seen", "filled in", "decoded", "entropy"), strict=True
    ):
        axis.set_title("\n".join(filter(None, (name, axis.get_title()))), fontsize=SMALL, pad=3)
    figure.colorbar(axes[0, 5].images[0], ax=list(axes[:, 5]), label="nats, up to ln K", pad=0.02, shrink=0.9)
    return figure


def inpainting_explorer(
    model: TokenCutSeg, images: Tensor, image: int = 0, mask_ratio: float = 0.6, pattern: str = "block", seed: int = 0
) -> Figure:
    """`token_inpainting` of one of the images (N, 3, S, S), for a widget."""
    grid = (model.config.grid_size,) * 2
    hidden = sample_token_masks(model.config.masked_gpt, pattern, mask_ratio, grid, seed=seed)
    return token_inpainting(inpaint(model, images[image : image + 1], hidden), model.masked_gpt.codebook_size)


# ---- where it looks and what it knows ------------------------------------------------------------------------------


@torch.no_grad()
def attention(model: TokenCutSeg, image: Tensor, query: Tensor) -> Tensor:
    """Attention (n_layer, n_head, Q, H, W) that words `query` (Q,) of an image (3, S, S) pay to all words."""
    tokens, encoding, _ = model.encode(image[None])
    grid = tuple(tokens.shape[1:])
    states = model.masked_gpt.hidden_states(tokens.flatten(1), encoding.latents.flatten(2).transpose(1, 2), grid=grid)
    weights = [
        block.attention_weights(state, query)[0] for block, state in zip(model.masked_gpt.blocks, states, strict=False)
    ]
    return torch.stack(weights).unflatten(3, grid)


def lesion_and_skin(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Two words (2,) to ask for: the one nearest the middle of the lesion (S, S), and the one farthest from it."""
    share = downsample_mask(mask[None], grid)[0]
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in grid), indexing="ij")
    away = (y - (share * y).sum() / share.sum()) ** 2 + (x - (share * x).sum() / share.sum()) ** 2
    return torch.stack([away.flatten().argmin(), away.flatten().argmax()])


def attention_maps(model: TokenCutSeg, image: Tensor, mask: Tensor, query: Tensor) -> Figure:
    """Where words of one image look, block by block; one row per word, marked by a cross.

    image: (3, S, S) in [0, 1]. mask: (S, S). query: (Q,) positions in reading order.
    """
    weights = attention(model, image, query).mean(1)  # (n_layer, Q, H, W)
    n_layer, grid = len(weights), tuple(weights.shape[2:])
    lesion = downsample_mask(mask[None], grid)[0]
    paid = (weights[-1] * lesion).sum((1, 2))
    layers = np.unique(np.linspace(0, n_layer - 1, min(n_layer, MOST_LAYERS)).round().astype(int))
    share = " and ".join(f"{value:.0%}" for value in paid)
    figure, axes = canvas(
        len(query),
        1 + len(layers),
        height=1.6,
        title=(f"The last block pays {share} of its attention to the lesion, {lesion.mean():.0%} of the image"),
    )
    cell = image.shape[-1] // grid[0]
    for row, position, maps, value in zip(axes, query.tolist(), weights.transpose(0, 1), paid, strict=True):
        y, x = divmod(position, grid[1])
        picture(row[0], image)
        outline(row[0], mask, REFERENCE)
        row[0].plot((x + 0.5) * cell, (y + 0.5) * cell, "X", ms=8, color=CHOSEN, mec="black")
        for axis, layer in zip(row[1:], layers, strict=True):
            times = maps[layer] * maps[layer].numel()
            picture(
                axis,
                times,
                f"block {layer + 1}: to {times.max():.1f}×",
                cmap=SEQUENTIAL,
                vmin=0,
                vmax=max(float(times.max()), 2.0),
            )
            outline(axis, lesion, REFERENCE)
            axis.plot(x, y, "X", ms=5, color=CHOSEN, mec="black")
        row[0].set_title(f"{value:.0%} on the lesion", fontsize=SMALL, pad=3)
    figure.supxlabel(
        "colour: dark is no attention, bright the most in the map (times that of an even look)", fontsize=SMALL
    )
    return figure


def linear_probe(table: pd.DataFrame) -> Figure:
    """How well a straight cut through each layer's features tells lesion from skin.

    table: of `tables.linear_probes`, in the order of the layers.
    """
    best = table.loc[table["balanced_accuracy"].idxmax()]
    colour = table.set_index("features").loc["colour"]
    others = "" if best.features == "colour" else f"; from raw colour {colour.balanced_accuracy:.3f}"
    figure, ((axis,),) = canvas(
        1,
        1,
        0.7 + 0.3 * len(table),
        NARROW,
        title=(
            f"Lesion or skin is read best from {'raw colour' if not others else best.features}: balanced accuracy "
            f"{best.balanced_accuracy:.3f}{others}"
        ),
    )
    interval_bars(axis, list(table["features"]), table["balanced_accuracy"], table["low"], table["high"], SKY, "s")
    axis.axvline(colour.balanced_accuracy, color=GREY, ls="--", lw=1, zorder=0)
    axis.set(
        xlabel="balanced accuracy of a linear probe on test words,\n95% interval over images (dashed: raw colour)",
        ylabel="features, pixels to output",
    )
    return figure


def _lines(axis: mpl.axes.Axes, history: pd.DataFrame, columns: dict[str, tuple[str, str, str]]) -> None:
    for column, (name, colour, marker) in columns.items():
        if column in history:
            axis.plot(history["epoch"], history[column], marker, ls="-", ms=3.5, color=colour, label=name)


def _greyed(image: Tensor, hidden: Tensor) -> Tensor:
    grey = torch.tensor(mpl.colors.to_rgb(HIDDEN))[:, None, None]
    return torch.where(hidden, grey, image)


def _mean(values: Tensor) -> str:
    return f"{values.mean():.2f}" if len(values) else "–"
