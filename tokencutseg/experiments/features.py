"""What frozen features are worth: two heads trained on the same ones, from raw colour to a supervised U-Net's last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation import probes
from tokencutseg.evaluation.per_image import COUNTS
from tokencutseg.evaluation.statistics import paired_difference
from tokencutseg.experiments.ablations import reduced_budget
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study
from tokencutseg.models.tokencutseg import TokenCutSeg

UNTRAINED = 3
"""Draws of an untrained network's weights: one more or less lucky draw would decide what learning is worth."""
OUTPUT, UNET = "transformer", "supervised U-Net"


def feature_quality_tokens(study: Study) -> pd.DataFrame:
    """Tokens of validation images that two heads on frozen features get right and wrong: one row per head, features,
    draw of an untrained network's weights, and image.

    Colour, an untrained CNN (the tokenizer's encoder), a CNN from ImageNet (EfficientNet-Lite0), tokenizer and
    transformer (block by block) have seen no mask, but for the transformer of a recipe that trains all together.
    Columns features, head, draw, id, tp, fp, fn, tn, cluster where it is known, and runs (the id of the training, empty
    where there is none).
    """
    primary, grid = study.source.primary, (study.config.grid_size,) * 2
    train, test = study.source.load(primary, "train"), study.source.load(primary, "validation")
    train = train.subset(range(min(len(train), 200)))
    labels, test_labels = probes.token_labels(train, grid), probes.token_labels(test, grid)
    graph = partial(probes.train_graph_probe, grid=grid, config=study.config.segmentation)
    heads: dict[str, Callable[..., Any]] = {"linear probe": probes.train_linear_probe, "graph": graph}
    parts: dict[str, list[pd.DataFrame]] = {head: [] for head in heads}
    for name, draw, run, (features, test_features) in _frozen_features(study, train, test):
        for head, probe in heads.items():
            records = probes.token_records(probe(features, labels, test_features), test_labels, test.units)
            facts = {"features": name, "head": head, "draw": draw, "runs": run.id if run else ""}
            parts[head].append(records.assign(id=test.ids, **facts))
    table = pd.concat([part for head in heads for part in parts[head]], ignore_index=True)
    return table[["features", "head", "draw", "id", *COUNTS, *(["cluster"] if "cluster" in table else []), "runs"]]


def _frozen_features(study: Study, *sets: ImageSet) -> Iterator[tuple[str, int, Run | None, list[Tensor]]]:
    """Each kind of features by name, draw and the run that learned it, with those of each set of images, (N, T, E)."""
    layer_features, tokenizer, transformer = probes.layer_features, study.tokenizer(), study.transformer()
    grid = (study.config.grid_size,) * 2
    model = transformer.model()
    torch.manual_seed(study.config.seed)
    untrained = [TokenCutSeg(study.config).eval() for _ in range(UNTRAINED)]
    blocks = probes.layer_names(model)[4:-2]  # not the last: it is the output but its norm
    layers = [layer_features(model, images, ["colour", "tokenizer", *blocks, "output"]) for images in sets]
    yield "colour", 0, None, [known.pop("colour") for known in layers]
    for draw, one in enumerate(untrained):
        yield "untrained CNN", draw, None, [layer_features(one, images, ["tokenizer"])["tokenizer"] for images in sets]
    yield "ImageNet CNN", 0, None, [probes.imagenet_features(images, grid) for images in sets]
    for name in list(layers[0]):
        shown = {"tokenizer": "tokenizer", "output": OUTPUT}.get(name, f"transformer {name}")
        yield shown, 0, tokenizer if name == "tokenizer" else transformer, [known.pop(name) for known in layers]
    full = "unet" in study.config.evaluation.rivals  # the one of the main results, else one as long as an ablation's
    run = study.baseline("unet", config=study.config if full else reduced_budget(study.config))
    unet = run.model()
    yield UNET, 0, run, [probes.decoder_features(unet, images, grid) for images in sets]


def feature_quality(study: Study, tokens: pd.DataFrame | None = None) -> pd.DataFrame:
    """The scores of both heads on each kind of features, from `feature_quality_tokens`; draws are counted together.

    Columns features, head, images_seen (images with masks, in the training of the features), balanced_accuracy, low,
    high (its 95 % interval over images), iou (over all tokens), iou_low, iou_high, n (tokens), for every row but the
    transformer's output the paired difference of that to it under the same head, diff, diff_low, diff_high; and runs.
    """
    tokens, draws = feature_quality_tokens(study) if tokens is None else tokens, study.config.evaluation.bootstrap_draws
    together, keys = ["id", *(["cluster"] if "cluster" in tokens else [])], ["features", "head", "runs"]
    counted = {
        (name, head): (run, part.groupby(together, sort=False, as_index=False)[list(COUNTS)].sum())
        for (name, head, run), part in tokens.groupby(keys, sort=False)
    }
    rows = []
    for (name, head), (id, records) in counted.items():
        run, own = Run(study.store.folder / id), counted[OUTPUT, head][1]
        supervised = bool(id) and run.metadata["stage"] in ("segmentation", "baseline")
        row = {"features": name, "head": head, "images_seen": run.metrics["images_seen"] if supervised else 0}
        row |= probes.token_scores(records, draws)
        row["n"] = int(own[list(COUNTS)].to_numpy().sum())  # each token once, however many draws
        if name != OUTPUT:
            difference = paired_difference(own, records, "micro_lesion", "iou", draws).columns()
            row |= {column: value for column, value in difference.items() if column != "p"}
        rows.append(row | {"runs": id})
    return pd.DataFrame(rows)
