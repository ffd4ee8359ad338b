"""Probes of frozen features: a linear probe and the graph head, trained on the features alone.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from tokencutseg.config import SegmentationConfig
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.evaluation.per_image import COUNTS, confusion, overlap
from tokencutseg.evaluation.statistics import interval, summarise
from tokencutseg.models.baselines import padding
from tokencutseg.models.decoder import upsample
from tokencutseg.models.deepcut import DeepCut
from tokencutseg.models.encoders import build_lite0
from tokencutseg.models.losses import dice_loss
from tokencutseg.models.tokencutseg import TokenCutSeg

MOST_TOKENS = 20_000
"""Training tokens of a linear probe, evenly spaced, at most."""
GRAPH_STEPS = 100


def layer_names(model: TokenCutSeg) -> list[str]:
    """The layers that `layer_features` knows of a model, from pixels to output."""
    blocks = [f"block {i + 1}" for i in range(len(model.masked_gpt.blocks))]
    return ["colour", "tokenizer", "code", "embedding", *blocks, "output"]


@torch.no_grad()
def layer_features(
    model: TokenCutSeg, images: ImageSet, names: Sequence[str] | None = None, batch_size: int = 32
) -> dict[str, Tensor]:
    """Frozen features at the token grid, by name (those of `layer_names`, or some of them), each (N, T, E).

    The mean colour of a token's pixels, the tokenizer's latents, its code, and the transformer's embedding, blocks and
    output. In half precision, since there are many: 5 GB for all layers of 900 images at preset full.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in names or layer_names(model)}
    for chunk in images.images.split(batch_size):
        x = chunk.float() / 255
        tokens, latents = model.encode_to_tokens(x)
        grid = tuple(tokens.shape[1:])
        colour = torch.nn.functional.adaptive_avg_pool2d(x, grid)
        maps = (colour, latents, model.vqgan.quantize.lookup(tokens))
        inputs = [values.flatten(2).transpose(1, 2) for values in maps]
        states = model.masked_gpt.hidden_states(tokens.flatten(1), inputs[1], grid=grid)
        features = dict(zip(layer_names(model), (*inputs, *states), strict=True))
        for name, values in parts.items():
            values.append(features[name].half())
    return {name: torch.cat(values) for name, values in parts.items()}


@torch.no_grad()
def decoder_features(baseline: nn.Module, images: ImageSet, grid: tuple[int, int], batch_size: int = 32) -> Tensor:
    """The input of a baseline network's last layer, averaged over each token's pixels: (N, T, E)."""
    found: list[Tensor] = []
    head = baseline.network.segmentation_head
    hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    (H, W), parts = images.images.shape[-2:], []
    left, right, top, bottom = padding(H, W)
    for chunk in images.images.split(batch_size):
        baseline(chunk.float() / 255)
        features = found.pop()  # of the padded image, at its size or at a part of it
        y, x = features.shape[-2] / (H + top + bottom), features.shape[-1] / (W + left + right)
        own = features[..., round(y * top) : round(y * (top + H)), round(x * left) : round(x * (left + W))]
        parts.append(torch.nn.functional.adaptive_avg_pool2d(own, grid).flatten(2).transpose(1, 2))
    hook.remove()
    return torch.cat(parts)


@torch.no_grad()
def imagenet_features(images: ImageSet, grid: tuple[int, int], batch_size: int = 32) -> Tensor:
    """What EfficientNet-Lite0 from ImageNet makes of images, from the tokens' grid to the coarsest, up-sampled to that
    grid and joined: (N, T, E)."""
    encoder, parts = build_lite0().eval(), []
    for chunk in images.images.split(batch_size):
        levels = [level for level in encoder(chunk.float() / 127.5 - 1)[1:] if level.shape[-2] <= grid[0]]
        parts.append(torch.cat([upsample(level, grid) for level in levels], 1).flatten(2).transpose(1, 2).half())
    return torch.cat(parts)


def token_labels(images: ImageSet, grid: tuple[int, int]) -> Tensor:
    """Lesion or skin for each token, by majority of its pixels: (N, T) bool."""
    return downsample_mask(images.masks, grid).flatten(1) > 0.5


def train_linear_probe(features: Tensor, labels: Tensor, test_features: Tensor) -> np.ndarray:
    """Train a logistic regression from (N, T, E) features to (N, T) lesion labels; gives its lesion scores for the
    tokens of other images, (M, T), lesion where positive. From tokens of one class it learns to give that class."""
    keep = torch.linspace(0, labels.numel() - 1, min(MOST_TOKENS, labels.numel())).long()
    if len(classes := labels.flatten()[keep].unique()) == 1:
        name, other = ("lesion", "skin") if classes else ("skin", "lesion")
        warnings.warn(f"no token of the training images is mostly {other}: probes call all {name}", stacklevel=2)
        return np.full(test_features.shape[:2], 1.0 if classes else -1.0)
    # few features and many tokens: Newton's method converges in a few steps, where L-BFGS may not
    regression = LogisticRegression(solver="newton-cholesky", class_weight="balanced")
    probe = make_pipeline(StandardScaler(), regression)
    probe.fit(features.flatten(0, 1)[keep].double().numpy(), labels.flatten()[keep])
    flat = (part.flatten(0, 1).double().numpy() for part in test_features.split(32))
    return np.concatenate([probe.decision_function(part) for part in flat]).reshape(test_features.shape[:2])


def train_graph_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, grid: tuple[int, int], config: SegmentationConfig
) -> np.ndarray:
    """Train the graph head on frozen (N, T, E) features with cross-entropy and Dice, for `GRAPH_STEPS` of 16 images;
    gives what `train_linear_probe` does."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    flat = features.flatten(0, 1).float()
    mean, deviation = flat.mean(0), flat.std(0) + 1e-6
    head = DeepCut(config, features.shape[-1])
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.01)
    for _ in range(GRAPH_STEPS):
        index = torch.randint(len(features), (min(16, len(features)),), generator=generator)
        logits = head((features[index] - mean) / deviation, grid).transpose(1, 2)  # (B, 2, T)
        target = labels[index].long()
        dice = dice_loss(logits.softmax(1).unflatten(2, grid), target.unflatten(1, grid), class_weighted=False)
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(logits, target) + dice).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        logits = torch.cat([head((part - mean) / deviation, grid) for part in test_features.split(32)])
    return (logits[..., 1] - logits[..., 0]).numpy()


def token_records(lesion_scores: np.ndarray, labels: Tensor, units: Sequence | None = None) -> pd.DataFrame:
    """Lesion scores of a probe (M, T) against (M, T) lesion labels: one row per image, to be summarised under micro
    reductions. Columns id (its index), tp, fp, fn, tn (tokens), and cluster where `units` (M,) are drawn together."""
    counts = confusion(lesion_scores > 0, labels.numpy(), -1)
    records = pd.DataFrame({"id": range(len(labels)), **dict(zip(COUNTS, counts, strict=True))})
    return records if units is None else records.assign(cluster=list(units))


def token_scores(records: pd.DataFrame, draws: int = 10_000) -> dict[str, float]:
    """`balanced_accuracy` of `token_records` with its bootstrap 95 % interval over images (`low`, `high`), NaN where
    all tokens are of one class, and `iou` of the token masks (`iou_low`, `iou_high`)."""
    counts, units = records[list(COUNTS)].to_numpy(float), records.get("cluster")
    (tp, fp, fn, tn), iou = counts.sum(0), summarise(records, "micro_lesion", "iou", draws)
    found = dict.fromkeys(("balanced_accuracy", "low", "high"), math.nan)
    if tp + fn and fp + tn:
        low, high = interval(counts, _balanced_accuracy, draws, units=units)
        found = {"balanced_accuracy": float(_balanced_accuracy(counts.sum(0))), "low": low, "high": high}
    return found | {"iou": iou.mean, "iou_low": iou.low, "iou_high": iou.high}


def _balanced_accuracy(counts: np.ndarray) -> np.ndarray:
    """Of counts (..., 4): tp, fp, fn, tn. A class without tokens counts as right."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    return (overlap(tp, fn * 0, fn, "iou") + overlap(tn, fp * 0, fp, "iou")) / 2
