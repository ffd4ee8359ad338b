"""The tables of notebook 05: grids of small trainings, each cell a run of its own.

Only the budget of the stages that a cell changes is cut (`ablation.budget`); the others come from the main study. All
cells of one table have the same budget, and the cell without a change is among them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from tokencutseg.config import RECIPES, TRAINED_ENCODER_NEEDS, Config, ConfigError, option_reasons
from tokencutseg.data.audit import seen_in_training
from tokencutseg.evaluation.codebook import codebook_summary
from tokencutseg.evaluation.cost import cost_row
from tokencutseg.evaluation.inference import map_batches, tokenize
from tokencutseg.evaluation.probes import (
    decoder_features,
    iou_difference,
    layer_features,
    layer_names,
    probe_scores,
    token_labels,
    token_records,
    train_graph_probe,
    train_linear_probe,
)
from tokencutseg.evaluation.reconstruction import reconstruction_scores
from tokencutseg.evaluation.statistics import (
    UNSCORED,
    holm,
    mean_interval,
    paired_difference,
    seeded_difference,
    summarise,
    summary_table,
)
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study
from tokencutseg.experiments.tables import initialisation, with_differences
from tokencutseg.models.checkpoint import build
from tokencutseg.models.deepcut import stencil_offsets
from tokencutseg.models.tokencutseg import TokenCutSeg

CHAIN = ("vqgan", "masked_gpt", "segmentation")
TOGETHER = {
    "vqgan.perceptual": ("vqgan.perceptual_weight",),
    "vqgan.clamped_adversary": ("vqgan.disc_weight",),
    "vqgan.images": ("masked_gpt.images",),
    "masked_gpt.pretraining": ("segmentation.mlm_weight", "segmentation.transformer_lr_scale"),
    "masked_gpt.mask_pattern": ("masked_gpt.mask_ratio",),
    "masked_gpt.encoder": ("masked_gpt.learning_rate", "masked_gpt.batch_size"),
    "segmentation.graph_radius": ("segmentation.radius_unit",),
    "segmentation.encoder": ("segmentation.encoder_lr_scale",),
    "segmentation.batch_size": ("segmentation.learning_rate",),
}
"""Switches that mean something only with others: joint training is its masked-token loss, a rate has its batch."""
ALTERNATIVES = {"segmentation.affinity": "feature", "segmentation.frozen_codebook": False}
"""What a switch is turned to where `released` and `revised` set it alike."""
PLAIN = {
    "segmentation.augmentation": "plain",
    "segmentation.weight_average": False,
    "segmentation.test_time_flips": False,
    "segmentation.schedule": "one_cycle",
    "segmentation.batch_size": 16,
    "segmentation.learning_rate": 2e-3,
    "segmentation.class_weighted_dice": False,
    "segmentation.cross_entropy_weight": 1.0,
}
"""How a U-Net is commonly trained: flips, turns and brightness, larger batches, no averaged weights, one look."""


def reduced_budget(config: Config, first_stage: str = "segmentation") -> Config:
    """`config` with the epochs of `first_stage` and of the stages after it times `ablation.budget`, at least one, with
    `ablation.images_per_epoch` in the supervised stage, and scored without flips: a cell is about training."""
    stages = CHAIN[CHAIN.index(first_stage) :]
    epochs = {
        f"{stage}.epochs": max(1, round(config.ablation.budget * getattr(config, stage).epochs)) for stage in stages
    }
    return config.override(
        epochs
        | {"segmentation.images_per_epoch": config.ablation.images_per_epoch, "segmentation.test_time_flips": False}
    )


def validation_score(study: Study, run: Run, reference: Run | None = None) -> dict[str, Any]:
    """Lesion IoU (per_image) on the validation images: n, mean, low, high; and the paired difference to `reference`
    with its bootstrap interval over images: change, change_low, change_high (empty without a reference)."""
    draws, seed = study.config.evaluation.bootstrap_draws, study.config.seed
    records = study.records(run, study.source.primary, "validation")
    result = summarise(records, "per_image", "iou", draws, seed)
    row = {
        "reduction": "per_image",
        "measure": "iou",
        "n": result.n,
        "mean": result.mean,
        "low": result.low,
        "high": result.high,
        **dict.fromkeys(("change", "change_low", "change_high"), math.nan),
    }
    if reference is None:
        return row
    change = paired_difference(
        records, study.records(reference, study.source.primary, "validation"), "per_image", "iou", draws, seed
    )
    return row | {"change": change.difference, "change_low": change.low, "change_high": change.high}


def codebook_size(study: Study) -> pd.DataFrame:
    """Tokenizers of different codebook sizes, and what the segmenter on top reaches on validation.

    Columns codebook_size, usage, perplexity, psnr, psnr_low, psnr_high, ssim, and those of `validation_score`, whose change
    is the one to the first row.
    """
    rows, first, images = [], None, study.source.load(study.source.primary, "validation")
    short = reduced_budget(study.config, "vqgan")
    cells = {
        codebook_size: short.override({"vqgan.codebook_size": codebook_size})
        for codebook_size in study.config.ablation.codebook_sizes
    }
    study.train_missing([partial(study.segmenter, config=config) for config in cells.values()], "validation")
    for codebook_size, config in cells.items():
        vqgan = study.tokenizer(config).model()
        summary = codebook_summary(tokenize(vqgan, images), codebook_size)
        back = map_batches(lambda x, vqgan=vqgan: vqgan.detokenize(vqgan.tokenize(x)), images, 32)
        quality = reconstruction_scores(images.images.float() / 255, back)
        low, high = mean_interval(
            quality["psnr"].to_numpy(), study.config.evaluation.bootstrap_draws, study.config.seed, images.units
        )
        run = study.segmenter(config=config)
        rows.append(
            {
                "codebook_size": codebook_size,
                "usage": summary["usage"],
                "perplexity": summary["perplexity"],
                "psnr": quality["psnr"].mean(),
                "psnr_low": low,
                "psnr_high": high,
                "ssim": quality["ssim"].mean(),
                **validation_score(study, run, first),
            }
        )
        first = first or run
    return pd.DataFrame(rows)


def stages(study: Study) -> pd.DataFrame:
    """What each stage adds, all under one budget. The first three rows have one head and loss; the graph module then
    takes the linear head's place and brings its own loss, and the rows after it change what learns, and how fast.

    Columns stages, the score on validation, and `change`, `change_low`, `change_high`: the paired difference to the row
    above with its bootstrap interval over images.
    """
    rows, above, cells = [], None, stage_cells(study.config)
    study.train_missing(
        [partial(study.segmenter, config=config, pretrained=pretrained) for _, config, pretrained in cells],
        "validation",
    )
    for name, config, pretrained in cells:
        run = study.segmenter(config=config, pretrained=pretrained)
        rows.append({"stages": name, **validation_score(study, run, above)})
        above = run
    return pd.DataFrame(rows)


def stage_cells(config: Config) -> list[tuple[str, Config, bool]]:
    """The rows of `stages`: name, configuration, and whether stage 2 goes before.

    The encoder is the tokenizer's frozen one, the transformer learns at the full rate, and only labelled images teach,
    until the last rows of a recipe that has it otherwise. The graph module comes with its loss.
    """
    last = reduced_budget(config)
    labelled = last.override({"segmentation.self_training_weight": 0.0})
    tuned = labelled.override({"masked_gpt.encoder": "frozen"})
    frozen = tuned.override({"segmentation.encoder": "frozen"})
    whole = frozen.override({"segmentation.transformer_lr_scale": 1.0})  # that of one without pretraining
    pretrained = whole.override({"segmentation.use_deepcut": False})
    transformer = pretrained.override({"segmentation.mlm_weight": 0.0})
    tokenizer = transformer.override({"masked_gpt.n_layer": 0})
    cells = [
        ("tokenizer", tokenizer, False),
        ("+ transformer", transformer, False),
        ("+ masked pretraining", pretrained, True),
        ("+ graph module", whole, True),
        ("+ slower transformer", frozen, True),
        ("+ fine-tuned encoder", tuned, True),
        ("+ encoder in the pretraining", labelled, True),
        ("+ self-training", last, True),
    ]
    return cells[:4] + [cell for above, cell in itertools.pairwise(cells[3:]) if cell[1] != above[1]]


def graph_radius(study: Study) -> pd.DataFrame:
    """The stencil's radius in cells of the token grid; 0 leaves self-loops only.

    Columns radius, neighbours, and those of `validation_score`, whose change is the one to the first row.
    """
    rows, first, short = [], None, reduced_budget(study.config).override({"segmentation.radius_unit": "cells"})
    cells = {
        radius: short.override({"segmentation.graph_radius": radius}) for radius in study.config.ablation.graph_radii
    }
    study.train_missing([partial(study.segmenter, config=config) for config in cells.values()], "validation")
    for radius, config in cells.items():
        run = study.segmenter(config=config)
        neighbours = len(stencil_offsets(config.grid_size, config.grid_size, radius, "cells")) - 1
        rows.append({"radius": radius, "neighbours": neighbours, **validation_score(study, run, first)})
        first = first or run
    return pd.DataFrame(rows)


UNTRAINED = 3
"""Draws of an untrained network's weights: one more or less lucky draw would decide what learning is worth."""


def feature_quality(study: Study) -> pd.DataFrame:
    """A linear probe and the graph head on the same frozen features, from raw colour to a supervised U-Net's last.

    Colour, an untrained CNN (the tokenizer's encoder, `UNTRAINED` draws of it pooled), tokenizer and transformer (block
    by block) have seen no mask, but for the transformer of a recipe that trains all together; the U-Net is that of the
    main results where these hold one, else one trained as long as a cell. Columns features, head, images_seen (images
    with masks, in the training of the features), balanced_accuracy, low, high (its 95 % interval over images), iou
    (pooled over tokens), iou_low, iou_high, n (tokens of validation images), and for every row but the transformer's
    output how far that is diff under the same head: `diff` with its paired interval `diff_low`, `diff_high`.
    What all this follows from is written to the table feature_quality_tokens, one row per feature, head, draw of an
    untrained network's weights and image: columns features, head, draw, id, and how many tokens are tp, fp, fn, tn.
    """
    own, primary = study.transformer(), study.source.primary
    model, joint = own.model(), study.config.masked_gpt.pretraining == "joint"
    train = study.source.load(primary, "train")
    train, test = train.subset(range(min(len(train), 200))), study.source.load(primary, "validation")
    grid = (study.config.grid_size,) * 2
    labels, test_labels = token_labels(train, grid), token_labels(test, grid)
    rival = study.baseline(
        "unet", config=study.config if "unet" in study.config.evaluation.rivals else reduced_budget(study.config)
    )
    torch.manual_seed(study.config.seed)
    untrained, unet = [TokenCutSeg(study.config).eval() for _ in range(UNTRAINED)], rival.model()
    blocks = [name for name in layer_names(model) if name.startswith("block")][:-1]  # the last: the output but its norm
    shown = {
        "colour": ["colour"],
        "untrained CNN": [f"untrained {i}" for i in range(UNTRAINED)],
        "tokenizer": ["tokenizer"],
        **{f"transformer {name}": [name] for name in blocks},
        "transformer": ["output"],
        "supervised U-Net": ["supervised U-Net"],
    }
    heads = {
        "linear probe": train_linear_probe,
        "graph": lambda *known: train_graph_probe(*known, grid, study.config.segmentation),
    }
    found: dict[tuple[str, str], np.ndarray] = {}
    layers = [layer_features(model, images, ["colour", "tokenizer", *blocks, "output"]) for images in (train, test)]
    for i, one in enumerate(untrained):
        for known, images in zip(layers, (train, test), strict=True):
            known[f"untrained {i}"] = layer_features(one, images, ["tokenizer"])["tokenizer"]
    for known, images in zip(layers, (train, test), strict=True):
        known["supervised U-Net"] = decoder_features(unet, images, grid)
    for key in layers[0]:
        features, test_features = (known[key] for known in layers)
        for head, probe in heads.items():
            found[head, key] = probe(features, labels, test_features)
    drawn = study.config.evaluation.bootstrap_draws, test.units
    counts = [
        token_records(found[head, key], test_labels).assign(features=name, head=head, draw=draw, id=test.ids)
        for head in heads
        for name, keys in shown.items()
        for draw, key in enumerate(keys)
    ]
    study.table("feature_quality_tokens", pd.concat(counts)[["features", "head", "draw", "id", "tp", "fp", "fn", "tn"]])
    rows, seen = [], {"supervised U-Net": rival.metrics["images_seen"]}
    seen |= {name: own.metrics["images_seen"] for name in shown if joint and name.startswith("transformer")}
    for head in heads:
        margins = {name: np.stack([found[head, key] for key in keys]) for name, keys in shown.items()}
        rows += [
            {"features": name, "head": head, "images_seen": seen.get(name, 0), **probe_scores(one, test_labels, *drawn)}
            | ({} if name == "transformer" else iou_difference(margins["transformer"], one, test_labels, *drawn))
            for name, one in margins.items()
        ]
    return pd.DataFrame(rows).drop(columns="auc")


def label_efficiency(study: Study) -> pd.DataFrame:
    """Test scores by share of labels: our method (self-supervised stages on all images), other recipes of it
    (`ablation.label_recipes`), a U-Net under our loop, and one trained the plain way (`ablation.plain_unet`).

    Every share looks at labelled images equally often; `labels_seen` is how many different ones that makes, fewer than
    `labels` where the budget is shorter than one look at each. One row per method and share; another recipe than the
    study's own is a method of its name, and `initialisation` says what a method starts from. The interval is over images, with
    an image's scores under all seeds drawn together; `seed_low` and `seed_high` are the means of the worst and best
    seed. For every other method how far ours is diff: the paired difference over images and seeds `diff` with its
    interval `diff_low`, `diff_high`, Wilcoxon's p, and `p_holm` over the table. `n_without`, `mean_without`,
    `low_without` and `high_without` leave out the test images that some training may have seen (`seen_in_training`).
    """
    rows, primary = [], study.source.primary
    draws, ablation, first = study.config.evaluation.bootstrap_draws, study.config.ablation, study.config.seed
    short = reduced_budget(study.config)
    methods = {"tokencutseg": ("tokencutseg", short)}
    methods |= {
        recipe: ("tokencutseg", reduced_budget(study.config.with_recipe(recipe)))
        for recipe in ablation.label_recipes
        if recipe != study.config.recipe
    }
    methods["unet"] = ("unet", short)
    if ablation.plain_unet:
        methods["unet_plain"] = ("unet", short.override(PLAIN))

    def trainings(network: str, config: Config, fraction: float) -> list[Callable[[], Run]]:
        own = config.override({"data.label_fraction": fraction})
        return [partial(segment_with, study, network, own, seed) for seed in range(first, first + ablation.seeds)]

    cells = {
        fraction: {method: trainings(*how, fraction) for method, how in methods.items()}
        for fraction in ablation.label_fractions
    }
    study.train_missing([cell for share in cells.values() for seeds in share.values() for cell in seeds], "test")
    seen = seen_in_training(study.source, primary, primary)
    for fraction, share in cells.items():
        ours: list[pd.DataFrame] = []
        for method, seeds in share.items():
            runs = [cell() for cell in seeds]
            scored = [study.records(run, primary, "test") for run in runs]
            ours = ours or scored
            diff = {} if method == "tokencutseg" else seeded_difference(ours, scored, "iou", draws, first).columns()
            every = pd.concat(scored)
            result, without = (
                summarise(part, "per_image", "iou", draws, first) if len(part) else UNSCORED
                for part in (every, every[~every["id"].isin(seen)])
            )
            means, labels = [records["iou"].mean() for records in scored], runs[0].metrics["training_images"]
            rows.append(
                {
                    "method": method,
                    "initialisation": initialisation(runs[0]),
                    "fraction": fraction,
                    "labels": labels,
                    "labels_seen": min(labels, runs[0].metrics["images_seen"]),
                    "seeds": len(runs),
                    "reduction": "per_image",
                    "measure": "iou",
                    "n": len(scored[0]),
                    "mean": result.mean,
                    "low": result.low,
                    "high": result.high,
                    "seed_low": min(means),
                    "seed_high": max(means),
                    **diff,
                    "n_without": without.n // len(runs),
                    "mean_without": without.mean,
                    "low_without": without.low,
                    "high_without": without.high,
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"]))


def segment_with(study: Study, method: str, config: Config, seed: int) -> Run:
    """A run of our method or of a baseline; the seed reaches the supervised stage and the choice of labels only."""
    return (
        study.segmenter(config=config, seed=seed)
        if method == "tokencutseg"
        else study.baseline(method, config=config, seed=seed)
    )


def deviations(study: Study) -> pd.DataFrame:
    """`released` with one switch corrected, and `revised` with one set back, for each switch of the study's list.

    Every cell trains the whole chain of stages with the reduced_budget budget, under the study's settings with
    `ablation.deviation_seeds` seeds. A switch that means something only with others takes them along. Columns switch,
    recipe, setting, instead, also (what came along), reduction, measure, n, seeds, reference, mean, difference, low,
    high, p, p_holm: the change in lesion IoU on validation with its paired bootstrap interval over images and seeds,
    Wilcoxon's p, and p after Holm over the table.
    """
    ablation, primary, first = study.config.ablation, study.source.primary, study.config.seed

    def cells(config: Config) -> list[Callable[[], Run]]:
        return [
            partial(study.segmenter, config=dataclasses.replace(config, seed=seed))
            for seed in range(first, first + ablation.deviation_seeds)
        ]

    def scored(config: Config) -> list[pd.DataFrame]:
        return [study.records(cell(), primary, "validation") for cell in cells(config)]

    bases = [reduced_budget(study.config.with_recipe(recipe), "vqgan") for recipe in ("released", "revised")]
    turned = {
        base.recipe: {switch: deviation_changes(base, switch) for switch in ablation.deviations} for base in bases
    }
    configs = [
        config
        for base in bases
        for config in (base, *(base.override(changes) for _, changes in turned[base.recipe].values()))
    ]
    study.train_missing([cell for config in configs for cell in cells(config)], "validation")
    rows = []
    for base in bases:
        recipe, reference = base.recipe, scored(base)
        for switch, (setting, changes) in turned[recipe].items():
            changed = scored(base.override(changes))
            result = seeded_difference(changed, reference, "iou", study.config.evaluation.bootstrap_draws, first)
            also = ", ".join(f"{name} = {value}" for name, value in changes.items() if name != switch)
            before, after = (np.mean([records["iou"].mean() for records in group]) for group in (reference, changed))
            rows.append(
                {
                    "switch": switch,
                    "recipe": recipe,
                    "setting": setting,
                    "instead": changes[switch],
                    "also": also,
                    "reduction": "per_image",
                    "measure": "iou",
                    "n": result.n,
                    "seeds": ablation.deviation_seeds,
                    "reference": before,
                    "mean": after,
                    "difference": result.difference,
                    "low": result.low,
                    "high": result.high,
                    "p": result.p,
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"]))


def deviation_changes(config: Config, switch: str) -> tuple[Any, dict[str, Any]]:
    """The switch's setting in `config`, and what to set instead: the other recipe's value, with its companions.

    Raises ConfigError for a switch that has no other value here.
    """
    changes = switched(config, switch, "revised" if config.recipe == "released" else "released")
    setting = config.value(switch)
    if changes[switch] == setting:
        if switch not in ALTERNATIVES:
            raise ConfigError(f"ablation.deviations names {switch}, which is {setting} in every cell of this table")
        changes[switch] = ALTERNATIVES[switch]
    return setting, changes


def switched(config: Config, switch: str, recipe: str) -> dict[str, Any]:
    """What to change in `config` so that `switch` has the setting of `recipe` and means something."""
    changes = {name: RECIPES[recipe][name] for name in (switch, *TOGETHER.get(switch, ()))}
    if changes.get("masked_gpt.encoder", config.masked_gpt.encoder) == "trained":
        missing = [
            name for name, needed in TRAINED_ENCODER_NEEDS.items() if changes.get(name, config.value(name)) != needed
        ]
        for name in missing:
            changes |= (
                switched(config, name, recipe) if switch == "masked_gpt.encoder" else {"masked_gpt.encoder": "frozen"}
            )
    after = config.override(changes)
    seg = after.segmentation
    bypassed = after.masked_gpt.inputs == "tokens" or seg.frozen_transformer
    if seg.encoder == "fine_tuned" and seg.upsampling == "bilinear" and bypassed:  # nothing would read the encoder
        changes |= (
            {"segmentation.frozen_transformer": False}
            if switch == "segmentation.upsampling"
            else {"segmentation.upsampling": "guided"}
        )
    return changes


def revised_steps(study: Study) -> pd.DataFrame:
    """From `described` to `revised`: each switch of `ablation.steps` is tried on top of those kept before it, and kept
    if it raises lesion IoU on validation.

    The tokenizer is that of `revised` all along; the stages after it train with the short budget and the study's seed.
    The first row is the start, the last one `revised` as it stands. Columns step, setting, instead, also (what came
    along), kept, the score on validation, and `change`, `change_low`, `change_high`: the paired difference to the best
    so far with its bootstrap interval over images.
    """
    revised = reduced_budget(study.config.with_recipe("revised"), "masked_gpt")
    best = revised.override({name: value for name, value in RECIPES["described"].items() if name[:6] != "vqgan."})
    best_run = study.segmenter(config=best)
    rows = [{"step": "described", "kept": True, **validation_score(study, best_run)}]
    for step in (*study.config.ablation.steps, "revised"):
        changes = {} if step == "revised" else switched(best, step, "revised")
        tried = best.override(changes) if changes else revised
        run = study.segmenter(config=tried)
        settings = {"setting": best.value(step), "instead": tried.value(step)} if changes else {}
        score = validation_score(study, run, best_run)
        rows.append(
            {
                "step": step,
                **settings,
                "kept": score["change"] > 0,
                **score,
                "also": ", ".join(f"{name} = {value}" for name, value in changes.items() if name != step),
            }
        )
        if score["change"] > 0:
            best, best_run = tried, run
    return pd.DataFrame(rows)


def efficiency(study: Study) -> pd.DataFrame:
    """Parameters, operations, latency and memory of one image, for our method and the baseline networks."""
    config = study.config
    models = {"tokencutseg": TokenCutSeg(config)} | {
        name: build("baseline", config, name) for name in config.ablation.baselines if name != "otsu"
    }
    return pd.DataFrame([cost_row(name, model, config.data.image_size) for name, model in models.items()])


def baselines(study: Study) -> pd.DataFrame:
    """Test scores of the baselines and of our method under one budget, that of the main results or of a cell
    (`ablation.full_baselines`).

    Columns method, initialisation, reduction, measure, n, mean, low, high, images_seen (in supervised training),
    seconds (of that training), pretraining_seconds (of the stages before it); and for every other method how far ours
    is diff: the paired difference `diff` with its interval `diff_low`, `diff_high`, Wilcoxon's p, and `p_holm`,
    over the methods of one reduction and measure.
    """
    primary, parts, scored = study.source.primary, [], []
    config = baselines_budget(study.config)
    study.train_missing(
        [
            partial(segment_with, study, name, config, config.seed)
            for name in ("tokencutseg", *study.config.ablation.baselines)
            if name != "otsu"
        ],
        "test",
    )
    for name in ("tokencutseg", *study.config.ablation.baselines):
        run = segment_with(study, name, config, config.seed)
        records, about = study.records(run, primary, "test"), run.metrics
        scored.append(records.assign(method=name))
        table = summary_table(
            records, ["method"], draws=study.config.evaluation.bootstrap_draws, seed=study.config.seed
        )
        table.insert(1, "initialisation", initialisation(run))
        parts.append(
            table.assign(
                images_seen=about.get("images_seen", 0),
                seconds=about.get("seconds", 0.0),
                pretraining_seconds=_pretraining(study) if name == "tokencutseg" else 0.0,
            )
        )
    return with_differences(pd.concat(parts, ignore_index=True), pd.concat(scored), study.config)


def baselines_budget(config: Config) -> Config:
    """`config` with the supervised budget that the table of baselines has."""
    return config if config.ablation.full_baselines else reduced_budget(config)


def _pretraining(study: Study) -> float:
    """Seconds that the stages before the supervised one took."""
    before = {run.id: run.metrics["seconds"] for run in (study.tokenizer(), study.transformer())}
    joint = study.config.masked_gpt.pretraining == "joint"
    return sum(seconds for run, seconds in before.items() if not (joint and run == study.transformer().id))


SHARED = ("codebook_size", "stages", "graph_radius", "label_efficiency", "deviations", "baselines")
"""Those whose trainings are independent of each other."""


def recipe_table() -> pd.DataFrame:
    """Every option of a recipe with its value under each: columns switch, released, described, revised, reason."""
    reasons = option_reasons()
    return pd.DataFrame(
        {"switch": name, **{recipe: values[name] for recipe, values in RECIPES.items()}, "reason": reasons[name]}
        for name in RECIPES["released"]
    )
