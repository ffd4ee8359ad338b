"""The explorer: one image and one of its tokens on the left, panels about them on the right."""

from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from typing import Any

import ipywidgets as w
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, display

from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError
from tokencutseg.evaluation.inference import downsample_mask, upsample_nearest
from tokencutseg.evaluation.inspection import attention, inpaint
from tokencutseg.evaluation.per_image import score
from tokencutseg.explore import queries, widgets
from tokencutseg.explore.pictures import (
    BLUE,
    SIDE,
    VERMILION,
    WHITE,
    YELLOW,
    heat_map,
    outlined,
    picture,
    rgb,
    token_map,
)
from tokencutseg.explore.view import View
from tokencutseg.models.deepcut import DeepCut, stencil_offsets
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN

TARGET, BOARD, FOURTH, SMALL = 24, 384, 200, 128
"""Pixels: the least side of what is clicked, of the image that is clicked, of four in a row, of a code."""

Panel = tuple[list[w.Widget], Callable[[], tuple[str, list[str]]]]
"""Controls, and a function that gives a sentence and pictures, both HTML."""


def explorer(model: TokenCutSeg | VQGAN, images: ImageSet, panels: Sequence[str] = ()) -> None:
    """Show the panels of these names (of `PANELS`; none named: all that the model allows) for a set of images.

    In a headless execution, show what they show before anything is moved. Raises ValueError for a panel that is unknown
    or needs more than a tokenizer.
    """
    box = build_explorer(model, images, panels)
    if widgets.headless():
        display(HTML(_still(*box.children)))
    else:
        widgets.listen_to_arrow_keys()
        display(box)


def _still(chooser: w.VBox, tabs: w.Tab) -> str:
    """The name of the image, the image and its tokens, and all panels under their titles, as HTML."""
    parts = ["<p><em>With a running kernel, image, token and settings can be chosen in the panels below.</em></p>"]
    parts += [part.value for part in widgets.parts(chooser) if isinstance(part, w.HTML)]
    for i, panel in enumerate(tabs.children):
        tabs.selected_index = i  # draws it
        parts += [f"<p><b>{tabs.get_title(i)}</b></p>", *(child.value for child in panel.children[1:])]
    return "".join(parts)


def build_explorer(model: TokenCutSeg | VQGAN, images: ImageSet, panels: Sequence[str] = ()) -> w.Widget:
    """The widget that `explorer` shows."""
    names = list(panels) or (list(OF_A_TOKENIZER) if isinstance(model, VQGAN) else list(PANELS))
    for name in names:
        if name not in PANELS:
            raise ValueError(f"unknown panel {name!r}. Known: {', '.join(PANELS)}")
        if isinstance(model, VQGAN) and name not in OF_A_TOKENIZER:
            raise ValueError(f"the panel {name!r} needs a transformer or a segmenter, not a tokenizer alone")
    view = View(model, images)
    built = [PANELS[name][1](view) for name in names]
    shown = [w.VBox([_row(*controls), w.HTML(), w.HTML()]) for controls, _ in built]
    titles, layout = [PANELS[name][0] for name in names], w.Layout(flex="1 1 420px", min_width="0")
    tabs = w.Tab(shown, titles=titles, selected_index=0, layout=layout)
    chooser, draw_chooser = _chooser(view, names != ["cut"])

    def draw(_: Any = None) -> None:
        draw_chooser()
        at = tabs.selected_index or 0  # the others are drawn when they are opened
        text, pictures = built[at][1]()
        shown[at].children[1].value = f"<p style='line-height:1.5;max-width:50rem'>{text}</p>"
        shown[at].children[2].value = f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(pictures)}</div>"

    view.draw = draw
    tabs.observe(draw, "selected_index")
    draw()
    return _row(chooser, tabs)


def _chooser(view: View, with_tokens: bool) -> tuple[w.Widget, Callable[[], None]]:
    """The image, to click on or to move about with the arrow keys, and the map of its tokens."""
    upload = w.FileUpload(accept="image/*", description="own image", layout=w.Layout(width="150px"))
    back = w.Button(description="back to the set", layout=w.Layout(width="150px"))
    (H, W), image, tokens = view.grid, w.HTML(), w.HTML()
    cell = max(TARGET, BOARD // W)
    style, layout = w.ButtonStyle(button_color="transparent"), w.Layout(width="auto", height=f"{cell}px", margin="0")
    places = [divmod(i, W) for i in range(H * W * with_tokens)]
    buttons = [w.Button(style=style, layout=layout, tooltip=f"row {y + 1}, column {x + 1}") for y, x in places]
    columns = w.Layout(grid_template_columns=f"repeat({W}, {cell}px)", grid_area="1 / 1")
    board, image.layout.grid_area = w.GridBox(buttons, layout=columns).add_class("token-board"), "1 / 1"

    def take(change: dict[str, Any]) -> None:
        for file in change["new"]:
            try:
                view.open_own(bytes(file["content"]), file["name"])
            except DataError as error:
                view.name.value = escape(str(error))

    def draw() -> None:
        chosen = view.chosen() & with_tokens
        image.value = picture("", outlined(view.image, chosen), W * cell)
        back.layout.display = "" if view.own else "none"
        for i, button in enumerate(buttons):
            button.tabbable = bool(chosen.flatten()[i])  # the board is one stop
        if with_tokens:
            colours = token_map(view.tokens, view.codebook_size, view.image.shape[-1])
            tokens.value = picture("its tokens, one colour per code", outlined(colours, chosen, WHITE))

    for button, place in zip(buttons, places, strict=True):
        button.on_click(lambda _, place=place: view.choose(*place))
    back.on_click(lambda _: view.open())
    upload.observe(take, "value")
    hint = w.HTML("The image: click on a token, or move with the arrow keys.")
    stack = w.Box([image, board], layout=w.Layout(display="grid", overflow="visible"))
    below = [hint, stack, tokens] if with_tokens else [image]
    return w.VBox([view.index, w.HBox([upload, back]), view.name, *below]), draw


def _codes(view: View) -> Panel:
    region = w.Dropdown(options=queries.REGIONS, value="border", description="most on", layout=w.Layout(width="220px"))
    ranking = w.Select(rows=7, description="codes", layout=w.Layout(width="340px"))
    following = w.Button(description="next image with the code", layout=w.Layout(width="220px"))
    following.on_click(lambda _: view.seek(view.code, region.value if view.table is not None else ""))

    def rank() -> None:
        line, rows = "code {}: {:.0%} of {} cells", queries.rank_codes(view.table, region.value).itertuples()
        ranking.options = [(line.format(row.code, getattr(row, region.value), row.cells), row.code) for row in rows]

    def chosen(change: dict[str, Any]) -> None:
        if not view.changing and change["new"] not in (None, view.code):
            view.seek(change["new"], region.value)

    if view.table is not None:
        rank()
        view.watch(region, rank)
        ranking.observe(chosen, "value")
        if ranking.options:
            view.seek(ranking.options[0][1], region.value)

    def draw() -> tuple[str, list[str]]:
        code, has, here = view.code, view.set.tokens == view.code, view.tokens == view.code
        found, text = view.with_code(code), ""
        following.disabled = not found
        if view.table is not None:
            ranking.value = code if code in [value for _, value in ranking.options] else None
            text = f"{queries.ranking_sentence(view.table, region.value)}<br>"
        text += f"<b>Code {code}</b>, that of the framed token, has {has.sum():,} of the set's {has.numel():,} cells"
        if view.table is not None and found:
            shares = view.table.set_index("code").loc[code]
            text += ": " + ", ".join(f"{shares[name]:.0%} on {name}" for name in queries.REGIONS)
        text += f". It is in {len(found)} of {len(has)} images, and has {int(here.sum())} cells here."
        lesion = view.image if view.mask is None else outlined(view.image, view.mask, WHITE)
        legend = [(YELLOW, f"code {code}"), *[(WHITE, "reference mask")][: view.mask is not None]]
        pictures = [picture("all cells of this code here", outlined(lesion, here), legend=legend)]
        for n in found[:6]:
            image = outlined(view.images.images[n].float() / 255, has[n])
            pictures.append(picture(f"image {n}: {int(has[n].sum())} cells", image, SMALL))
        return text, [pictures[0], _group("where it is used most", pictures[1:])]

    return [w.VBox([region, following]), ranking] if view.table is not None else [following], draw


def _decoding(view: View) -> Panel:
    scope = view.watch(w.Dropdown(options=["the framed token", "all tokens of its code"], description="replace"))
    codes = view.vqgan.quantize.embedding.weight
    farthest = int((codes - codes[view.code]).norm(dim=1).argmax())
    other = view.slider(w.IntSlider, farthest, 0, view.codebook_size - 1, description="by code")

    def draw() -> tuple[str, list[str]]:
        code, new, tokens = view.code, other.value, view.tokens
        where = view.chosen() if scope.value == scope.options[0] else tokens == code
        before, after = view.vqgan.detokenize(torch.stack([tokens, tokens.masked_fill(where, new)]))
        change, inside = (after - before).abs().mean(0), upsample_nearest(where, before.shape[-1])
        most = max(float(change.max()), 1e-6)
        text = f"Code {code} replaced by code {new} in {int(where.sum())} of {where.numel()} cells, the framed ones. "
        text += f"Colours, from 0 to 1, change there by {change[inside].mean():.3f} on average"
        text += "." if inside.all() else f", elsewhere by {change[~inside].mean():.3f}: a decoder looks beyond a cell."
        pictures = [
            picture("decoded from its tokens", outlined(before, where)),
            picture(f"decoded with code {new} there", outlined(after, where)),
            picture("change, mean of R, G and B", outlined(heat_map(change / most), where, WHITE), scale=(0, most)),
            picture(f"code {code} decoded alone", queries.decode_code(view.vqgan, code), SMALL),
            picture("decoded here, with neighbours", queries.neighbourhood(before, view.grid, *view.at), SMALL),
            picture(f"code {new} decoded alone", queries.decode_code(view.vqgan, new), SMALL),
            picture("decoded here, with neighbours", queries.neighbourhood(after, view.grid, *view.at), SMALL),
        ]
        if nearest := [F.pad(patch, (0, 1, 0, 1), value=255) for patch in queries.code_patches(view.set, code)]:
            caption = f"cells of the set that are nearest to code {code}, with their neighbours"
            pictures.append(picture(caption, torch.cat(nearest, -1), 2 * SIDE))
        return text, pictures

    return [scope, other], draw


def _prediction(view: View) -> Panel:
    longest = (max(view.grid) - 1) // 2 * 2 + 1
    side = view.slider(w.IntSlider, min(5, longest), 1, longest, step=2, description="masked square, tokens a side")
    measured = cache(lambda: queries.masked_accuracy(view.model, view.images))

    def draw() -> tuple[str, list[str]]:
        rows, columns = torch.arange(view.grid[0])[:, None], torch.arange(view.grid[1])
        mask = torch.maximum((rows - view.at[0]).abs(), (columns - view.at[1]).abs()) <= side.value // 2
        result = inpaint(view.model, view.image[None], mask[None])
        right = (result.filled == result.tokens)[0][mask].float().mean()
        likeliest = result.probabilities[0][view.at].topk(min(5, view.codebook_size))
        most, pixels = float(np.log(view.codebook_size)), upsample_nearest(mask, view.image.shape[-1])
        text = f"{int(mask.sum())} tokens are masked, {right:.0%} of them predicted exactly. {measured()}<br>"
        text += f"The one in the middle has code {view.code}. The entropy of its prediction is "
        text += f"{result.entropy[0][view.at]:.2f} nats, of at most {most:.2f}."
        candidates = [
            picture(f"code {code}: {p:.0%}", queries.decode_code(view.vqgan, code), SIDE // 3)
            for p, code in zip(*(part.tolist() for part in likeliest), strict=True)
        ]
        truth = picture(f"true: code {view.code}", queries.decode_code(view.vqgan, view.code), SIDE // 3)
        return text, [
            picture("what the transformer sees", view.image.masked_fill(pixels, 0.5)),
            picture("its prediction decoded, square framed", outlined(result.decoded[0], mask)),
            picture("entropy of the prediction, nats", heat_map(result.entropy[0] / most), scale=(0, most)),
            _group("the token in the middle, and its likeliest predictions, each decoded alone", [truth, *candidates]),
        ]

    return [side], draw


def _attention(view: View) -> Panel:
    layers, heads = len(view.model.masked_gpt.blocks), view.model.masked_gpt.config.n_head
    block = view.slider(w.IntSlider, layers, 1, layers, description="transformer block")
    options = [("mean of all", slice(None)), *((str(i + 1), slice(i, i + 1)) for i in range(heads))]
    head = view.watch(w.Dropdown(options=options, description="head"))

    def draw() -> tuple[str, list[str]]:
        T, at = view.tokens.numel(), view.at
        maps = attention(view.model, view.image, torch.arange(T))[block.value - 1, head.value].mean(0)  # (T, H, W)
        paid, received = T * maps.view(*view.grid, *view.grid)[at], T * maps[:, at[0], at[1]].view(view.grid)
        text = f"The framed token attends to one token {paid.max():.1f} times as much as evenly, and one token to it "
        text += f"{received.max():.1f} times; no other more."
        if view.mask is not None:
            part = downsample_mask(view.mask[None], view.grid)[0]
            text += f" The lesion, {part.mean():.0%} of the image, gets {(paid * part).sum() / T:.0%} of its attention."
        strongest = paid >= paid.flatten().topk(min(10, T)).values[-1]
        size, chosen = view.image.shape[-1], view.chosen()
        pictures = [picture("the ten tokens that it attends to most", outlined(view.image, strongest))]
        for caption, times in (("from it", paid), ("to it", received)):
            shown = outlined(upsample_nearest(heat_map(times / times.max()), size), chosen)
            pictures.append(picture(f"attention {caption}, times an even one", shown, scale=(0, float(times.max()))))
        return text, pictures

    return [block, head], draw


def _cut(view: View) -> Panel:
    own, graph = round(queries.radius_in_cells(view.model), 1), isinstance(view.model.head, DeepCut)
    radius = view.slider(w.FloatSlider, own, 0, max(6.0, own), step=0.1, description="radius, cells")
    threshold = view.slider(w.FloatSlider, 0.5, 0.05, 0.95, step=0.05, description="threshold, P(lesion)")

    def draw() -> tuple[str, list[str]]:
        tokens, pixels = queries.cut(view.model, view.image, radius.value)
        mask, pictures = pixels > threshold.value, []
        neighbours = len(stencil_offsets(*view.grid, radius.value, "cells")) - 1
        text = f"At this radius a token has up to {neighbours} neighbours; trained with {own} cells. " if graph else ""
        text += f"Predicted lesion: {mask.float().mean():.0%} of the image."
        legend, shown = [(YELLOW, "prediction")], view.image
        if view.mask is not None:
            record = score(mask[None], view.mask[None], ["shown"], boundary=False).iloc[0]
            text += f" Lesion IoU {record.iou:.3f}, Dice {record.dice:.3f}."
            wrong = [(view.mask & ~mask, BLUE, "missed"), (mask & ~view.mask, VERMILION, "skin taken for lesion")]
            errors = view.image
            for where, colour, _ in wrong:
                errors = torch.where(where, 0.4 * errors + 0.6 * rgb(colour), errors)
            names = [(colour, f"{name}: {where.float().mean():.1%}") for where, colour, name in wrong]
            pictures = [picture("where the mask errs", errors, FOURTH, legend=names)]
            legend, shown = [*legend, (WHITE, "reference")], outlined(shown, view.mask, WHITE)
        return text, [
            picture("P(lesion) at the tokens", heat_map(tokens), FOURTH, scale=(0, 1)),
            picture("P(lesion) at the pixels", heat_map(pixels), FOURTH, scale=(0, 1)),
            picture("the mask above the threshold", outlined(shown, mask), FOURTH, legend=legend),
            *pictures,
        ]

    return [*[radius][:graph], threshold], draw


PANELS: dict[str, tuple[str, Callable[[View], Panel]]] = {
    "codes": ("Codes", _codes),
    "decoding": ("Decoding", _decoding),
    "prediction": ("Masked tokens", _prediction),
    "attention": ("Attention", _attention),
    "cut": ("Cut and mask", _cut),
}
"""Name → title and panel."""
OF_A_TOKENIZER = ("codes", "decoding")
"""The panels that need no transformer."""


def _row(*parts: w.Widget) -> w.Widget:
    """Side by side as far as there is room."""
    return w.HBox(list(parts), layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))


def _group(caption: str, pictures: Sequence[str]) -> str:
    """Small pictures side by side under a caption."""
    inner = f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(pictures)}</div>"
    return f"<div style='font-size:12px;flex:1 1 {SIDE}px'>{caption}{inner}</div>"
