"""The figures of notebook 01: the data, the tokenizer's training, and what its words are."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.decomposition import PCA
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.source import DataSource
from tokencutseg.evaluation.inference import downsample_mask, upsample_nearest
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots.style import (
    BLUE,
    CHOSEN,
    DIVERGING,
    GREY,
    REFERENCE,
    SEQUENTIAL,
    SKY,
    SMALL,
    TERMS,
    canvas,
    legend_below,
    outline,
    percent,
    picture,
    row_name,
    word_map,
)

LESION = mpl.colormaps[DIVERGING].reversed()
"""From skin (purple, 0) to lesion (orange, 1), wherever a share of lesion is drawn."""


def training_sets(source: DataSource) -> list[ImageSet]:
    """Every split that a stage may learn from: with masks first, then without."""
    return [
        source.load(dataset, split)
        for split in ("train", "unlabelled")
        for dataset in source.datasets
        if source.has(dataset, split)
    ]


def dataset_preview(sets: Sequence[ImageSet], columns: int = 7) -> Figure:
    """Evenly spaced images of each set, one row per set, with the border of the mask where there is one."""
    shares = np.concatenate([s.masks.flatten(1).float().mean(1).numpy() for s in sets if s.masks is not None])
    low, middle, high = np.percentile(shares, [5, 50, 95])
    figure, axes = canvas(
        len(sets),
        columns,
        height=1.1,
        title=f"The median lesion covers {middle:.0%} of its image, nine of ten cover {low:.0%} to {high:.0%}",
    )
    for row, images in zip(axes, sets, strict=True):
        chosen = np.unique(np.linspace(0, len(images) - 1, columns).astype(int))
        for axis in row:
            axis.set_axis_off()
        for axis, index in zip(row, chosen, strict=False):
            picture(axis, images.images[index])
            if images.masks is not None:
                outline(axis, images.masks[index], REFERENCE)
        row_name(row[0], f"{images.dataset}\n{images.split}\n{len(images)} images")
    return figure


def vqgan_curves(history: pd.DataFrame, codebook_size: int) -> Figure:
    """Loss terms in training, the error on validation images, and the life of the codebook, by epoch.

    history: the tokenizer run's. codebook_size: size K of the codebook.
    """
    first, last = history.iloc[0], history.iloc[-1]
    figure, (row,) = canvas(
        1,
        3,
        title=f"Validation error {first.validation_l1:.3f} → {last.validation_l1:.3f} in "
        f"{len(history)} epochs; {last.validation_usage:.0%} of {codebook_size} codes in use",
    )
    losses, error, codes = row
    names = ("reconstruction", "perceptual", "commitment", "discriminator")
    for name, colour, marker in zip(names, TERMS, "osD^", strict=False):
        if f"train_{name}" in history:
            losses.plot(history["epoch"], history[f"train_{name}"], marker, ls="-", ms=3.5, color=colour, label=name)
    losses.set(title="training: unweighted losses", ylabel="loss (log scale)", yscale="log")
    error.plot(history["epoch"], history["validation_l1"], "o-", ms=3.5, color=BLUE, label="validation error")
    error.set(
        title="validation: error", ylabel="mean |x − x̂|, RGB in [0, 1]", ylim=(0, 1.1 * history["validation_l1"].max())
    )
    codes.plot(
        history["epoch"], history["validation_usage"] * codebook_size, "o-", ms=3.5, color=BLUE, label="codes used"
    )
    codes.plot(history["epoch"], history["validation_perplexity"], "s-", ms=3.5, color=SKY, label="perplexity")
    codes.axhline(codebook_size, color=GREY, ls="--", lw=1, label=f"K = {codebook_size}")
    codes.set(title="validation: codebook", ylabel="codes", ylim=(0, 1.1 * codebook_size))
    for axis in row:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_below((losses, codes))
    return figure


def reconstructions(images: Tensor, back: Tensor) -> Figure:
    """Images, what the decoder makes of their words, and the difference.

    images, back: (N, 3, S, S) RGB in [0, 1], one column per image.
    """
    mse = (images - back).square().mean((1, 2, 3))
    psnr = -10 * mse.clamp(min=1e-10).log10()
    error = (images - back).abs().mean(1)
    limit = max(float(np.percentile(error.numpy(), 99.5)), 1e-3)
    figure, axes = canvas(
        3,
        len(images),
        height=1.2,
        title=f"There and back: PSNR {psnr.min():.1f} to "
        f"{psnr.max():.1f} dB on the images shown, mean error {error.mean():.3f}",
    )
    for n, column in enumerate(axes.T):
        picture(column[0], images[n])
        picture(column[1], back[n], f"{psnr[n]:.1f} dB")
        picture(column[2], error[n], cmap=SEQUENTIAL, vmin=0, vmax=limit)
    for axis, name in zip(axes[:, 0], ("image x", "decoded x̂", "|x − x̂|"), strict=True):
        row_name(axis, name)
    figure.colorbar(axes[2, -1].images[0], ax=list(axes[2]), label="RGB in [0, 1]", extend="max", aspect=10, pad=0.01)
    return figure


def codebook_usage(table: pd.DataFrame) -> Figure:
    """How often each code fires, most frequent first, and how lesion-bound the codes are.

    table: of `tables.codebook_usage`.
    """
    ranked = table.sort_values("share", ascending=False, ignore_index=True)
    used = ranked[ranked["count"] > 0]
    perplexity = np.exp(-(used["share"] * np.log(used["share"])).sum())
    figure, ((shares, lesion),) = canvas(
        1,
        2,
        height=2.8,
        width_ratios=(3, 2),
        title=(
            f"{len(used) / len(table):.0%} of {len(table)} codes are used, as evenly as {perplexity:.0f} equal ones; "
            f"{(used['lesion_share'] > 0.5).sum()} fire mostly on lesions"
        ),
    )
    colours = LESION(used["lesion_share"].fillna(0.5))
    shares.bar(range(1, len(used) + 1), used["share"], color=colours, width=1.0, edgecolor=colours, linewidth=0.4)
    shares.stairs(used["share"], np.arange(len(used) + 1) + 0.5, color=GREY, linewidth=0.6)
    shares.axhline(1 / len(table), color=GREY, ls="--", lw=1, label="an even codebook, 1/K")
    shares.set(
        title="use of each code, coloured as on the right",
        xlabel="code, by rank of use",
        ylabel="share of all words",
        xlim=(0.3, len(table) + 0.7),
    )
    shares.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    shares.yaxis.set_major_formatter(percent)
    edges = np.linspace(0, 1, 11)
    weights, _ = np.histogram(used["lesion_share"], edges, weights=used["share"])
    lesion.bar(
        edges[:-1], weights, width=0.1, align="edge", color=LESION(edges[:-1] + 0.05), edgecolor=GREY, linewidth=0.3
    )
    lesion.set(
        title="how pure the words are",
        xlabel="share of a code's cells that is lesion",
        ylabel="share of all words",
        xlim=(0, 1),
    )
    lesion.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lesion.yaxis.set_major_formatter(percent)
    legend_below(shares)
    return figure


def token_maps(images: Tensor, tokens: Tensor, back: Tensor, masks: Tensor, lesion_share: np.ndarray) -> Figure:
    """Image, words, decoded words, and how lesion-bound each word is; one row per image.

    images, back: (N, 3, S, S) RGB in [0, 1]. tokens: (N, H, W). masks: (N, S, S) of {0, 1}. lesion_share: (K,), NaN
    for a code that is never used.
    """
    H, W = tokens.shape[1:]
    S, codebook_size = images.shape[-1], len(lesion_share)
    distinct = [len(map_.unique()) for map_ in tokens]
    span = f"{min(distinct)} to {max(distinct)}" if len(set(distinct)) > 1 else f"{distinct[0]}"
    figure, axes = canvas(
        len(images),
        4,
        height=1.75,
        title=f"{S}×{S} pixels become {H}×{W} words, {span} different ones of {codebook_size} in an image",
    )
    for n, row in enumerate(axes):
        picture(row[0], images[n])
        word_map(row[1], tokens[n], codebook_size)
        picture(row[2], back[n])
        picture(row[3], lesion_share[tokens[n].numpy()], cmap=LESION, vmin=0, vmax=1)
        outline(row[0], masks[n], REFERENCE)
        outline(row[3], masks[n], REFERENCE, _centres(S, W), _centres(S, H))  # pixels over a map that counts cells
    for axis, name in zip(
        axes[0], ("image, mask outlined", "words, one colour each", "decoded words", "how lesion-bound"), strict=True
    ):
        axis.set_title(name, fontsize=SMALL, pad=3)
    bar = figure.colorbar(axes[0, 3].images[0], ax=list(axes[:, 3]), label="lesion share of the code", pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def codebook_embedding(codes: Tensor, table: pd.DataFrame, patches: Tensor) -> Figure:
    """The codes that are used in the plane of their two largest principal components.

    Left as dots (area: use; colour: share of lesion), right as the pictures that they paint on average.

    Args:
        codes: (K, D), the codebook.
        table: of `tables.codebook_usage`.
        patches: (K, 3, f, f) in [0, 1], of `mean_decoded_patch`.
    """
    used = np.flatnonzero(table["count"].to_numpy() > 0)
    if len(used) < 3:
        raise ValueError(f"a map of the codebook needs three codes in use, not {len(used)}")
    pca = PCA(2).fit(codes[used].numpy())
    points, explained = pca.transform(codes[used].numpy()), pca.explained_variance_ratio_
    lesion, share = table["lesion_share"].to_numpy()[used], table["share"].to_numpy()[used]
    figure, ((dots, pictures),) = canvas(
        1,
        2,
        height=3.7,
        sharex=True,
        sharey=True,
        title=(
            f"Two components hold {explained.sum():.0%} of the codes' variance; the first and lesion share: "
            f"|r| = {abs(np.corrcoef(points[:, 0], lesion)[0, 1]):.2f}"
        ),
    )
    drawn = dots.scatter(
        *points.T, s=15 + 1200 * share, c=lesion, cmap=LESION, vmin=0, vmax=1, edgecolors=GREY, linewidths=0.5
    )
    pictures.scatter(*points.T, s=1, alpha=0)
    side = 14 if len(used) <= 100 else 9
    for point, patch in zip(points, patches[used], strict=True):
        thumbnail = OffsetImage(patch.permute(1, 2, 0).numpy(), zoom=side / patch.shape[-1])
        pictures.add_artist(AnnotationBbox(thumbnail, point, frameon=False))
    for axis, name in ((dots, "one dot per code, area by use"), (pictures, "what each code paints on average")):
        axis.set(title=name, xlabel=f"component 1 ({explained[0]:.0%} of variance)")
        axis.margins(0.08)
    dots.set_ylabel(f"component 2 ({explained[1]:.0%} of variance)")
    bar = figure.colorbar(drawn, ax=dots, label="lesion share of the code", location="bottom", aspect=30)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def mean_decoded_patch(tokens: Tensor, back: Tensor, codebook_size: int) -> Tensor:
    """What each code paints on average: (K, 3, f, f), with f pixels to a cell; NaN for a code that is never used.

    tokens: (N, H, W) int64. back: (N, 3, S, S), the images decoded from them.
    """
    cells = _cells(back, tuple(tokens.shape[1:]))  # (N·H·W, 3, f, f)
    sums = torch.zeros(codebook_size, *cells.shape[1:]).index_add_(0, tokens.flatten(), cells)
    return sums / torch.bincount(tokens.flatten(), minlength=codebook_size)[:, None, None, None]


@torch.no_grad()
def code_explorer(code: int, vqgan: VQGAN, images: ImageSet, tokens: Tensor, columns: int = 6) -> Figure:
    """One code: the images on which it fires most, its cells lit; then what it decodes to.

    code: below K. images: a set with masks. tokens: (N, H, W), its words.
    """
    H, W = grid = tuple(tokens.shape[1:])
    cell = images.images.shape[-1] // H
    fires = tokens == code
    count = int(fires.sum())
    lesion = downsample_mask(images.masks, grid)[fires].mean()
    title = (
        f"Code {code} never fires on these {len(images)} images"
        if count == 0
        else (f"Code {code}: {count / tokens.numel():.1%} of all words, {lesion:.0%} of its cells lesion")
    )
    figure, axes = canvas(2, columns, height=1.35, title=title)
    for axis in axes.flat:
        axis.set_axis_off()
    order = fires.flatten(1).sum(1).argsort(descending=True)[:columns]
    firing = [int(n) for n in order if fires[n].any()]
    for axis, n in zip(axes[0], firing, strict=False):
        lit = upsample_nearest(fires[n], images.images.shape[-1])
        picture(axis, images.images[n] / 255 * torch.where(lit, 1.0, 0.35), f"{int(fires[n].sum())} of {H * W} cells")
        outline(axis, lit, CHOSEN)
        outline(axis, images.masks[n], REFERENCE)
    alone = vqgan.detokenize(torch.full((1, H, W), code))[0]
    picture(axes[1, 0], alone, "this code alone")
    for axis, n in zip(axes[1, 1:], firing, strict=False):
        y, x = fires[n].nonzero()[len(fires[n].nonzero()) // 2].tolist()
        _close_up(axis, vqgan.detokenize(tokens[n : n + 1])[0], y, x, cell)
    return figure


def _close_up(axis: Axes, back: Tensor, y: int, x: int, cell: int) -> None:
    """A decoded cell with its neighbours, framed."""
    S = back.shape[-1]
    top, left = (min(max((at - 1) * cell, 0), S - 3 * cell) for at in (y, x))
    picture(axis, back[:, top : top + 3 * cell, left : left + 3 * cell], "decoded, framed")
    axis.add_patch(
        mpl.patches.Rectangle(
            (x * cell - left - 0.5, y * cell - top - 0.5), cell, cell, fill=False, edgecolor=CHOSEN, linewidth=1.4
        )
    )


def _cells(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images (N, 3, S, S) cut into the cells of their words, in the words' order: (N·H·W, 3, f, f)."""
    f = images.shape[-1] // grid[1]
    return images.unfold(2, f, f).unfold(3, f, f).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, f, f)


def _centres(pixels: int, cells: int) -> np.ndarray:
    """Where the centres of a row of pixels lie on an axis that counts cells."""
    return (np.arange(pixels) + 0.5) * cells / pixels - 0.5
