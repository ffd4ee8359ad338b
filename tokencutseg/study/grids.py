"""The tables of notebook 05: grids of small trainings, each cell a run of its own.

Only the budget of the stages that a cell changes is cut (`ablation.budget`); the others come from the main study. All
cells of one table have the same budget, and the cell without a change is among them.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from tokencutseg.config import RECIPES, Config
from tokencutseg.evaluation.codebook import codebook_summary
from tokencutseg.evaluation.efficiency import efficiency_row
from tokencutseg.evaluation.inference import map_batches, tokenize
from tokencutseg.evaluation.probes import cell_labels, graph_probe, layer_features, linear_probe
from tokencutseg.evaluation.reconstruction import reconstruction_scores
from tokencutseg.evaluation.summaries import paired_difference, summarise, summary_table
from tokencutseg.model.deepcut import stencil_offsets
from tokencutseg.model.saved import build
from tokencutseg.model.segmenter import TokenCutSeg
from tokencutseg.study.store import Run
from tokencutseg.study.study import Study

CHAIN = ("vqgan", "masked_gpt", "segmentation")


def shortened(config: Config, first_stage: str = "segmentation") -> Config:
    """`config` with the epochs of `first_stage` and of the stages after it times `ablation.budget`, at least one."""
    stages = CHAIN[CHAIN.index(first_stage):]
    return config.override({f"{stage}.epochs": max(1, round(config.ablation.budget * getattr(config, stage).epochs))
                            for stage in stages})


def validation_score(study: Study, run: Run) -> dict[str, Any]:
    """Lesion IoU (image_lesion) on the validation images: n, mean, low, high."""
    records = study.records(run, study.source.primary, "validation")
    result = summarise(records, "image_lesion", "iou", study.config.evaluation.bootstrap_draws, study.config.seed)
    return {"definition": "image_lesion", "measure": "iou", "n": result.n, "mean": result.mean, "low": result.low,
            "high": result.high}


def codebook_size(study: Study) -> pd.DataFrame:
    """Tokenizers of different codebook sizes, and what the segmenter on top reaches on validation."""
    rows, images = [], study.source.load(study.source.primary, "validation")
    for n_embed in study.config.ablation.codebook_sizes:
        config = shortened(study.config, "vqgan").override({"vqgan.n_embed": n_embed})
        vqgan = study.tokenizer(config).model()
        summary = codebook_summary(tokenize(vqgan, images), n_embed)
        back = map_batches(lambda x, vqgan=vqgan: vqgan.detokenize(vqgan.tokenize(x)), images, 32)
        quality = reconstruction_scores(images.images.float() / 255, back)
        rows.append({"n_embed": n_embed, "usage": summary["usage"], "perplexity": summary["perplexity"],
                     "psnr": quality["psnr"].mean(), "ssim": quality["ssim"].mean(),
                     **validation_score(study, study.segmenter(config=config))})
    return pd.DataFrame(rows)


def stages(study: Study) -> pd.DataFrame:
    """What each stage adds. One thing changes per row; head, loss and budget stay as they are until the last row."""
    config = shortened(study.config)
    linear = {"segmentation.use_deepcut": False}
    no_transformer = study.config.override(linear | {"masked_gpt.n_layer": 0})
    cells = [
        ("tokenizer", shortened(no_transformer), False),
        ("+ transformer", config.override(linear), False),
        ("+ masked pretraining", config.override(linear), True),
        ("+ graph module", config, True),
    ]
    return pd.DataFrame([
        {"stages": name, **validation_score(study, study.segmenter(config=cell, pretrained=pretrained))}
        for name, cell, pretrained in cells])


def graph_radius(study: Study) -> pd.DataFrame:
    """The stencil's radius in cells of the token grid; 0 leaves self-loops only."""
    rows = []
    for radius in study.config.ablation.graph_radii:
        config = shortened(study.config).override({"segmentation.graph_radius": radius,
                                                   "segmentation.radius_unit": "cells"})
        neighbours = len(stencil_offsets(config.grid_size, config.grid_size, radius, "cells")) - 1
        rows.append({"radius": radius, "neighbours": neighbours,
                     **validation_score(study, study.segmenter(config=config))})
    return pd.DataFrame(rows)


def feature_quality(study: Study) -> pd.DataFrame:
    """A linear probe and the graph head on the same frozen features: raw colour, untrained CNN, tokenizer, transformer.

    Columns features, head, balanced_accuracy, iou (pooled over tokens), n (test tokens).
    """
    model, primary = study.transformer().model(), study.source.primary
    train = study.source.load(primary, "train")
    train, test = train.subset(range(min(len(train), 200))), study.source.load(primary, "validation")
    grid = (study.config.grid_size,) * 2
    labels, test_labels = cell_labels(train, grid), cell_labels(test, grid)
    features, test_features = layer_features(model, train), layer_features(model, test)
    untrained = TokenCutSeg(study.config).eval()
    features["untrained CNN"] = layer_features(untrained, train)["tokenizer"]
    test_features["untrained CNN"] = layer_features(untrained, test)["tokenizer"]
    rows = []
    for name in ("colour", "untrained CNN", "tokenizer", "output"):
        shown = "transformer" if name == "output" else name
        pair = (features[name], labels, test_features[name], test_labels)
        rows += [{"features": shown, "head": "linear probe", **linear_probe(*pair)},
                 {"features": shown, "head": "graph", **graph_probe(*pair, grid, study.config.segmentation)}]
    return pd.DataFrame(rows).drop(columns="auc")


def label_efficiency(study: Study) -> pd.DataFrame:
    """Test scores by share of labels: our method (self-supervised stages on all images) and a U-Net."""
    rows, primary = [], study.source.primary
    draws, ablation = study.config.evaluation.bootstrap_draws, study.config.ablation
    for seed in range(study.config.seed, study.config.seed + ablation.seeds):
        for fraction in ablation.label_fractions:
            config = shortened(study.config).override({"data.label_fraction": fraction})
            for method in ("tokencutseg", "unet"):
                run = segment_with(study, method, config, seed)
                result = summarise(study.records(run, primary, "test"), "image_lesion", "iou", draws, seed)
                rows.append({"method": method, "fraction": fraction, "labels": run.metrics["training_images"],
                             "seed": seed, "definition": "image_lesion", "measure": "iou", "n": result.n,
                             "mean": result.mean, "low": result.low, "high": result.high})
    return pd.DataFrame(rows)


def segment_with(study: Study, method: str, config: Config, seed: int) -> Run:
    """A run of our method or of a baseline; the seed reaches the supervised stage and the choice of labels only."""
    return (study.segmenter(config=config, seed=seed) if method == "tokencutseg"
            else study.baseline(method, config=config, seed=seed))


def deviations(study: Study) -> pd.DataFrame:
    """For each switch, the recipe with that one set to the released (or, under `released`, the revised) value.

    Columns switch, recipe, setting, instead, definition, measure, n, mean, difference, low, high, p: the change in
    lesion IoU on validation with its paired bootstrap interval over images.
    """
    recipe = study.config.recipe
    other = "revised" if recipe == "released" else "released"
    rows = []
    for switch in study.config.ablation.deviations:
        stage, key = switch.split(".")
        first = stage if stage in CHAIN else "segmentation"
        base = shortened(study.config, first)
        setting, instead = getattr(getattr(base, stage), key), RECIPES[other][switch]
        if setting == instead:
            continue
        reference, changed = (study.records(study.segmenter(config=config), study.source.primary, "validation")
                              for config in (base, base.override({switch: instead})))
        difference = paired_difference(changed, reference, "image_lesion", "iou",
                                       study.config.evaluation.bootstrap_draws, study.config.seed)
        rows.append({"switch": switch, "recipe": recipe, "setting": setting, "instead": instead,
                     "definition": "image_lesion", "measure": "iou", "n": difference.n, "mean": changed["iou"].mean(),
                     "difference": difference.difference, "low": difference.low, "high": difference.high,
                     "p": difference.p})
    return pd.DataFrame(rows)


def efficiency(study: Study) -> pd.DataFrame:
    """Parameters, operations, latency and memory of one image, for our method and the baseline networks."""
    config = study.config
    models = {"tokencutseg": TokenCutSeg(config)} | {
        name: build("baseline", config, name) for name in config.ablation.baselines if name != "otsu"}
    return pd.DataFrame([efficiency_row(name, model, config.data.image_size) for name, model in models.items()])


def baselines(study: Study) -> pd.DataFrame:
    """Test scores of the baselines under the main study's budget, beside our method.

    Columns method, weights, definition, measure, n, mean, low, high, images_seen, seconds.
    """
    primary, parts = study.source.primary, []
    for name in ("tokencutseg", *study.config.ablation.baselines):
        run = None if name == "otsu" else study.segmenter() if name == "tokencutseg" else study.baseline(name)
        records = study.otsu_records(primary, "test") if run is None else study.records(run, primary, "test")
        about = {} if run is None else run.metrics
        table = summary_table(records, ["method"], draws=study.config.evaluation.bootstrap_draws,
                              seed=study.config.seed)
        table.insert(1, "weights", about.get("pretrained_weights", "none" if run is None else "self-supervised"))
        parts.append(table.assign(images_seen=about.get("images_seen", 0), seconds=about.get("seconds", 0.0)))
    return pd.concat(parts, ignore_index=True)
