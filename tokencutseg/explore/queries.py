"""Questions to a model: where its codes lie, what they decode to, and what a cut changes."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError
from tokencutseg.data.source import open_source
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.evaluation.inspection import sample_token_masks
from tokencutseg.files import read_csv
from tokencutseg.models.checkpoint import PRETRAINED, read_metrics, stage_and_config
from tokencutseg.models.deepcut import DeepCut
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN

REGIONS = ("skin", "border", "lesion")
"""Where a token's cell lies: less than a tenth of it is lesion, in between, more than nine tenths."""


@dataclass(frozen=True)
class TokenizedSet:
    """The tokens of N images on a grid of H × W cells of f × f pixels."""

    images: Tensor
    """uint8 (N, 3, S, S)."""
    tokens: Tensor
    """(N, H, W) int64."""
    distances: Tensor
    """(N, H, W), Euclidean, from a cell's latent vector to its code."""
    regions: Tensor | None
    """(N, H, W) int64, index into `REGIONS`; None for images without masks."""


@torch.no_grad()
def tokenize_set(vqgan: VQGAN, images: ImageSet, batch_size: int = 32) -> TokenizedSet:
    """The tokens of all images of a set. The tokenizer must be in evaluation mode, as `tokencutseg.load` gives it."""
    tokens, distances = [], []
    for chunk in images.images.split(batch_size):
        latents = vqgan.encode(vqgan.normalise(chunk.float() / 255))
        tokens.append(vqgan.quantize(latents).tokens)
        distances.append((latents - vqgan.quantize.lookup(tokens[-1])).norm(dim=1))
    regions = None
    if images.masks is not None:
        share = downsample_mask(images.masks, tuple(tokens[0].shape[1:]))
        regions = (share >= 0.1).long() + (share > 0.9).long()
    return TokenizedSet(images.images, torch.cat(tokens), torch.cat(distances), regions)


def code_region_table(tokenized: TokenizedSet) -> pd.DataFrame:
    """One row per code in use: code, cells (how many have it), and the share of them on skin, border and lesion.

    Raises ValueError for images without masks.
    """
    if tokenized.regions is None:
        raise ValueError("the regions of codes can be counted only on images with masks")
    region = np.array(REGIONS)[tokenized.regions.flatten()]
    counts = pd.crosstab(tokenized.tokens.flatten().numpy(), region).reindex(columns=REGIONS, fill_value=0)
    cells = counts.sum(axis=1)
    return counts.div(cells, axis=0).assign(cells=cells).rename_axis("code").reset_index()[["code", "cells", *REGIONS]]


def rank_codes(table: pd.DataFrame, region: str) -> pd.DataFrame:
    """The rows of a `code_region_table`, most on `region` first, with `ratio`, the share there over that of all cells.

    Codes with fewer cells than `fewest` are left out.
    """
    cells = table["cells"]
    overall = (table[region] * cells).sum() / cells.sum()
    common = table[cells >= fewest(table)]
    return common.assign(ratio=common[region] / overall).sort_values([region, "cells"], ascending=False)


def fewest(table: pd.DataFrame) -> int:
    """Of cells that a ranked code has: 5, or one in a thousand of all. A share of a handful means little."""
    return max(5, math.ceil(table["cells"].sum() / 1000))


def ranking_sentence(table: pd.DataFrame, region: str) -> str:
    """The answer to "which codes lie on this region?" in one sentence made from `rank_codes`."""
    ranked = rank_codes(table, region)
    if not len(ranked):
        return "No code has enough cells for a ranking on these images."
    if not ranked[region].any():
        return f"No cell of a common code lies on {region} in these images."
    best, most = ranked.iloc[0], int((ranked[region] > 0.5).sum())
    share = f"{best[region]:.0%} of its {best.cells:.0f} cells, {best.ratio:.1f} times the share of all cells"
    more = f"{most or 'None'} of the {len(ranked)} codes with {fewest(table)} cells or more has over half there."
    return f"Most on {region}: code {best.code:.0f}, with {share}. {more}"


def code_patches(tokenized: TokenizedSet, code: int, count: int = 8) -> list[Tensor]:
    """The cells nearest to a code that it stands for, at most `count`, each with its neighbours: uint8 (3, 3f, 3f)."""
    where = (tokenized.tokens == code).nonzero()  # (n, 3): image, row, column
    order = tokenized.distances[tuple(where.T)].argsort(stable=True)[:count]
    grid = tuple(tokenized.tokens.shape[1:])
    return [neighbourhood(tokenized.images[n].float(), grid, y, x).byte() for n, y, x in where[order].tolist()]


def neighbourhood(image: Tensor, grid: tuple[int, int], y: int, x: int) -> Tensor:
    """A cell of an image (3, S, S) with its eight neighbours, the image's rim continued: (3, 3f, 3f)."""
    f = image.shape[-1] // grid[1]
    padded = F.pad(image, (f, f, f, f), mode="replicate")
    return padded[:, y * f : (y + 3) * f, x * f : (x + 3) * f]


def decode_code(vqgan: VQGAN, code: int) -> Tensor:
    """What a code decodes to among its likes: the middle cell of a square of 5 × 5, (3, f, f) in [0, 1]."""
    decoded = vqgan.detokenize(torch.full((1, 5, 5), code))[0]
    f = decoded.shape[-1] // 5
    return decoded[:, 2 * f : 3 * f, 2 * f : 3 * f]


@torch.no_grad()
def cut(model: TokenCutSeg, image: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The lesion's probability at the tokens (H, W) and at the pixels (S, S), with edges up to `radius` cells.

    A model without the graph module is the same at any radius.
    """
    head = model.head
    if isinstance(head, DeepCut):
        model.head = copy.copy(head)  # of the same weights
        model.head.config = dataclasses.replace(head.config, graph_radius=radius, radius_unit="cells")
    try:
        out = model(image[None])
    finally:
        model.head = head
    return out.assignments[0, :, 1].view(model.grid(image)), out.probabilities[0, 1]


def radius_in_cells(model: TokenCutSeg) -> float:
    """The radius that the model was trained with, in cells of its token grid."""
    config = model.config.segmentation
    return config.graph_radius * (model.config.grid_size - 1 if config.radius_unit == "image" else 1)


def find_model(path: str | Path = "") -> Path:
    """The folder of the model to explore: the packaged one by default, a study's main run for a study's folder.

    Raises DataError for a study without main results of the method.
    """
    folder = Path(path) if path else PRETRAINED
    if not (folder / "tables").is_dir():
        return folder
    try:
        results = read_csv(folder / "tables" / "main_results.csv")
    except (FileNotFoundError, ValueError):
        raise DataError(f"{folder} has no main results yet: run notebook 04, or name the folder of a run") from None
    try:
        runs = results.loc[results["method"] == "tokencutseg", "runs"].dropna().str.split().explode()
        return folder.parent / "runs" / runs[runs.str.startswith("segmentation")].iloc[0]
    except (LookupError, AttributeError):  # no such column, no such row, or no texts in it
        raise DataError(f"the main results of {folder} name no run of tokencutseg; name the folder of a run") from None


def describe(path: Path) -> str:
    """Which model lies at `path`, what it was trained on, and its validation score where that is known."""
    (stage, config), metrics = stage_and_config(path), read_metrics(path)
    name = "the one that comes with the package" if path == PRETRAINED else f"{path.parent.name}/{path.name}"
    text = f"{name}: {stage}, recipe {config.recipe}, preset {config.preset}, {config.data.image_size} pixels."
    if images := metrics.get("training_images"):
        text += f" Trained on {images:,} {'masks' if 'best_score' in metrics else 'images'}."
    if "best_score" in metrics:
        text += f" IoU on its validation images: {metrics['best_score']:.3f}."
    if stage == "masked_gpt":
        text += " It has not learned to segment: what it cuts is chance."
    return f"Model: {text}"


@torch.no_grad()
def masked_accuracy(model: TokenCutSeg, images: ImageSet, most: int = 16) -> str:
    """One sentence: how often the model predicts masked tokens of a set, a quarter of them masked in blocks."""
    x, grid = images.images[:most].float() / 255, model.grid(images.images)
    mask = sample_token_masks(model.config.masked_gpt, "block", 0.25, grid, len(x)).flatten(1)
    tokens, logits = model.predict_masked(x, mask)
    truth = tokens.flatten(1)[mask]
    right = (logits[..., : model.masked_gpt.codebook_size].argmax(-1)[mask] == truth).float().mean()
    chance = (truth == truth.mode().values).float().mean()
    text = f"Over {len(x)} images with a quarter masked it is {right:.0%}; always the commonest code: {chance:.0%}."
    if right <= chance:
        text += " This model cannot do it (fine-tuned on masks?); --model with a run masked_gpt-… shows one that can."
    return text


def images_for(model: TokenCutSeg, data: str = "", most: int = 200) -> ImageSet:
    """Images of the model's size to look at: a test split of the folder `data` (else the first split with masks), or of
    the synthetic lesions where none is named. Raises DataError as `open_source` does."""
    source = open_source(data, model.config.override({"data.synthetic_test": most}))
    splits = [(source.primary, split) for split in ("test", "validation", "train")]
    images = source.load(*next(pair for pair in splits if source.has(*pair)))
    return images.subset(range(min(most, len(images))))


def check(model: str | Path = "", data: str = "") -> None:
    """Raise DataError for what the explorer cannot show: no model or one without tokens, or data that `open_source`
    refuses. No image is read."""
    path = find_model(model)
    stage, config = stage_and_config(path)
    if stage == "baseline":
        raise DataError(f"{path} is a baseline, without tokens; name a run vqgan-…, masked_gpt-… or segmentation-…")
    if data:
        open_source(data, config)
