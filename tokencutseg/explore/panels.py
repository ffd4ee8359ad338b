"""The explorer: panels of widgets over one model and one set of images. What they compute is in `exploration`."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import traitlets
from ipywidgets import (
    HTML,
    Button,
    Checkbox,
    Dropdown,
    FileUpload,
    FloatSlider,
    GridBox,
    HBox,
    IntRangeSlider,
    IntSlider,
    Layout,
    Select,
    Tab,
    VBox,
    Widget,
    link,
)
from PIL import Image as Pictures
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.inference import upsample_nearest
from tokencutseg.evaluation.per_image import score
from tokencutseg.explore import queries as exploration
from tokencutseg.explore import widgets
from tokencutseg.explore.widgets import headless
from tokencutseg.models.tokencutseg import TokenCutSeg, resized
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots.style import SEQUENTIAL, code_colours
from tokencutseg.plots.transformer import inpaint

SIDE = 232
"""Of a picture, in pixels."""
LIT, MISSED, TOO_MUCH = (255, 221, 0), (0, 114, 178), (213, 94, 0)
"""Yellow, blue and vermilion of the colour-blind-safe palette of Okabe and Ito."""


class Choice(traitlets.HasTraits):
    """What is being looked at; every panel reads it, and some change it."""

    image = traitlets.Instance(Tensor)
    """(3, S, S) in [0, 1]."""
    mask = traitlets.Instance(Tensor, allow_none=True)
    """(S, S), 1 is lesion; None where there is none."""
    cell = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(0, 0))
    """Row and column of a word."""
    code = traitlets.Int(0)


class Panel(NamedTuple):
    """A part of the explorer; `draw` brings it up to date."""

    widget: Widget
    draw: Callable[[], None]


def explorer(model: TokenCutSeg | VQGAN, images: ImageSet, panels: Sequence[str] = ()) -> None:
    """Show the panels of these names (of `PANELS`; none named: all that the model can fill) for a set of images.

    Does nothing under the runner. Raises ValueError for an unknown panel, and for one that needs more than a tokenizer.
    """
    if not headless():
        from IPython.display import display

        widgets.keep_arrow_keys()
        display(build_explorer(model, images, panels))


def build_explorer(model: TokenCutSeg | VQGAN, images: ImageSet, panels: Sequence[str] = ()) -> VBox:
    """The widget that `explorer` shows."""
    tokenizer_only = isinstance(model, VQGAN)
    names = list(panels) or [name for name in PANELS if name == "words" or not tokenizer_only]
    for name in names:
        if name not in PANELS:
            raise ValueError(f"unknown panel {name!r}. Known: {', '.join(PANELS)}")
        if tokenizer_only and name != "words":
            raise ValueError(f"the panel {name!r} needs a segmenter or transformer, not a tokenizer alone")
    words = exploration.tokenize_set(model if tokenizer_only else model.vqgan, images)
    choice = Choice(image=images.images[0].float() / 255, mask=None if images.masks is None else images.masks[0])
    built = [PANELS[name](model, words, choice) for name in names]
    tabs = Tab([panel.widget for panel in built], titles=[TITLES[name] for name in names])

    def draw(_: Any = None) -> None:
        built[tabs.selected_index or 0].draw()  # the others are drawn when they are opened

    choice.observe(draw, ["image", "cell", "code"])
    tabs.observe(draw, "selected_index")
    tabs.selected_index = 0
    draw()
    return VBox([_image_chooser(images, choice), tabs])


# ---- the parts ----------------------------------------------------------------------------------------------------


def _image_chooser(images: ImageSet, choice: Choice) -> Widget:
    which = IntSlider(0, 0, len(images) - 1, description="image", continuous_update=False, layout=Layout(width="420px"))
    upload = FileUpload(accept="image/*", description="your own image", layout=Layout(width="180px"))
    name = HTML()

    def show(_: Any = None) -> None:
        name.value = escape(f"{images.dataset}/{images.split} {images.ids[which.value]}")
        choice.mask = None if images.masks is None else images.masks[which.value]
        choice.image = images.images[which.value].float() / 255

    def take(change: dict[str, Any]) -> None:
        for file in change["new"]:
            try:
                pixels = resized(Pictures.open(io.BytesIO(file["content"])), images.images.shape[-1])
            except OSError:
                name.value = escape(f"{file['name']} is no image that can be read; choose a JPEG or PNG")
                continue
            name.value = escape(file["name"])
            choice.mask = None
            choice.image = pixels.float() / 255

    which.observe(show, "value")
    upload.observe(take, "value")
    show()
    return _row(which, upload, name)


def _words_panel(model: TokenCutSeg | VQGAN, words: exploration.TokenizedSet, choice: Choice) -> Panel:
    """The map of words; a code's cells, patches and decoded look; and the image with codes replaced."""
    vqgan = model if isinstance(model, VQGAN) else model.vqgan
    K, grid = vqgan.quantize.codebook_size, tuple(words.tokens.shape[1:])
    colours = [mpl.colors.to_hex(colour) for colour in code_colours(K).colors]
    tokens = words.tokens[0]

    size = f"{max(10, SIDE // grid[1] - 1)}px"
    square = Layout(width=size, height=size, margin="0", padding="0")
    buttons = [Button(layout=square) for _ in range(grid[0] * grid[1])]
    board = GridBox(
        buttons,
        layout=Layout(
            grid_template_columns=f"repeat({grid[1]}, {size})", grid_gap="1px", flex="0 0 auto", overflow="visible"
        ),
    )
    code = IntSlider(0, 0, K - 1, description="code", continuous_update=False)
    link((choice, "code"), (code, "value"))
    place = Dropdown(options=exploration.REGIONS, value="border", description="most on")
    ranking = Select(rows=8, description="codes", layout=Layout(width="330px"))
    about, lit = HTML(), Picture("where the code fires here")
    patches = Picture("the cells nearest to the code, with their neighbours", side=2 * SIDE)
    alone = Picture("what the code decodes to alone", side=SIDE // 2)
    scope = Dropdown(options=["the chosen cell", "all cells of its code"], description="replace")
    instead = IntSlider(0, 0, K - 1, description="by code", continuous_update=False)
    decoded, changed = Picture("its words decoded"), Picture("decoded with the replacement")

    def clicked(button: Button) -> None:
        at = divmod(buttons.index(button), grid[1])
        choice.cell = at
        choice.code = int(tokens[at])

    for button in buttons:
        button.on_click(clicked)

    table = None if words.places is None else exploration.code_region_table(words, K).set_index("code")

    def rank(_: Any = None) -> None:
        if table is None:
            return
        often = table[table["fires"] >= max(5, table["fires"].median() / 4)]  # shares of a handful say nothing
        often = often.sort_values(place.value, ascending=False, kind="stable")
        with ranking.hold_trait_notifications():
            ranking.options = [
                (f"{row.Index}: {getattr(row, place.value):.0%} on {place.value}, {row.fires} cells", row.Index)
                for row in often.itertuples()
            ]
            ranking.value = None

    def chosen(change: dict[str, Any]) -> None:
        if change["new"] is not None:
            choice.code = int(change["new"])

    place.observe(rank, "value")
    ranking.observe(chosen, "value")
    rank()

    def replace(_: Any = None) -> None:
        cell = torch.zeros(grid, dtype=torch.bool)
        cell[choice.cell] = True
        where = tokens == tokens[choice.cell] if scope.value == "all cells of its code" else cell
        changed.show(exploration.decode_with_replacement(vqgan, tokens, where, instead.value))

    for control in (scope, instead):
        control.observe(replace, "value")

    def draw() -> None:
        nonlocal tokens
        now = vqgan.tokenize(choice.image[None])[0]
        fresh, tokens = buttons[0].tooltip is None or not torch.equal(now, tokens), now
        fires = words.tokens == choice.code
        count, here = int(fires.sum()), tokens == choice.code
        shares = (
            ""
            if table is None or not count
            else "; " + ", ".join(f"{table.loc[choice.code, name]:.0%} on {name}" for name in exploration.REGIONS)
        )
        about.value = (
            f"<b>Code {choice.code}</b> stands for {count:,} of {fires.numel():,} cells{shares}. Here it "
            f"fires {int(here.sum())} times."
        )
        lit.show(_lit(choice.image, here))
        decoded.show(vqgan.detokenize(tokens[None])[0])
        alone.show(exploration.decode_code(vqgan, choice.code))
        patches.show(_sheet(exploration.code_patches(words, choice.code, count=16)[0]))
        replace()
        if fresh:  # last, for each word is a message to the browser
            for button, (at, one) in zip(buttons, np.ndenumerate(tokens.numpy()), strict=True):
                button.style.button_color = colours[one]
                button.tooltip = f"row {at[0]}, column {at[1]}: code {one}"

    return Panel(
        VBox(
            [
                _row(VBox([HTML("Its words: choose one"), board]), lit, VBox([place, ranking])),
                code,
                about,
                _row(patches, alone),
                _row(scope, instead),
                _row(decoded, changed),
            ]
        ),
        draw,
    )


def _filling_panel(model: TokenCutSeg, words: exploration.TokenizedSet, choice: Choice) -> Panel:
    """A region of words is hidden; the transformer fills it in."""
    H, W = words.tokens.shape[1:]
    rows = IntRangeSlider(value=(H // 3, 2 * H // 3), min=0, max=H - 1, description="rows", continuous_update=False)
    columns = IntRangeSlider(
        value=(W // 3, 2 * W // 3), min=0, max=W - 1, description="columns", continuous_update=False
    )
    cell = _cell_sliders(choice, H, W)
    seen, filled, entropy = (
        Picture(name)
        for name in ("what the transformer sees", "what it fills in, decoded", "how unsure it is (entropy)")
    )
    about = HTML()

    def draw(_: Any = None) -> None:
        hidden = torch.zeros(H, W, dtype=torch.bool)
        hidden[rows.value[0] : rows.value[1] + 1, columns.value[0] : columns.value[1] + 1] = True
        result = inpaint(model, choice.image[None], hidden[None])
        truth, unsure, probabilities = result.tokens[0], result.entropy[0], result.probabilities[0]
        seen.show(choice.image.masked_fill(upsample_nearest(hidden, choice.image.shape[-1]), 0.5))
        filled.show(result.decoded[0])
        most = np.log(probabilities.shape[-1])
        entropy.show(_mapped(unsure / most))
        guesses = ", ".join(f"{code} ({p:.0%})" for code, p in exploration.likeliest(probabilities[choice.cell]))
        right = (result.filled[0] == truth)[hidden].float().mean()
        about.value = (
            f"{int(hidden.sum())} words hidden, {right:.0%} of them guessed exactly. Row {choice.cell[0]}, "
            f"column {choice.cell[1]}, {'hidden' if hidden[choice.cell] else 'seen'}, truly code "
            f"{int(truth[choice.cell])}: likeliest {guesses}; {unsure[choice.cell]:.2f} nats of at "
            f"most {most:.2f}."
        )

    for control in (rows, columns):
        control.observe(draw, "value")
    return Panel(VBox([_row(rows, columns), cell, about, _row(seen, filled, entropy)]), draw)


def _attention_panel(model: TokenCutSeg, words: exploration.TokenizedSet, choice: Choice) -> Panel:
    """Where a chosen word looks."""
    H, W = words.tokens.shape[1:]
    n_layer, n_head = len(model.masked_gpt.blocks), model.config.masked_gpt.n_head
    block = IntSlider(n_layer, 1, n_layer, description="block", continuous_update=False)
    head = Dropdown(options=[("mean of all", -1), *((str(i + 1), i) for i in range(n_head))], description="head")
    cell, about = _cell_sliders(choice, H, W), HTML()
    asked, looks = Picture("the word that asks"), Picture("where it looks")

    def draw(_: Any = None) -> None:
        maps = exploration.attention_map(model, choice.image, *choice.cell)[block.value - 1]
        weights = maps.mean(0) if head.value < 0 else maps[head.value]
        one = torch.zeros(H, W, dtype=torch.bool)
        one[choice.cell] = True
        asked.show(_lit(choice.image, one))
        looks.show(_mapped(weights / weights.max()))
        about.value = f"The strongest look is {weights.max() * weights.numel():.1f} times an even one."

    for control in (block, head):
        control.observe(draw, "value")
    return Panel(VBox([_row(block, head), cell, about, _row(asked, looks)]), draw)


def _cut_panel(model: TokenCutSeg, words: exploration.TokenizedSet, choice: Choice) -> Panel:
    """The graph's cut as its edges reach farther and the threshold moves."""
    radius = FloatSlider(2.6, min=0, max=6, step=0.2, description="radius", continuous_update=False)
    threshold = FloatSlider(0.5, min=0.05, max=0.95, step=0.05, description="threshold", continuous_update=False)
    about = HTML()
    tokens, pixels, outlined = (
        Picture(name) for name in ("lesion at the tokens", "lesion at the pixels", "the mask at this threshold")
    )

    def draw(_: Any = None) -> None:
        at_tokens, at_pixels = exploration.cut(model, choice.image, radius.value)
        mask = at_pixels > threshold.value
        tokens.show(_mapped(at_tokens))
        pixels.show(_mapped(at_pixels))
        outlined.show(_bordered(choice.image, mask, LIT))
        about.value = _scores(mask, choice.mask)

    for control in (radius, threshold):
        control.observe(draw, "value")
    return Panel(VBox([_row(radius, threshold), about, _row(tokens, pixels, outlined)]), draw)


def _mask_panel(model: TokenCutSeg, words: exploration.TokenizedSet, choice: Choice) -> Panel:
    """Prediction, reference and errors over the image."""
    layers = {
        name: Checkbox(value=value, description=name, indent=False)
        for name, value in (("prediction", True), ("reference", True), ("errors", False))
    }
    about, picture = HTML(), Picture("the image and what is drawn on it", side=2 * SIDE)

    def draw(_: Any = None) -> None:
        mask = model.predict_probabilities(choice.image[None])[0].argmax(0).bool()
        shown = choice.image
        if layers["errors"].value and choice.mask is not None:
            reference = choice.mask.bool()
            shown = _tinted(_tinted(shown, reference & ~mask, MISSED), mask & ~reference, TOO_MUCH)
        if layers["reference"].value and choice.mask is not None:
            shown = _bordered(shown, choice.mask.bool(), (255, 255, 255))
        if layers["prediction"].value:
            shown = _bordered(shown, mask, LIT)
        picture.show(shown)
        about.value = _scores(mask, choice.mask) + (
            " Prediction yellow, reference white; missed lesion blue, skin taken for lesion vermilion."
        )

    for control in layers.values():
        control.observe(draw, "value")
    return Panel(VBox([_row(*layers.values()), about, picture]), draw)


PANELS: dict[str, Callable[[Any, exploration.TokenizedSet, Choice], Panel]] = {
    "words": _words_panel,
    "filling": _filling_panel,
    "attention": _attention_panel,
    "cut": _cut_panel,
    "mask": _mask_panel,
}
TITLES = {
    "words": "TokenizedSet",
    "filling": "Filling in",
    "attention": "Attention",
    "cut": "The cut",
    "mask": "Mask and errors",
}


def _row(*parts: Widget) -> Widget:
    """Side by side as far as there is room."""
    return HBox(list(parts), layout=Layout(flex_flow="row wrap", align_items="flex-start"))


def _cell_sliders(choice: Choice, H: int, W: int) -> Widget:
    row = IntSlider(choice.cell[0], 0, H - 1, description="row", continuous_update=False)
    column = IntSlider(choice.cell[1], 0, W - 1, description="column", continuous_update=False)

    def moved(_: Any) -> None:
        choice.cell = (row.value, column.value)

    def follow(change: dict[str, Any]) -> None:
        row.value, column.value = change["new"]

    for slider in (row, column):
        slider.observe(moved, "value")
    choice.observe(follow, "cell")
    return _row(row, column)


# ---- pictures -----------------------------------------------------------------------------------------------------


class Picture(HTML):
    """A place for a picture, with its caption, which is its alternative text too."""

    def __init__(self, caption: str, side: int = SIDE) -> None:
        super().__init__(layout=Layout(width=f"{side + 8}px", flex="0 0 auto"))
        self.caption, self.side = escape(caption), side

    def show(self, picture: Tensor) -> None:
        """Put a picture, (3, h, w) in [0, 1] or uint8, into its place; small ones keep their pixels visible."""
        pixels = picture if picture.dtype == torch.uint8 else (picture.clamp(0, 1) * 255).round().byte()
        image = Pictures.fromarray(pixels.permute(1, 2, 0).numpy())
        times = max(1, self.side // max(image.size))
        buffer = io.BytesIO()
        image.resize((image.width * times, image.height * times), Pictures.Resampling.NEAREST).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        self.value = (
            f'<figure style="margin:0"><figcaption style="line-height:1.4;font-size:12px">{self.caption}'
            f'</figcaption><img alt="{self.caption}" width="{self.side}" src="data:image/png;base64,{data}">'
            "</figure>"
        )


def _lit(image: Tensor, cells: Tensor) -> Tensor:
    """The image, dark outside some cells (H, W)."""
    return image * torch.where(upsample_nearest(cells, image.shape[-1]), 1.0, 0.3)


def _mapped(values: Tensor) -> Tensor:
    """Values (H, W) in [0, 1] as colours (3, H, W)."""
    return torch.from_numpy(mpl.colormaps[SEQUENTIAL](values.numpy())[..., :3]).permute(2, 0, 1).float()


def _tinted(image: Tensor, where: Tensor, colour: tuple[int, int, int]) -> Tensor:
    return torch.where(where, 0.4 * image + 0.6 * torch.tensor(colour)[:, None, None] / 255, image)


def _bordered(image: Tensor, mask: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """The image with a mask's inner border, one pixel wide."""
    outside = torch.nn.functional.max_pool2d(~mask[None].bool() * 1.0, 3, 1, 1)[0] > 0
    return torch.where(mask & outside, torch.tensor(colour)[:, None, None] / 255, image)


def _sheet(patches: Tensor, columns: int = 8) -> Tensor:
    """Patches (n, 3, h, w) side by side with a white gap: uint8 (3, rows·(h + 1), columns·(w + 1))."""
    n, _, h, w = patches.shape
    rows = max(1, -(-n // columns))
    sheet = torch.full((rows * columns, 3, h + 1, w + 1), 255, dtype=torch.uint8)
    sheet[:n, :, :h, :w] = patches
    return sheet.view(rows, columns, 3, h + 1, w + 1).permute(2, 0, 3, 1, 4).reshape(3, rows * (h + 1), -1)


def _scores(mask: Tensor, reference: Tensor | None) -> str:
    """What there is to say of a prediction (S, S) bool."""
    share = f"{mask.float().mean():.0%} of the image is taken for lesion."
    if reference is None:
        return f"{share} There is no reference mask."
    record = score(mask[None], reference[None], ["shown"], boundary=False).iloc[0]
    return f"{share} Lesion IoU {record.iou:.3f}, Dice {record.dice:.3f}."
