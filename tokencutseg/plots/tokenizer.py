"""Figures of notebook 01: the data, the tokenizer's training, and its codebook."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.decomposition import PCA
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.inference import upsample_nearest
from tokencutseg.plots import style as st
from tokencutseg.plots.charts import curves, from_zero


def dataset_preview(sets: Sequence[ImageSet], columns: int = 7) -> Figure:
    """Evenly spaced images of each set, one row per set, with the outline of the mask where there is one."""
    figure, axes = st.make_figure(len(sets), columns, 1.1, title="Example images of each set, lesion masks outlined")
    for row, images in zip(axes, sets, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, n in zip(row, np.unique(np.linspace(0, len(images) - 1, columns).astype(int)), strict=False):
            st.show_image(axis, images.images[n])
            if images.masks is not None:
                st.outline(axis, images.masks[n], st.REFERENCE)
        st.label_row(row[0], f"{images.dataset}\n{images.split}\n{len(images)} images")
    return figure


def vqgan_curves(history: pd.DataFrame, codebook_size: int) -> Figure:
    """Loss terms in training, the error on validation images, and the use of the codebook's K codes, by epoch."""
    title = "Training of the tokenizer: losses, error and codebook use by epoch"
    figure, ((losses, error, codes),) = st.make_figure(1, 3, 2.9, title=title)
    terms = zip(("reconstruction", "perceptual", "commitment", "discriminator"), st.TERMS, strict=False)
    curves(losses, history, {f"train_{term}": (term, colour) for term, colour in terms})
    losses.set(title="training: unweighted losses", ylabel="loss (log scale)", yscale="log")
    curves(error, history, {"validation_l1": ("validation error", st.BLUE)})
    error.set(title="validation: error", ylabel="mean |x − x̂|, RGB in [0, 1]")
    error.get_legend().remove()
    use = history.assign(used=history["validation_usage"] * codebook_size)
    curves(codes, use, {"used": ("codes used", st.BLUE), "validation_perplexity": ("perplexity", st.SKY)})
    codes.axhline(codebook_size, color=st.GREY, ls="--", lw=1, label=f"K = {codebook_size}")
    codes.set(title="validation: codebook", ylabel="codes")
    for axis in (error, codes):
        from_zero(axis)
    for axis in (losses, codes):
        st.legend_below(axis)
    return figure


def reconstructions(images: Tensor, back: Tensor) -> Figure:
    """Images, their reconstructions with the PSNR of each, and the absolute error; both (N, 3, S, S) in [0, 1]."""
    psnr = -10 * (images - back).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
    error = (images - back).abs().mean(1)
    limit = max(float(np.percentile(error.numpy(), 99.5)), 1e-3)
    figure, axes = st.make_figure(3, len(images), 1.2, title="Images, reconstructions from tokens, and absolute error")
    for n, column in enumerate(axes.T):
        st.show_image(column[0], images[n])
        st.show_image(column[1], back[n], f"{psnr[n]:.1f} dB")
        st.show_image(column[2], error[n], cmap=st.SEQUENTIAL, vmin=0, vmax=limit)
    for axis, name in zip(axes[:, 0], ("image x", "decoded x̂", "|x − x̂|"), strict=True):
        st.label_row(axis, name)
    figure.colorbar(axes[2, -1].images[0], ax=list(axes[2]), label="RGB in [0, 1]", extend="max", aspect=10, pad=0.01)
    return figure


def codebook_usage(table: pd.DataFrame) -> Figure:
    """How often each code is assigned, and the tokens by the lesion share of their code; of `tables.codebook_usage`."""
    used = table[table["count"] > 0].sort_values("share", ascending=False, ignore_index=True)
    title = f"Use of the {len(table)} codes on test images, and their lesion shares"
    figure, ((shares, lesion),) = st.make_figure(1, 2, 2.9, title=title, width_ratios=(3, 2))
    colours = st.LESION(used["lesion_share"].fillna(0.5))
    shares.bar(used.index + 1, used["share"], color=colours, width=1, edgecolor=st.GREY, linewidth=0.2)
    shares.axhline(1 / len(table), color=st.GREY, ls="--", lw=1, label="uniform codebook, 1/K")
    shares.set(xlabel="code, by rank of use", ylabel="share of all tokens", xlim=(0.3, len(table) + 0.7))
    shares.set_title("use of each code (colours: right)")
    shares.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    sns.histplot(used, x="lesion_share", weights="share", bins=10, binrange=(0, 1), edgecolor=st.GREY, ax=lesion)
    for bar in lesion.patches:
        bar.set(facecolor=st.LESION(bar.get_x() + 0.05), alpha=1)
    lesion.set(title="lesion purity of the codes", xlabel="share of a code's tokens that is lesion", xlim=(0, 1))
    lesion.set_ylabel("share of all tokens")
    lesion.xaxis.set_major_formatter(PercentFormatter(1))
    for axis in (shares, lesion):
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    st.legend_below(shares)
    return figure


def token_maps(images: Tensor, tokens: Tensor, back: Tensor, masks: Tensor, lesion_share: np.ndarray) -> Figure:
    """Image, tokens, reconstruction, and the lesion share of each token's code; one row per image.

    images, back: (N, 3, S, S) RGB in [0, 1]. tokens: (N, H, W). masks: (N, S, S) of {0, 1}. lesion_share: (K,), NaN
    for a code that is never used.
    """
    (H, W), S, K = tokens.shape[1:], images.shape[-1], len(lesion_share)
    title = f"{S} × {S} pixels as {H} × {W} tokens of a codebook of {K}"
    figure, axes = st.make_figure(len(images), 4, 1.75, title=title)
    for n, row in enumerate(axes):
        st.show_image(row[0], images[n])
        st.show_token_map(row[1], tokens[n], K)
        st.show_image(row[2], back[n])
        st.show_image(row[3], lesion_share[tokens[n].numpy()], side=S, cmap=st.LESION, vmin=0, vmax=1)
        for axis in row[[0, 3]]:
            st.outline(axis, masks[n], st.REFERENCE)
    st.name_columns(axes[0], ("image, mask outlined", "tokens, a colour per code", "decoded", "lesion share"))
    look = {"label": "lesion share of the code", "format": PercentFormatter(1), "pad": 0.02}
    figure.colorbar(axes[0, 3].images[0], ax=list(axes[:, 3]), **look)
    return figure


def codebook_embedding(codes: Tensor, table: pd.DataFrame, patches: Tensor) -> Figure:
    """The codes in use in the plane of their two main principal components, as dots and as what they decode to.

    codes: (K, D), the codebook. table: of `tables.codebook_usage`. patches: (K, 3, f, f), of `mean_decoded_patch`.
    """
    used = np.flatnonzero(table["count"] > 0)
    if len(used) < 3:
        return st.sentence(f"A map of the codebook needs three codes in use; these images have {len(used)}.")
    pca = PCA(2).fit(codes[used].numpy())
    points, explained = pca.transform(codes[used].numpy()), pca.explained_variance_ratio_
    lesion, share = table["lesion_share"].to_numpy()[used], table["share"].to_numpy()[used]
    title = f"The {len(used)} codes in use on their first two principal components"
    figure, ((dots, pictures),) = st.make_figure(1, 2, 3.7, title=title, sharex=True, sharey=True)
    look = {"cmap": st.LESION, "vmin": 0, "vmax": 1, "edgecolors": st.GREY, "linewidths": 0.5}
    drawn = dots.scatter(*points.T, s=15 + 1200 * share, c=lesion, **look)
    side = 14 if len(used) <= 100 else 9
    for point, patch in zip(points, patches[used], strict=True):
        thumbnail = OffsetImage(patch.permute(1, 2, 0).numpy(), zoom=side / patch.shape[-1])
        pictures.add_artist(AnnotationBbox(thumbnail, point, frameon=False))
    for axis, name in ((dots, "one dot per code, area by use"), (pictures, "mean decoded patch of each code")):
        axis.set(title=name, xlabel=f"component 1 ({explained[0]:.0%} of variance)")
        axis.margins(0.08)
    dots.set_ylabel(f"component 2 ({explained[1]:.0%} of variance)")
    percent = PercentFormatter(1)
    figure.colorbar(drawn, ax=dots, label="lesion share of the code", location="bottom", aspect=30, format=percent)
    return figure


def code_explorer(
    code: int, table: pd.DataFrame, images: ImageSet, tokens: Tensor, back: Tensor, alone: Tensor
) -> Figure:
    """One code: what it decodes to alone, and the five images where it is assigned most, its tokens highlighted.

    table: of `tables.codebook_usage`. images: a set with masks. tokens: (N, H, W), of its images. back: (N, 3, S, S) in
    [0, 1], decoded from them. alone: (3, S, S), decoded from this code everywhere.
    """
    row, assigned = table.set_index("code").loc[code], tokens == code
    counts = assigned.flatten(1).sum(1)
    title = f"Code {code}: {row['share']:.1%} of all tokens, {row['lesion_share']:.0%} of them lesion"
    title = title if row["count"] else f"Code {code} is assigned to no token of these {len(images)} images"
    figure, axes = st.make_figure(2, 6, 1.35, title=title)
    for axis in axes.flat:
        axis.set_axis_off()
    st.show_image(axes[0, 0], alone, "this code alone")
    order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    for (above, below), n in zip(axes.T[1:], order, strict=False):
        lit = upsample_nearest(assigned[n], back.shape[-1])
        st.show_image(above, images.images[n] / 255 * (0.35 + 0.65 * lit), f"{counts[n]} of {tokens[n].numel()} tokens")
        if images.masks is not None:
            st.outline(above, images.masks[n], st.REFERENCE)
        st.show_image(below, back[n], "decoded")
        for axis in (above, below):
            st.outline(axis, lit, st.HIGHLIGHT)
    return figure
