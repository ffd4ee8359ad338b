"""Figures of notebook 01: the data, the tokenizer's training, and its codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.decomposition import PCA
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.plots.charts import curves
from tokencutseg.plots.style import (
    BLUE,
    GREY,
    HIGHLIGHT,
    LESION,
    REFERENCE,
    SEQUENTIAL,
    SKY,
    TERMS,
    label_row,
    legend_below,
    make_figure,
    outline,
    percent,
    show_image,
    show_token_map,
)


def dataset_preview(sets: Sequence[ImageSet], columns: int = 7) -> Figure:
    """Evenly spaced images of each set, one row per set, with the outline of the mask where there is one."""
    figure, axes = make_figure(len(sets), columns, 1.1, title="Example images of each set, lesion masks outlined")
    for row, images in zip(axes, sets, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, n in zip(row, np.unique(np.linspace(0, len(images) - 1, columns).astype(int)), strict=False):
            show_image(axis, images.images[n])
            if images.masks is not None:
                outline(axis, images.masks[n], REFERENCE)
        label_row(row[0], f"{images.dataset}\n{images.split}\n{len(images)} images")
    return figure


def vqgan_curves(history: pd.DataFrame, codebook_size: int) -> Figure:
    """Loss terms in training, the error on validation images, and the use of the codebook's K codes, by epoch.

    history: of the tokenizer's run.
    """
    title = "Training of the tokenizer: losses, reconstruction error and codebook use by epoch"
    figure, ((losses, error, codes),) = make_figure(1, 3, 2.9, title=title)
    terms = ("reconstruction", "perceptual", "commitment", "discriminator")
    curves(losses, history, {f"train_{term}": term for term in terms}, TERMS)
    losses.set(title="training: unweighted losses", ylabel="loss (log scale)", yscale="log")
    curves(error, history, {"validation_l1": "validation error"}, [BLUE])
    error.set(title="validation: error", ylabel="mean |x − x̂|, RGB in [0, 1]")
    error.set_ylim(0, 1.1 * history["validation_l1"].max())
    error.get_legend().remove()
    use = history.assign(used=history["validation_usage"] * codebook_size)
    curves(codes, use, {"used": "codes used", "validation_perplexity": "perplexity"}, [BLUE, SKY])
    codes.axhline(codebook_size, color=GREY, ls="--", lw=1, label=f"K = {codebook_size}")
    codes.set(title="validation: codebook", ylabel="codes", ylim=(0, 1.1 * codebook_size))
    for axis in (losses, codes):
        legend_below(axis)
    return figure


def reconstructions(images: Tensor, back: Tensor) -> Figure:
    """Images, their reconstructions with the PSNR of each, and the absolute error.

    images, back: (N, 3, S, S) RGB in [0, 1], one column per image.
    """
    psnr = -10 * (images - back).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
    error = (images - back).abs().mean(1)
    limit = max(float(np.percentile(error.numpy(), 99.5)), 1e-3)
    figure, axes = make_figure(3, len(images), 1.2, title="Images, reconstructions from tokens, and absolute error")
    for n, column in enumerate(axes.T):
        show_image(column[0], images[n])
        show_image(column[1], back[n], f"{psnr[n]:.1f} dB")
        show_image(column[2], error[n], cmap=SEQUENTIAL, vmin=0, vmax=limit)
    for axis, name in zip(axes[:, 0], ("image x", "decoded x̂", "|x − x̂|"), strict=True):
        label_row(axis, name)
    figure.colorbar(axes[2, -1].images[0], ax=list(axes[2]), label="RGB in [0, 1]", extend="max", aspect=10, pad=0.01)
    return figure


def codebook_usage(table: pd.DataFrame) -> Figure:
    """How often each code is assigned, most frequent first, and how much of the tokens lies on codes of a lesion share.

    table: of `tables.codebook_usage`.
    """
    used = table[table["count"] > 0].sort_values("share", ascending=False, ignore_index=True)
    title = f"Use of the {len(table)} codes on test images, and the share of each code's tokens that is lesion"
    figure, ((shares, lesion),) = make_figure(1, 2, 2.9, title=title, width_ratios=(3, 2))
    colours = LESION(used["lesion_share"].fillna(0.5))
    shares.bar(used.index + 1, used["share"], color=colours, width=1, edgecolor=GREY, linewidth=0.2)
    shares.axhline(1 / len(table), color=GREY, ls="--", lw=1, label="uniform codebook, 1/K")
    shares.set(xlabel="code, by rank of use", ylabel="share of all tokens", xlim=(0.3, len(table) + 0.7))
    shares.set_title("use of each code (colours: right)")
    shares.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    sns.histplot(used, x="lesion_share", weights="share", bins=10, binrange=(0, 1), edgecolor=GREY, ax=lesion)
    for bar in lesion.patches:
        bar.set(facecolor=LESION(bar.get_x() + 0.05), alpha=1)
    lesion.set(title="lesion purity of the codes", xlabel="share of a code's tokens that is lesion", xlim=(0, 1))
    lesion.set_ylabel("share of all tokens")
    lesion.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in (shares, lesion):
        axis.yaxis.set_major_formatter(percent)
    legend_below(shares)
    return figure


def token_maps(images: Tensor, tokens: Tensor, back: Tensor, masks: Tensor, lesion_share: np.ndarray) -> Figure:
    """Image, tokens, reconstruction, and the lesion share of each token's code; one row per image.

    images, back: (N, 3, S, S) RGB in [0, 1]. tokens: (N, H, W). masks: (N, S, S) of {0, 1}. lesion_share: (K,), NaN
    for a code that is never used.
    """
    (H, W), S, K = tokens.shape[1:], images.shape[-1], len(lesion_share)
    title = f"{S} × {S} pixels as {H} × {W} tokens of a codebook of {K}"
    figure, axes = make_figure(len(images), 4, 1.75, title=title)
    for n, row in enumerate(axes):
        names = ("image, mask outlined", "tokens, a colour per code", "decoded", "lesion share of the code")
        names = names if n == 0 else [""] * 4
        show_image(row[0], images[n], names[0])
        show_token_map(row[1], tokens[n], K, names[1])
        show_image(row[2], back[n], names[2])
        show_image(row[3], lesion_share[tokens[n].numpy()], names[3], S, cmap=LESION, vmin=0, vmax=1)
        outline(row[0], masks[n], REFERENCE)
        outline(row[3], masks[n], REFERENCE)
    bar = figure.colorbar(axes[0, 3].images[0], ax=list(axes[:, 3]), label="lesion share of the code", pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def codebook_embedding(codes: Tensor, table: pd.DataFrame, patches: Tensor) -> Figure:
    """The codes in use in the plane of their two main principal components, as dots and as what they decode to.

    Args:
        codes: (K, D), the codebook.
        table: of `tables.codebook_usage`.
        patches: (K, 3, f, f) in [0, 1], of `mean_decoded_patch`.

    Raises:
        ValueError: with fewer than three codes in use.
    """
    used = np.flatnonzero(table["count"] > 0)
    if len(used) < 3:
        raise ValueError(f"a map of the codebook needs three codes in use, not {len(used)}")
    pca = PCA(2).fit(codes[used].numpy())
    points, explained = pca.transform(codes[used].numpy()), pca.explained_variance_ratio_
    lesion, share = table["lesion_share"].to_numpy()[used], table["share"].to_numpy()[used]
    title = f"The {len(used)} codes in use on their first two principal components"
    figure, ((dots, pictures),) = make_figure(1, 2, 3.7, title=title, sharex=True, sharey=True)
    style = {"cmap": LESION, "vmin": 0, "vmax": 1, "edgecolors": GREY, "linewidths": 0.5}
    drawn = dots.scatter(*points.T, s=15 + 1200 * share, c=lesion, **style)
    side = 14 if len(used) <= 100 else 9
    for point, patch in zip(points, patches[used], strict=True):
        thumbnail = OffsetImage(patch.permute(1, 2, 0).numpy(), zoom=side / patch.shape[-1])
        pictures.add_artist(AnnotationBbox(thumbnail, point, frameon=False))
    for axis, name in ((dots, "one dot per code, area by use"), (pictures, "mean decoded patch of each code")):
        axis.set(title=name, xlabel=f"component 1 ({explained[0]:.0%} of variance)")
        axis.margins(0.08)
    dots.set_ylabel(f"component 2 ({explained[1]:.0%} of variance)")
    bar = figure.colorbar(drawn, ax=dots, label="lesion share of the code", location="bottom", aspect=30)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def code_explorer(
    code: int, table: pd.DataFrame, images: ImageSet, tokens: Tensor, back: Tensor, alone: Tensor, columns: int = 6
) -> Figure:
    """One code: the images where it is assigned most, its tokens highlighted; then what it decodes to.

    Args:
        code: below K.
        table: of `tables.codebook_usage`.
        images: a set with masks.
        tokens: (N, H, W), of its images.
        back: (N, 3, S, S) in [0, 1], decoded from the tokens.
        alone: (3, S, S) in [0, 1], decoded from this code everywhere.
        columns: images at most.
    """
    row, assigned = table.set_index("code").loc[code], tokens == code
    S, f = back.shape[-1], back.shape[-1] // tokens.shape[-1]
    title = f"Code {code}: {row['share']:.1%} of all tokens, {row['lesion_share']:.0%} of them lesion"
    title = title if row["count"] else f"Code {code} is assigned to no token of these {len(images)} images"
    figure, axes = make_figure(2, columns, 1.35, title=title)
    for axis in axes.flat:
        axis.set_axis_off()
    show_image(axes[1, 0], alone, "this code alone")
    counts = assigned.flatten(1).sum(1)
    for k, n in enumerate(counts.argsort(descending=True, stable=True)[: min(columns, int((counts > 0).sum()))]):
        lit = assigned[n].repeat_interleave(f, 0).repeat_interleave(f, 1)
        faded = images.images[n] / 255 * (0.35 + 0.65 * lit)
        show_image(axes[0, k], faded, f"{counts[n]} of {assigned[n].numel()} tokens")
        outline(axes[0, k], lit, HIGHLIGHT)
        outline(axes[0, k], images.masks[n], REFERENCE)
        if k + 1 < columns:  # one of its tokens with the eight around it
            where = assigned[n].nonzero()
            y, x = (where[len(where) // 2] * f).tolist()
            top, left = (min(max(at - f, 0), S - 3 * f) for at in (y, x))
            show_image(axes[1, k + 1], back[n][:, top : top + 3 * f, left : left + 3 * f], "decoded, framed")
            frame = {"fill": False, "edgecolor": HIGHLIGHT, "linewidth": 1.4}
            axes[1, k + 1].add_patch(Rectangle((x - left - 0.5, y - top - 0.5), f, f, **frame))
    return figure
