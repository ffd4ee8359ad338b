"""Figures of notebook 02: masks, masked-token prediction, attention, and linear probes."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from tokencutseg.evaluation.inference import upsample_nearest
from tokencutseg.evaluation.inspection import Inpainting
from tokencutseg.plots import style as st
from tokencutseg.plots.charts import curves, dot_figure, from_zero, line_band

PATTERNS = {"iid": st.Look("i.i.d. mask", st.SKY, "s"), "block": st.Look("block mask", st.BLUE, "o")}
"""How a pattern of masked tokens is called and drawn."""


def masking(image: Tensor, masks: Mapping[str, Tensor]) -> Figure:
    """One image (3, S, S) with growing shares of its tokens masked, one row per pattern.

    masks: pattern (a key of `PATTERNS`) → (n, H, W) bool, True where masked.
    """
    title = "One image under masks of growing ratio"
    figure, axes = st.make_figure(len(masks), max(map(len, masks.values())), 1.75, title=title)
    grey = torch.tensor(mpl.colors.to_rgb(st.MASKED))[:, None, None]
    for row, (pattern, some) in zip(axes, masks.items(), strict=True):
        for axis, mask in zip(row, some, strict=True):
            shown = torch.where(upsample_nearest(mask, image.shape[-1]), grey, image)
            st.show_image(axis, shown, f"{mask.float().mean():.0%} masked")
        st.label_row(row[0], PATTERNS[pattern].label)
    return figure


def masked_gpt_curves(history: pd.DataFrame, prediction: pd.DataFrame, codebook_size: int, mask_ratio: float) -> Figure:
    """Training curves, and the accuracy on masked tokens of test images by mask ratio.

    history: of the run that trained the transformer; a joint training logs no accuracy. prediction: of
    `tables.masked_prediction`. codebook_size: K; ln K is the loss of a uniform guess. mask_ratio: that of the training.
    """
    has_accuracy = "train_accuracy" in history
    title = "Masked-token prediction: training, and test accuracy by mask ratio"
    figure, (row,) = st.make_figure(1, 2 + has_accuracy, 2.9, title=title)
    losses = {"train_loss": ("training", st.SKY), "validation_loss": ("validation", st.BLUE)}
    curves(row[0], history, losses | {"train_masked_tokens": ("training (joint)", st.SKY)})
    row[0].axhline(np.log(codebook_size), color=st.GREY, ls="--", lw=1, label=f"uniform, ln {codebook_size}")
    row[0].set(title="loss on masked tokens", ylabel="cross-entropy (nats)")
    if has_accuracy:
        accuracy = {"train_accuracy": ("training", st.SKY), "validation_accuracy": ("validation", st.BLUE)}
        curves(row[1], history, accuracy)
        row[1].set(title="accuracy on masked tokens", ylabel="top-1 accuracy")
    by_ratio = row[-1]
    line_band(by_ratio, prediction, "mask_ratio", ("accuracy", "low", "high"), "pattern", PATTERNS)
    chance = prediction.drop_duplicates("mask_ratio").sort_values("mask_ratio")
    by_ratio.plot(chance["mask_ratio"], chance["chance"], color=st.GREY, ls="--", lw=1, label="commonest code")
    by_ratio.axvline(mask_ratio, color=st.GREY, ls=":", lw=1, label="training ratio")
    by_ratio.set(title="test images, 95% interval", xlabel="mask ratio", ylabel="top-1 accuracy")
    for scale in (by_ratio.xaxis, *(axis.yaxis for axis in row[1:])):
        scale.set_major_formatter(PercentFormatter(1))
    for axis in row:
        from_zero(axis)
        st.legend_below(axis)
    return figure


def token_inpainting(result: Inpainting, codebook_size: int) -> Figure:
    """From an image to its masked tokens as predicted, one row per image; visible tokens have no entropy to show."""
    masked, correct = result.mask, result.filled == result.tokens
    figure, axes = st.make_figure(len(result.images), 6, 1.3, title="Masked tokens predicted from the visible ones")
    colours = mpl.colormaps[st.SEQUENTIAL].with_extremes(bad="white")
    for n, row in enumerate(axes):
        st.show_image(row[0], result.images[n])
        st.show_token_map(row[1], result.tokens[n], codebook_size)
        st.show_token_map(row[2], result.tokens[n], codebook_size, f"{masked[n].float().mean():.0%} masked", masked[n])
        right = f"{correct[n][masked[n]].float().mean():.0%} correct"
        st.show_token_map(row[3], result.filled[n], codebook_size, right)
        st.show_image(row[4], result.decoded[n])
        entropy = result.entropy[n].masked_fill(~masked[n], torch.nan)
        st.show_image(row[5], entropy, cmap=colours, vmin=0, vmax=np.log(codebook_size))
    st.name_columns(axes[0], ("image", "tokens", "visible", "predicted", "decoded", "entropy"))
    figure.colorbar(axes[0, 5].images[0], ax=list(axes[:, 5]), label="nats, up to ln K", pad=0.02, shrink=0.9)
    return figure


def attention_maps(weights: Tensor, image: Tensor, mask: Tensor, query: Tensor) -> Figure:
    """What tokens of one image attend to in five blocks at most; one row per query token, marked by a cross.

    weights: (n_layer, n_head, Q, H, W), of `inspection.attention`; the heads are averaged. image: (3, S, S) in [0, 1].
    mask: (S, S) of {0, 1}. query: (Q,) positions in reading order.
    """
    weights, S = weights.mean(1), image.shape[-1]
    n_layer, _, H, W = weights.shape
    layers = np.unique(np.linspace(0, n_layer - 1, min(n_layer, 5)).round().astype(int))
    title = "Attention of query tokens (crosses), relative to uniform attention"
    figure, axes = st.make_figure(len(query), 1 + len(layers), 1.7, title=title)
    for row, position, maps in zip(axes, query.tolist(), weights.transpose(0, 1), strict=True):
        y, x = divmod(position, W)
        st.show_image(row[0], image, f"query ({y}, {x})")
        for axis, layer in zip(row[1:], layers, strict=True):
            relative = maps[layer] * H * W
            largest = max(float(relative.max()), 2.0)
            name = f"block {layer + 1}: 0 to {largest:.1f}×"
            st.show_image(axis, relative, name, S, cmap=st.SEQUENTIAL, vmin=0, vmax=largest)
        for axis in row:
            st.outline(axis, mask, st.REFERENCE)
            axis.plot((x + 0.5) * S / W - 0.5, (y + 0.5) * S / H - 0.5, "X", ms=7, color=st.HIGHLIGHT, mec="black")
    return figure


def linear_probe(table: pd.DataFrame) -> Figure:
    """Balanced accuracy of a linear probe on each layer's frozen features (`tables.linear_probes`)."""
    label = "balanced accuracy on test tokens, 95% interval over images\n(dashed: raw colour)"
    panels = {label: (table, ("balanced_accuracy", "low", "high"))}
    figure = dot_figure(panels, "features", "Linear probes of frozen features: lesion or skin")
    colour = table.set_index("features")["balanced_accuracy"]["colour"]
    figure.axes[0].axvline(colour, color=st.GREY, ls="--", lw=1, zorder=0)
    return figure
