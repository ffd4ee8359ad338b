"""What features know before anybody fine-tunes them: a linear probe and the graph head on frozen features.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from tokencutseg.config import SegmentationConfig
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.evaluation.per_image import confusion, overlap
from tokencutseg.evaluation.statistics import interval
from tokencutseg.models.deepcut import DeepCut
from tokencutseg.models.losses import dice_loss
from tokencutseg.models.tokencutseg import TokenCutSeg

FEATURE_BYTES = 2**32
"""Most memory that the features of several layers take at once; one layer alone may take more."""


def layer_names(model: TokenCutSeg) -> list[str]:
    """The layers that `layer_features` knows of a model, from pixels to output."""
    blocks = [f"block {i + 1}" for i in range(len(model.masked_gpt.blocks))]
    return ["colour", "tokenizer", "code", "embedding", *blocks, "output"]


def layers_in_turn(model: TokenCutSeg, names: Sequence[str], *sets: ImageSet) -> Iterator[tuple[str, list[Tensor]]]:
    """Each named layer with its features on every set of images, as `layer_features` gives them; in one pass over the
    images as many layers as `FEATURE_BYTES` hold."""
    config = model.config
    width = max(config.vqgan.code_dim, config.masked_gpt.d_model)
    one = 4 * width * config.grid_size**2 * sum(map(len, sets))
    many = max(1, FEATURE_BYTES // one)
    for first in range(0, len(names), many):
        part = names[first : first + many]
        found = [layer_features(model, images, part) for images in sets]
        for name in part:
            yield name, [features.pop(name) for features in found]


@torch.no_grad()
def layer_features(
    model: TokenCutSeg, images: ImageSet, names: Sequence[str] | None = None, batch_size: int = 32
) -> dict[str, Tensor]:
    """Frozen features at the token grid, by name, each (N, T, E): the raw colour of a cell, the tokenizer's latents,
    its code, and the transformer's embedding, blocks and output; or only those of some `names`."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names or layer_names(model)}
    for chunk in images.images.split(batch_size):
        x = chunk.float() / 255
        words = tokens, encoding = model.encode_to_tokens(x)
        grid = tuple(tokens.shape[1:])
        read = model.encode(x, words).encoding.latents.flatten(2).transpose(1, 2)
        features = {
            "colour": torch.nn.functional.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2),
            "tokenizer": encoding.latents.flatten(2).transpose(1, 2),
            "code": model.vqgan.quantize.lookup(tokens).flatten(2).transpose(1, 2),
        }
        states = model.masked_gpt.hidden_states(tokens.flatten(1), read, grid=grid)
        features |= zip(layer_names(model)[3:], states, strict=True)
        for name, values in parts.items():
            values.append(features[name])
    return {name: torch.cat(values) for name, values in parts.items()}


@torch.no_grad()
def decoder_features(baseline: nn.Module, images: ImageSet, grid: tuple[int, int], batch_size: int = 32) -> Tensor:
    """What a baseline network's last layer reads, averaged over each token's cell: (N, T, E)."""
    from tokencutseg.models.baselines import padding  # segmentation_models_pytorch is slow to import

    found: list[Tensor] = []
    head = baseline.network.network.segmentation_head
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


def token_labels(images: ImageSet, grid: tuple[int, int]) -> Tensor:
    """Lesion or skin for each token, by majority of its cell's pixels: (N, T) bool."""
    return downsample_mask(images.masks, grid).flatten(1) > 0.5


def linear_probe(features: Tensor, labels: Tensor, test_features: Tensor, most: int = 20_000) -> np.ndarray:
    """Logistic regression from (N, T, E) features to (N, T) lesion labels: its margins for other images' tokens,
    (M, T), lesion where positive. At most `most` training tokens are used, evenly spaced."""
    keep = torch.linspace(0, labels.numel() - 1, min(most, labels.numel())).long()
    x, y = features.flatten(0, 1)[keep].double().numpy(), labels.flatten()[keep]
    scaler = StandardScaler().fit(x)
    # few features and many tokens: Newton's method converges in a few steps, where L-BFGS may not
    probe = LogisticRegression(solver="newton-cholesky", class_weight="balanced")
    probe.fit(scaler.transform(x), y)
    return np.concatenate(
        [
            probe.decision_function(scaler.transform(part.flatten(0, 1).double().numpy())).reshape(part.shape[:2])
            for part in test_features.split(32)
        ]
    )


def graph_probe(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    grid: tuple[int, int],
    config: SegmentationConfig,
    steps: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """The graph head, trained on frozen (N, T, E) features with cross-entropy and Dice; gives what `linear_probe`
    does."""
    torch.manual_seed(seed)
    flat = features.flatten(0, 1)
    mean, deviation = flat.mean(0), flat.std(0) + 1e-6
    head = DeepCut(config, features.shape[-1])
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(features), (min(16, len(features)),), generator=generator)
        logits = head((features[index] - mean) / deviation, grid)
        target = labels[index].long()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target)
        probabilities = logits.softmax(-1).transpose(1, 2).unflatten(2, grid)
        loss = loss + dice_loss(probabilities, target.unflatten(1, grid), class_weighted=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        logits = torch.cat([head((part - mean) / deviation, grid) for part in test_features.split(32)])
    return (logits[..., 1] - logits[..., 0]).numpy()


def probe_scores(
    margins: np.ndarray, labels: Tensor, draws: int = 10_000, clusters: Sequence[str] | None = None
) -> dict[str, float | int]:
    """Margins (M, T) of a probe against (M, T) lesion labels, pooled over tokens; margins (D, M, T) are those of D
    probes, and pooled over these too.

    Gives `balanced_accuracy` with its bootstrap 95 % interval (`low`, `high`), `iou` of the token masks (`iou_low`,
    `iou_high`), `auc`, and `n`, the tokens, each once. The intervals come from drawing whole images, or whole
    `clusters` (M,) of them.
    """
    counts = token_counts(margins, labels)
    low, high = interval(counts, _balanced_accuracy, draws, labels=clusters)
    iou_low, iou_high = interval(counts, _iou, draws, labels=clusters)
    return {
        "balanced_accuracy": float(_balanced_accuracy(counts.sum(0))),
        "low": low,
        "high": high,
        "iou": float(_iou(counts.sum(0))),
        "iou_low": iou_low,
        "iou_high": iou_high,
        "auc": float(roc_auc_score(np.broadcast_to(labels.numpy(), margins.shape).ravel(), margins.ravel())),
        "n": labels.numel(),
    }


def iou_difference(
    margins: np.ndarray, others: np.ndarray, labels: Tensor, draws: int = 10_000, clusters: Sequence[str] | None = None
) -> dict[str, float]:
    """How far the pooled token IoU of `margins` is above that of `others` on the same images: `diff` with its paired
    95 % interval, `diff_low` and `diff_high`."""
    counts = np.concatenate([token_counts(one, labels) for one in (margins, others)], 1)

    def diff(sums: np.ndarray) -> np.ndarray:
        return _iou(sums[..., :4]) - _iou(sums[..., 4:])

    low, high = interval(counts, diff, draws, labels=clusters)
    return {"diff": float(diff(counts.sum(0))), "diff_low": low, "diff_high": high}


def token_counts(margins: np.ndarray, labels: Tensor) -> np.ndarray:
    """Tokens of each image that are tp, fp, fn, tn, under all probes together: (M, 4)."""
    return confusion(margins > 0, labels.numpy(), -1).reshape(4, -1, len(labels)).sum(1).T


def _balanced_accuracy(counts: np.ndarray) -> np.ndarray:
    """Of counts (..., 4): tp, fp, fn, tn. A class without tokens counts as right."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    return (overlap(tp, fn, 0, "iou") + overlap(tn, fp, 0, "iou")) / 2


def _iou(counts: np.ndarray) -> np.ndarray:
    """The lesion's, of counts (..., 4): tp, fp, fn, tn."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return overlap(tp, fp, fn, "iou")
