"""What the explorer asks of a model: where codes fire, what they paint, and what changes when they change."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.source import open_source
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.models.checkpoint import PRETRAINED, saved_config, saved_stage
from tokencutseg.models.deepcut import DeepCut
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots.transformer import attention
from tokencutseg.report.notebooks import ROOT

REGIONS = ("skin", "border", "lesion")
"""Where a cell lies: less than a tenth of it lesion, in between, more than nine tenths."""


@dataclass(frozen=True)
class TokenizedSet:
    """The words of N images on a grid of H × W cells of f × f pixels."""

    images: Tensor
    """uint8 (N, 3, S, S)."""
    tokens: Tensor
    """(N, H, W) int64."""
    distances: Tensor
    """(N, H, W), Euclidean, from what the encoder says of a cell to the code that stands for it."""
    places: Tensor | None
    """(N, H, W) int64, index into `REGIONS`; None for images without masks."""

    @property
    def cell(self) -> int:
        """f, in pixels."""
        return self.images.shape[-1] // self.tokens.shape[-1]


@torch.no_grad()
def tokenize_set(vqgan: VQGAN, images: ImageSet, batch_size: int = 32) -> TokenizedSet:
    """The words of all images of a set. The tokenizer is in evaluation mode, as `tokencutseg.load` gives it."""
    parts, distances = [], []
    for chunk in images.images.split(batch_size):
        latents = vqgan.encode(vqgan.normalise(chunk.float() / 255)).latents
        parts.append(vqgan.quantize(latents).tokens)
        distances.append((latents - vqgan.quantize.lookup(parts[-1])).norm(dim=1))
    tokens = torch.cat(parts)
    places = None if images.masks is None else regions_of(images.masks, tuple(tokens.shape[1:]))
    return TokenizedSet(images.images, tokens, torch.cat(distances), places)


def regions_of(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks (N, S, S) → where each cell lies, (N, H, W) int64 index into `REGIONS`."""
    share = downsample_mask(masks, grid)
    return (share >= 0.1).long() + (share > 0.9).long()


def code_region_table(words: TokenizedSet, codebook_size: int) -> pd.DataFrame:
    """One row per code that fires: code, fires (cells), and the share of them on skin, border and lesion.

    Raises ValueError for images without masks.
    """
    if words.places is None:
        raise ValueError("where codes fire can be told only of images with masks")
    counts = torch.bincount((words.tokens * 3 + words.places).flatten(), minlength=3 * codebook_size).view(
        codebook_size, 3
    )
    fires = counts.sum(1)
    shares = (counts / fires[:, None].clamp(min=1)).numpy()
    table = pd.DataFrame(
        {
            "code": range(codebook_size),
            "fires": fires.numpy(),
            **{place: shares[:, i] for i, place in enumerate(REGIONS)},
        }
    )
    return table[table["fires"] > 0].reset_index(drop=True)


def code_patches(words: TokenizedSet, code: int, count: int = 24, around: int = 1) -> tuple[Tensor, Tensor]:
    """The cells that a code stands for, nearest to it first, with `around` cells on each side.

    Returns uint8 (n, 3, (2·around + 1)·f, …) with n ≤ `count`, and their distances (n,).
    """
    where = (words.tokens == code).nonzero()  # (n, 3): image, row, column
    distances = words.distances[tuple(where.T)]
    order = distances.argsort(stable=True)[:count]
    f, margin = words.cell, around * words.cell
    patches = []
    for n, y, x in where[order].tolist():
        padded = F.pad(words.images[n].float()[None], (margin,) * 4, mode="replicate")[0]
        patches.append(padded[:, y * f : y * f + f + 2 * margin, x * f : x * f + f + 2 * margin])
    empty = torch.zeros(0, 3, f + 2 * margin, f + 2 * margin)
    return (torch.stack(patches) if patches else empty).byte(), distances[order]


@torch.no_grad()
def decode_code(vqgan: VQGAN, code: int, cells: int = 5) -> Tensor:
    """What a code decodes to among its likes: the middle cell of a square of it, (3, f, f) in [0, 1]."""
    back = vqgan.detokenize(torch.full((1, cells, cells), code))[0]
    f = back.shape[-1] // cells
    middle = slice(cells // 2 * f, cells // 2 * f + f)
    return back[:, middle, middle]


@torch.no_grad()
def decode_with_replacement(vqgan: VQGAN, tokens: Tensor, where: Tensor, code: int) -> Tensor:
    """The image (3, S, S) in [0, 1] that words (H, W) decode to when those at `where` (H, W) bool become `code`."""
    return vqgan.detokenize(tokens.masked_fill(where, code)[None])[0]


def likeliest(probabilities: Tensor, count: int = 5) -> list[tuple[int, float]]:
    """The likeliest codes of a word with their probabilities, from those of all codes (K,)."""
    top = probabilities.topk(min(count, len(probabilities)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def attention_map(model: TokenCutSeg, image: Tensor, row: int, column: int) -> Tensor:
    """How much a word of an image (3, S, S) looks at each other: (n_layer, n_head, H, W), each map adding up to 1."""
    return attention(model, image, torch.tensor([row * model.grid(image)[1] + column]))[:, :, 0]


@torch.no_grad()
def cut(model: TokenCutSeg, image: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The lesion's probability at the tokens (H, W) and at the pixels (S, S), with edges up to `radius` cells.

    A model without the graph module is the same at any radius.
    """
    own = model.head
    if isinstance(own, DeepCut):
        model.head = copy.copy(own)  # of the same weights
        model.head.config = dataclasses.replace(own.config, graph_radius=radius, radius_unit="cells")
    try:
        out = model(image[None])
    finally:
        model.head = own
    return out.assignments[0, :, 1].view(model.grid(image)), out.probabilities[0, 1]


def find_model(path: str | Path = "", results: Path = ROOT / "results") -> tuple[Path, str]:
    """The model to explore, and a sentence that says which it is and how to get a better one.

    It is the one at `path`; where none is named, the segmenter under `results` that was trained last; where there is
    none, the one that comes with the package.
    """
    if path:
        return Path(path), f"The model is {path}."
    trained = sorted(results.glob("*/runs/segmentation-*/metrics.json"), key=lambda file: file.stat().st_mtime)
    if trained:
        folder = trained[-1].parent
        return folder, (
            f"The model is the segmenter trained last, {folder.relative_to(results.parent)}; `tokencutseg "
            f"explore --model RUN` takes another one."
        )
    return PRETRAINED, (
        "The model is the one that comes with the package. A better one takes more training: "
        "`./run_all.sh --preset full --data DIR` on a GPU; then `tokencutseg explore --model RUN`."
    )


def remark(path: Path) -> str:
    """What to know of the model at `path` when looking at it; empty where there is nothing."""
    config = saved_config(path).segmentation
    if saved_stage(path) != "segmentation" or config.frozen_transformer or config.mlm_weight > 0:
        return ""
    return (
        "Its transformer was trained on with lesion masks and has mostly forgotten how to fill in words; the panel "
        "Filling in shows more with --model results/STUDY/runs/masked_gpt-…."
    )


def images_for(model: TokenCutSeg, data: str = "", most: int = 200) -> ImageSet:
    """Images of the model's size to look at: a test split of the folder `data` (else the first split with masks), or of
    the synthetic lesions where none is named. Raises DataError as `open_source` does."""
    source = open_source(data, model.config.override({"data.synthetic_test": most}))
    splits = [(source.primary, split) for split in ("test", "validation", "train")]
    images = source.load(*next(pair for pair in splits if source.has(*pair)))
    return images.subset(range(min(most, len(images))))
