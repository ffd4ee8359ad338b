"""The explorer: one image and one of its tokens on the left, panels about them on the right."""

import base64
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ipywidgets as w
import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, display
from PIL import Image, ImageOps
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError, read_image
from tokencutseg.evaluation.inference import downsample_mask, upsample_nearest
from tokencutseg.evaluation.inspection import attention, inpaint
from tokencutseg.evaluation.per_image import score
from tokencutseg.explore import queries, widgets
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots.style import SEQUENTIAL, code_colours

SIDE = 232
"""Of a picture, in pixels."""
LARGEST_UPLOAD = 50_000_000
"""Bytes of an own image: several photographs of a phone."""
YELLOW, WHITE, BLUE, VERMILION = "#FFDD00", "#FFFFFF", "#0072B2", "#D55E00"
"""Outline of the chosen or predicted, and of the reference; missed lesion; skin taken for lesion."""

Panel = tuple[list[w.Widget], Callable[[], tuple[str, list[str]]]]
"""Controls, and a function that gives a sentence and pictures, both HTML."""


class View:
    """What is being looked at: an image and its mask and tokens, one of them (`row`, `column`), and a `code`."""

    def __init__(self, model: TokenCutSeg | VQGAN, images: ImageSet) -> None:
        self.model, self.images, self.draw, self._changing = model, images, lambda: None, False
        self.vqgan = model if isinstance(model, VQGAN) else model.vqgan
        self.codebook_size = self.vqgan.quantize.codebook_size
        self.set = queries.tokenize_set(self.vqgan, images)
        self.table = None if images.masks is None else queries.code_region_table(self.set)
        self.grid = H, W = tuple(self.set.tokens.shape[1:])
        self.index = self.slider(w.IntSlider, 0, 0, len(images) - 1, self.open, description="image")
        self.row = self.slider(w.IntSlider, H // 2, 0, H - 1, self._follow, description="row")
        self.column = self.slider(w.IntSlider, W // 2, 0, W - 1, self._follow, description="column")
        self.code = self.slider(w.IntSlider, 0, 0, self.codebook_size - 1, description="code")
        self.name = w.HTML()
        self.open()

    @contextmanager
    def once(self) -> Iterator[None]:
        """Changes within are drawn once, at the end."""
        outer, self._changing = self._changing, True
        yield
        self._changing = outer
        if not outer:
            self.draw()

    def watch(self, control: Any, act: Callable[[], None] = lambda: None) -> Any:
        """A control that acts and draws when it moves."""

        def moved(_: Any) -> None:
            with self.once():
                act()

        control.observe(moved, "value")
        return control

    def slider(self, kind: type, value: Any, low: float, high: float, act: Any = lambda: None, **options: Any) -> Any:
        """A slider that reports when it is let go."""
        return self.watch(kind(value=value, min=low, max=high, continuous_update=False, **options), act)

    def open(self) -> None:
        """Look at the image of the set that the slider names."""
        n, masks = self.index.value, self.images.masks
        name = f"{self.images.dataset}/{self.images.split} {self.images.ids[n]}"
        self.show(self.images.images[n].float() / 255, None if masks is None else masks[n].bool(), name)

    def open_own(self, content: bytes, name: str) -> None:
        """Look at another image, padded to a square. Raises DataError for one that cannot be read or is too large."""
        if len(content) > LARGEST_UPLOAD:
            size = f"{len(content) / 1e6:.0f} MB"
            raise DataError(f"{name} has {size}; choose an image of at most {LARGEST_UPLOAD / 1e6:.0f} MB")
        with TemporaryDirectory() as folder:
            (file := Path(folder, Path(name).name)).write_bytes(content)
            try:
                picture = Image.fromarray(read_image(file))
            except DataError as error:
                raise DataError(str(error).replace(f"{folder}{os.sep}", "")) from error
        side = self.images.images.shape[-1]
        fill = tuple(np.median(np.asarray(picture.resize((64, 64))), (0, 1)).astype(int).tolist())
        square = np.array(ImageOps.pad(picture, (side, side), color=fill))
        self.show(torch.from_numpy(square).permute(2, 0, 1).float() / 255, None, name)

    def show(self, image: Tensor, mask: Tensor | None, name: str) -> None:
        self.image, self.mask, self.tokens = image, mask, self.vqgan.tokenize(image[None])[0]
        self.name.value = escape(name)
        with self.once():
            self._follow()

    def _follow(self) -> None:
        self.code.value = int(self.tokens[self.row.value, self.column.value])

    def framed(self, image: Tensor, cells: Tensor) -> Tensor:
        """An image (3, S, S) with cells (H, W) outlined."""
        return _outlined(image, upsample_nearest(cells, image.shape[-1]), YELLOW)

    def cell(self) -> Tensor:
        """(H, W) bool, True at the chosen token."""
        cell = torch.zeros(self.grid, dtype=torch.bool)
        cell[self.row.value, self.column.value] = True
        return cell


def explorer(model: TokenCutSeg | VQGAN, images: ImageSet, panels: Sequence[str] = ()) -> None:
    """Show the panels of these names (of `PANELS`; none named: all that the model allows) for a set of images.

    In a headless execution, show what they show before anything is moved. Raises ValueError for a panel that is unknown
    or needs more than a tokenizer.
    """
    box = build_explorer(model, images, panels)
    if widgets.headless():
        display(HTML(_still(*box.children)))
    else:
        widgets.keep_arrow_keys()
        display(box)


def _still(chooser: w.VBox, tabs: w.Tab) -> str:
    """The name of the image, the image, and all panels under their titles, as HTML."""
    parts = ["<p><em>With a running kernel, image, token and settings can be chosen in the panels below.</em></p>"]
    parts += [child.value for child in chooser.children[2:4]]
    for i, panel in enumerate(tabs.children):
        tabs.selected_index = i  # draws it
        parts += [f"<p><b>{tabs.get_title(i)}</b></p>", *(child.value for child in panel.children[1:])]
    return "".join(parts)


def build_explorer(model: TokenCutSeg | VQGAN, images: ImageSet, panels: Sequence[str] = ()) -> w.Widget:
    """The widget that `explorer` shows."""
    names = list(panels) or (["codes"] if isinstance(model, VQGAN) else list(PANELS))
    for name in names:
        if name not in PANELS:
            raise ValueError(f"unknown panel {name!r}. Known: {', '.join(PANELS)}")
        if isinstance(model, VQGAN) and name != "codes":
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
    """The image, and the map of its tokens to click; by keyboard a token is chosen with the two sliders alone."""
    upload = w.FileUpload(accept="image/*", description="own image", layout=w.Layout(width="150px"))
    back, picture = w.Button(description="back to the set", layout=w.Layout(width="130px")), w.HTML()
    (H, W), colours = view.grid, [mpl.colors.to_hex(colour) for colour in code_colours(view.codebook_size).colors]
    size = f"{max(14, 320 // W)}px"
    square = w.Layout(width=size, height=size, margin="0", padding="0")
    buttons = [w.Button(layout=square, tabbable=False) for _ in range(H * W * with_tokens)]
    board = w.GridBox(buttons, layout=w.Layout(grid_template_columns=f"repeat({W}, {size})", grid_gap="1px"))

    def clicked(button: w.Button) -> None:
        with view.once():
            view.row.value, view.column.value = divmod(buttons.index(button), W)

    def take(change: dict[str, Any]) -> None:
        for file in change["new"]:
            try:
                view.open_own(bytes(file["content"]), file["name"])
            except DataError as error:
                view.name.value = escape(str(error))

    def draw() -> None:
        cell, codes = view.cell(), view.tokens.flatten().tolist()
        picture.value = _figure("the image, its chosen token framed", view.framed(view.image, cell & with_tokens))
        for i, (button, code) in enumerate(zip(buttons, codes, strict=False)):  # only what changes goes to the browser
            button.tooltip = f"row {i // W}, column {i % W}: code {code}"
            button.style.button_color = colours[code]
            button.description = "×" if cell.flatten()[i] else ""

    for button in buttons:
        button.on_click(clicked)
    back.on_click(lambda _: view.open())
    upload.observe(take, "value")
    tokens = [w.HTML("its tokens, one colour per code: choose one"), board, view.row, view.column]
    return w.VBox([view.index, w.HBox([upload, back]), view.name, picture, *tokens[: 4 * with_tokens]]), draw


def _codes(view: View) -> Panel:
    region = view.watch(w.Dropdown(options=queries.REGIONS, value="border", description="most on"))
    ranking = w.Select(rows=6, description="codes", layout=w.Layout(width="330px"))
    scope = view.watch(w.Dropdown(options=["all its tokens", "the chosen token"], description="replace"))
    codes = view.vqgan.quantize.embedding.weight
    farthest = int((codes - codes[view.code.value]).norm(dim=1).argmax())
    other = view.slider(w.IntSlider, farthest, 0, view.codebook_size - 1, description="by code")

    def rank(_: Any = None) -> None:
        rows = queries.rank_codes(view.table, region.value).itertuples()
        ranking.options = [(f"{row.code}: {getattr(row, region.value):.0%} of {row.cells}", row.code) for row in rows]
        ranking.value = None

    def chosen(change: dict[str, Any]) -> None:
        if change["new"] is not None:
            with view.once():  # the image that has it most often
                view.index.value = int((view.set.tokens == change["new"]).sum((1, 2)).argmax())
                view.code.value = int(change["new"])

    if view.table is not None:
        region.observe(rank, "value")
        ranking.observe(chosen, "value")
        rank()

    def draw() -> tuple[str, list[str]]:
        code, has, here = view.code.value, view.set.tokens == view.code.value, view.tokens == view.code.value
        text = f"<b>Code {code}</b> has {int(has.sum()):,} of {has.numel():,} cells of the set"
        if view.table is not None and has.any():
            shares = view.table.set_index("code").loc[code]
            text = f"{queries.ranking_sentence(view.table, region.value)}<br>{text}: "
            text += ", ".join(f"{shares[name]:.0%} on {name}" for name in queries.REGIONS)
        text += f"; it is in {int(has.any(1).any(1).sum())} of {len(has)} images, and has {int(here.sum())} cells here."
        where = here if scope.value == "all its tokens" else view.cell()
        changed = view.vqgan.detokenize(view.tokens.masked_fill(where, other.value)[None])[0]
        nearest = [F.pad(patch, (0, 1, 0, 1), value=255) for patch in queries.code_patches(view.set, code)]
        pictures = [
            _figure("cells of this code", view.framed(view.image, here)),
            _figure("the image's tokens decoded", view.vqgan.detokenize(view.tokens[None])[0]),
            _figure(f"decoded, the framed ones code {other.value}", view.framed(changed, where)),
            _figure("the code decoded alone", queries.decode_code(view.vqgan, code), SIDE // 2),
        ]
        if nearest:
            caption = "the set's cells nearest to the code, with their neighbours"
            pictures.append(_figure(caption, torch.cat(nearest, -1), 2 * SIDE))
        return text, pictures

    return [*[region, ranking][: 2 * (view.table is not None)], view.code, scope, other], draw


def _prediction(view: View) -> Panel:
    (H, W), kind = view.grid, w.IntRangeSlider
    rows = view.slider(kind, (H // 3, 2 * H // 3), 0, H - 1, description="mask rows")
    columns = view.slider(kind, (W // 3, 2 * W // 3), 0, W - 1, description="mask columns")

    def draw() -> tuple[str, list[str]]:
        mask = torch.zeros(view.grid, dtype=torch.bool)
        mask[rows.value[0] : rows.value[1] + 1, columns.value[0] : columns.value[1] + 1] = True
        result, at = inpaint(view.model, view.image[None], mask[None]), (view.row.value, view.column.value)
        right = (result.filled == result.tokens)[0][mask].float().mean()
        frequent = (view.tokens == view.tokens.flatten().mode().values)[mask].float().mean()
        top = zip(
            *(part.tolist() for part in result.probabilities[0][at].topk(min(5, view.codebook_size))), strict=True
        )
        candidates = ", ".join(f"{code} ({p:.0%})" for p, code in top)
        most, pixels = float(np.log(view.codebook_size)), upsample_nearest(mask, view.image.shape[-1])
        text = (
            f"{int(mask.sum())} tokens masked, {right:.0%} of them predicted exactly (always the image's most frequent "
            f"code: {frequent:.0%}).<br>Row {at[0]}, column {at[1]}, {'masked' if mask[at] else 'visible'}, has code "
            f"{int(view.tokens[at])}. Likeliest: {candidates}; entropy {result.entropy[0][at]:.2f} nats."
        )
        return text, [
            _figure("what the transformer sees", view.image.masked_fill(pixels, 0.5)),
            _figure("prediction decoded, masked region framed", view.framed(result.decoded[0], mask)),
            _figure("entropy of the prediction (nats)", _map(result.entropy[0] / most), scale=(0, most)),
        ]

    return [rows, columns], draw


def _attention(view: View) -> Panel:
    layers, heads = len(view.model.masked_gpt.blocks), view.model.masked_gpt.config.n_head
    block = view.slider(w.IntSlider, layers, 1, layers, description="block")
    options = [("mean of all", slice(None)), *((str(i + 1), slice(i, i + 1)) for i in range(heads))]
    head = view.watch(w.Dropdown(options=options, description="head"))

    def draw() -> tuple[str, list[str]]:
        maps = attention(view.model, view.image, view.cell().flatten().nonzero()[:, 0])
        weights = maps[block.value - 1, head.value, 0].mean(0)
        times = weights * weights.numel()
        text = f"The framed token attends to the bright ones, at most {times.max():.1f} times a uniform weight."
        if view.mask is not None:
            lesion = downsample_mask(view.mask[None], view.grid)[0]
            text += f" The lesion, {lesion.mean():.0%} of the image, gets {(weights * lesion).sum():.0%}."
        strongest = times >= times.flatten().topk(min(10, times.numel())).values[-1]
        return text, [
            _figure("attention (times uniform)", _map(times / times.max()), scale=(0, float(times.max()))),
            _figure("the ten strongest tokens", view.framed(view.image, strongest)),
        ]

    return [block, head], draw


def _cut(view: View) -> Panel:
    own = round(queries.radius_in_cells(view.model), 1)
    radius = view.slider(w.FloatSlider, own, 0, max(6.0, own), step=0.1, description="radius, cells")
    threshold = view.slider(w.FloatSlider, 0.5, 0.05, 0.95, step=0.05, description="threshold")
    errors = view.watch(w.Checkbox(description="show errors", indent=False))

    def draw() -> tuple[str, list[str]]:
        tokens, pixels = queries.cut(view.model, view.image, radius.value)
        mask, shown, legend = pixels > threshold.value, view.image, [(YELLOW, "prediction")]
        text = f"Trained with a radius of {own} cells. Predicted lesion: {mask.float().mean():.0%} of the image."
        errors.layout.display = "none" if view.mask is None else ""
        if view.mask is not None:
            record = score(mask[None], view.mask[None], ["shown"], boundary=False).iloc[0]
            text += f" Lesion IoU {record.iou:.3f}, Dice {record.dice:.3f}."
            if errors.value:
                for wrong, colour in ((view.mask & ~mask, BLUE), (mask & ~view.mask, VERMILION)):
                    shown = torch.where(wrong, 0.4 * shown + 0.6 * _rgb(colour), shown)
                legend += [(BLUE, "missed"), (VERMILION, "skin taken for lesion")]
            shown, legend = _outlined(shown, view.mask, WHITE), [*legend, (WHITE, "reference")]
        return text, [
            _figure("P(lesion) at the tokens", _map(tokens), scale=(0, 1)),
            _figure("P(lesion) at the pixels", _map(pixels), scale=(0, 1)),
            _figure("the mask above the threshold", _outlined(shown, mask, YELLOW), 3 * SIDE // 2, legend=legend),
        ]

    return [radius, threshold, errors], draw


PANELS: dict[str, tuple[str, Callable[[View], Panel]]] = {
    "codes": ("Codes", _codes),
    "prediction": ("Masked tokens", _prediction),
    "attention": ("Attention", _attention),
    "cut": ("Cut and mask", _cut),
}
"""Name → title and panel."""


def _row(*parts: w.Widget) -> w.Widget:
    """Side by side as far as there is room."""
    return w.HBox(list(parts), layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))


def _figure(caption: str, picture: Tensor, side: int = SIDE, scale: Sequence[float] = (), legend: Any = ()) -> str:
    """A picture (3, h, w), in [0, 1] or uint8, as HTML with caption, colour bar from `scale` and legend."""
    pixels = picture if picture.dtype == torch.uint8 else (picture.clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    times = max(1, side // max(image.size))  # whole pixels of a small picture
    buffer = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    below = "".join(f"<span style='color:{c};background:#888;margin:0 4px'>■</span>{name}" for c, name in legend)
    if scale:
        stops = ",".join(mpl.colors.to_hex(mpl.colormaps[SEQUENTIAL](i / 8)) for i in range(9))
        bar = f"<span style='flex:1;margin:3px 4px;height:10px;background:linear-gradient(to right,{stops})'></span>"
        below = f"<span style='display:flex'>{scale[0]:.3g}{bar}{scale[1]:.3g}</span>"
    style, alt = f"margin:0;width:{side}px;max-width:100%;line-height:1.4;font-size:12px", escape(caption)
    img = f'<img alt="{alt}" width="100%" src="data:image/png;base64,{data}">'
    return f'<figure style="{style}"><figcaption>{alt}</figcaption>{img}{below}</figure>'


def _rgb(colour: str) -> Tensor:
    return torch.tensor(mpl.colors.to_rgb(colour))[:, None, None]


def _map(values: Tensor) -> Tensor:
    """Values (H, W) in [0, 1] as colours (3, H, W)."""
    return torch.from_numpy(mpl.colormaps[SEQUENTIAL](values.numpy())[..., :3]).permute(2, 0, 1).float()


def _outlined(image: Tensor, mask: Tensor, colour: str) -> Tensor:
    """The image (3, S, S) with the inner border, one pixel wide, of a mask (S, S) bool."""
    outside = F.max_pool2d((~mask)[None].float(), 3, 1, 1)[0] > 0
    return torch.where(mask & outside, _rgb(colour), image)
