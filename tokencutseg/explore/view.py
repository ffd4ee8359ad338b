"""What the explorer looks at: an image of a set, or an own one, and one of its tokens."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ipywidgets as w
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError, read_image
from tokencutseg.explore import queries
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN

LARGEST_UPLOAD = 50_000_000
"""Bytes of an own image: several photographs of a phone."""


class View:
    """What is being looked at: an image with its mask and tokens, and one of these, at (row, column) `at`."""

    def __init__(self, model: TokenCutSeg | VQGAN, images: ImageSet) -> None:
        self.model, self.images, self.draw, self.changing = model, images, lambda: None, False
        self.vqgan = model if isinstance(model, VQGAN) else model.vqgan
        self.codebook_size = self.vqgan.quantize.codebook_size
        self.set = queries.tokenize_set(self.vqgan, images)
        self.table = None if images.masks is None else queries.code_region_table(self.set)
        self.grid = H, W = tuple(self.set.tokens.shape[1:])
        self.index = self.slider(w.IntSlider, 0, 0, len(images) - 1, self.open, description="image")
        self.name, self.at = w.HTML(), (H // 2, W // 2)
        self.open()

    @contextmanager
    def once(self) -> Iterator[None]:
        """Changes within are drawn once, at the end."""
        outer, self.changing = self.changing, True
        yield
        self.changing = outer
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
        options |= {"continuous_update": False, "style": {"description_width": "initial"}}
        options["layout"] = w.Layout(width="380px")
        return self.watch(kind(value=value, min=low, max=high, **options), act)

    @property
    def code(self) -> int:
        """That of the chosen token."""
        return int(self.tokens[self.at])

    def choose(self, row: int, column: int) -> None:
        """Look at another token of the image."""
        with self.once():
            self.at = row, column

    def with_code(self, code: int) -> list[int]:
        """The images of the set that have a code, those with most of its cells first."""
        counts = (self.set.tokens == code).sum((1, 2))
        return counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()

    def seek(self, code: int, region: str = "") -> None:
        """Look at a code where it is used most, on a region if it is there; where it is chosen already, at its next
        image."""
        found, here = self.with_code(code), -1 if self.own else self.index.value
        n = found[(found.index(here) + 1) % len(found)] if code == self.code and here in found else found[0]
        with self.once():
            self.index.value = n
            self.open()  # after an own image, too
            cells = self.tokens == code
            if region and (on := cells & (self.set.regions[n] == queries.REGIONS.index(region))).any():
                cells = on
            self.at = divmod(int(self.set.distances[n].masked_fill(~cells, torch.inf).argmin()), self.grid[1])

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
                photo = Image.fromarray(read_image(file))
            except DataError as error:
                raise DataError(str(error).replace(f"{folder}{os.sep}", "")) from error
        side = self.images.images.shape[-1]
        fill = tuple(np.median(np.asarray(photo.resize((64, 64))), (0, 1)).astype(int).tolist())
        square = np.array(ImageOps.pad(photo, (side, side), color=fill))
        self.show(torch.from_numpy(square).permute(2, 0, 1).float() / 255, None, name, own=True)

    def show(self, image: Tensor, mask: Tensor | None, name: str, own: bool = False) -> None:
        with self.once():
            self.image, self.mask, self.own, self.name.value = image, mask, own, escape(name)
            self.tokens = self.vqgan.tokenize(image[None])[0]

    def chosen(self) -> Tensor:
        """(H, W) bool, True at the chosen token."""
        chosen = torch.zeros(self.grid, dtype=torch.bool)
        chosen[self.at] = True
        return chosen
