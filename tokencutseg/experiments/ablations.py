"""The ablations of notebook 05, each a declaration; `run_ablation` trains, scores and compares the rows of any of them.

Only the stages that a row changes have a shorter training (`reduced_budget`); those before them are the main study's.
All rows of one table have the same budget. A new ablation is one entry of `ABLATIONS`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from tokencutseg.config import RECIPES, Config, ConfigError, options
from tokencutseg.data.audit import seen_in_training
from tokencutseg.evaluation import statistics
from tokencutseg.evaluation.codebook import codebook_summary
from tokencutseg.evaluation.cost import cost_row
from tokencutseg.evaluation.inference import tokenize
from tokencutseg.evaluation.reconstruction import decoding_scores
from tokencutseg.experiments.engine import train_missing
from tokencutseg.experiments.pipeline import OURS, Training
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study
from tokencutseg.experiments.tables import initialisation
from tokencutseg.models.checkpoint import build
from tokencutseg.models.deepcut import stencil_offsets
from tokencutseg.models.tokencutseg import TokenCutSeg

CHAIN = ("vqgan", "masked_gpt", "segmentation")


@dataclass(frozen=True)
class Row:
    """One row of an ablation's table: its first columns, and the training behind it."""

    labels: Mapping[str, Any]
    config: Config
    method: str = OURS  # or a baseline by name
    pretrained: bool = True  # whether the transformer starts from stage 2
    shown: bool = True  # False for a reference that the table has no row of


@dataclass(frozen=True)
class Ablation:
    """What a table compares."""

    rows: Callable[[Study], Sequence[Row | Callable[[Config], Row]]]
    """The rows; a function makes one from the configuration of the best row so far."""
    reference: Literal["first", "previous", "best", "proposed"] = "first"
    """What a row is compared with: the first row (of its group), the row above, or the best so far, as row − reference;
    or our method, the first of its group, as ours − row."""
    group: str | None = None  # the label whose values make groups
    split: str = "validation"  # to score on
    external: bool = False  # whether the other test sets of the primary one are scored, too: a column `test`
    seeds: str | None = None  # the option with the number of trainings for each row; one without
    whole_chain: bool = False  # whether the seeds reach all stages, and not only the supervised one and the labels
    every_measure: bool = False  # every reduction and measure, and not only lesion IoU per image
    measures: Callable[[Study, Row, list[Run], pd.DataFrame], dict[str, Any]] = lambda *_: {}  # further columns

    def scored(self, study: Study) -> tuple[tuple[str, str], ...]:
        """The (dataset, split) pairs to score on."""
        primary, source = study.source.primary, study.source
        if not self.external:
            return ((primary, self.split),)
        there = [test for train, test in source.rows if train == primary and source.has(test, self.split)]
        return tuple((test, self.split) for test in there)

    def trainings(self, study: Study, row: Row) -> list[Training]:
        """The trainings of a row, one for each seed; one of what `evaluation.trained_once` names."""
        first, score_on = study.config.seed, self.scored(study)
        once = {str(row.labels.get(name)) for name in ("method", "fraction")} & {*study.config.evaluation.trained_once}
        seeds = range(first, first + (study.config.value(self.seeds) if self.seeds and not once else 1))
        configs = {seed: dataclasses.replace(row.config, seed=seed if self.whole_chain else first) for seed in seeds}
        options: dict[str, Any] = {"pretrained": row.pretrained, "score_on": score_on}
        return [study.method(row.method, config=own, seed=seed, **options) for seed, own in configs.items()]


def declared_rows(study: Study, name: str) -> Sequence[Row | Callable[[Config], Row]]:
    """The rows of an ablation. Raises ConfigError where the plan names none."""
    rows = ABLATIONS[name].rows(study)
    if all(isinstance(row, Row) and not row.shown for row in rows):
        raise ConfigError(f"the table {name} would have no row; give its option under `ablation` a value at least")
    return rows


def run_ablation(study: Study, name: str) -> pd.DataFrame:
    """The table of an ablation, after the trainings that it misses.

    Columns: the rows' labels and further measures, then reduction, measure, n (images), seeds, the mean with its 95 %
    bootstrap interval low, high over images, the paired difference diff with its interval diff_low, diff_high over
    images and seeds, Wilcoxon's p, p_holm (over the rows of one test set, reduction and measure), and runs (ids). Where
    rows are compared with the best so far, `kept` says which are better.
    """
    ablation = ABLATIONS[name]
    rows, tests = declared_rows(study, name), ablation.scored(study)
    train_missing(study, [one for row in rows if isinstance(row, Row) for one in ablation.trainings(study, row)])
    done, best, parts = list[tuple[Row, list[pd.DataFrame]]](), list[tuple[Row, list[pd.DataFrame]]](), []
    for row in rows:
        row = row if isinstance(row, Row) else row(best[-1][0].config)
        runs = [study.run(training) for training in ablation.trainings(study, row)]
        records = [
            pd.concat([study.records(run, *test).assign(seed=seed) for seed, run in enumerate(runs)]) for test in tests
        ]
        label = ablation.group
        group = [one for one in done if label is None or one[0].labels[label] == row.labels[label]]
        reference = {"best": best[-1:], "previous": done[-1:]}.get(ablation.reference, group[:1])
        done.append((row, records))
        for i, (test, _) in enumerate(tests):
            scores = _scores(study, ablation, records[i], reference[0][1][i] if reference else None)
            labels = dict(row.labels) | ({"test": test} if ablation.external else {})
            if ablation.reference == "best":
                labels["kept"] = not best or bool(scores["diff"].iloc[0] > 0)
                best += done[-1:] if labels["kept"] else []
            if row.shown:
                first = pd.DataFrame([labels | ablation.measures(study, row, runs, records[i])] * len(scores))
                parts.append(pd.concat([first, scores], axis=1).assign(runs=" ".join(run.id for run in runs)))
    table = pd.concat(parts, ignore_index=True)
    family = ["reduction", "measure", *(["test"] if ablation.external else [])]
    table.insert(table.columns.get_loc("p") + 1, "p_holm", table.groupby(family)["p"].transform(statistics.holm))
    return table


def _scores(study: Study, ablation: Ablation, records: pd.DataFrame, reference: pd.DataFrame | None) -> pd.DataFrame:
    """One row per reduction and measure: score and paired difference."""
    every, draws, seed = ablation.every_measure, study.config.evaluation.bootstrap_draws, study.config.seed
    chosen = (list(statistics.REDUCTIONS), list(statistics.MEASURES)) if every else (["per_image"], ["iou"])
    table = statistics.summary_table(records, [], *chosen, draws, seed)
    table.insert(3, "seeds", records["seed"].nunique())
    if reference is None:
        return table.assign(**dict.fromkeys(("diff", "diff_low", "diff_high", "p"), np.nan))
    sides = (reference, records) if ablation.reference == "proposed" else (records, reference)
    pairs = list(zip(table["reduction"], table["measure"], strict=True))
    found = statistics.paired_differences(*sides, pairs, draws, seed)
    return table.join(pd.DataFrame([one.columns() for one in found]))


# ---- what rows are made of ------------------------------------------------------------------------------------------


def reduced_budget(config: Config, first_stage: str = "segmentation") -> Config:
    """`config` with the epochs of `first_stage` and of the stages after it times `ablation.budget`, at least one, with
    `ablation.images_per_epoch` in the supervised stage, and scored without flips: an ablation is about training."""
    stages = CHAIN[CHAIN.index(first_stage) :]
    epochs = {f"{one}.epochs": max(1, round(config.ablation.budget * getattr(config, one).epochs)) for one in stages}
    supervised = {"images_per_epoch": config.ablation.images_per_epoch, "test_time_flips": False}
    return config.override(epochs | {f"segmentation.{key}": value for key, value in supervised.items()})


def vary(
    column: str, option: str, values: str | Sequence[Any], also: Mapping[str, Any] | None = None, **declared: Any
) -> Ablation:
    """An ablation of one option, a row for each of its `values` (or of those that the plan's option of that name has).

    The budget is reduced from the option's stage on; `also` is set in all rows.
    """

    def rows(study: Study) -> list[Row]:
        base = reduced_budget(study.config, option.partition(".")[0]).override(also or {})
        chosen = study.config.value(values) if isinstance(values, str) else values
        return [Row({column: value}, base.override({option: value})) for value in chosen]

    return Ablation(rows, **declared)


COUPLED = {
    "vqgan.perceptual": ("vqgan.perceptual_weight",),
    "vqgan.clamped_adversary": ("vqgan.disc_weight",),
    "vqgan.images": ("masked_gpt.images",),
    "masked_gpt.pretraining": (
        "segmentation.mlm_weight",
        "segmentation.transformer_lr_scale",
        "segmentation.frozen_transformer",
    ),
    "masked_gpt.mask_pattern": ("masked_gpt.mask_ratio",),
    "segmentation.graph_radius": ("segmentation.radius_unit",),
    "segmentation.self_training_weight": ("segmentation.self_training_share",),
    "segmentation.batch_size": ("segmentation.learning_rate",),
}
"""Options that change with another one, since they mean something only with it: a rate has its batch."""
ALTERNATIVES = {"segmentation.affinity": "feature", "segmentation.frozen_codebook": False}
"""The other value of an option that `released` and `revised` set alike."""


def changed(base: Config, option: str, recipe: str, labels: Mapping[str, Any]) -> Row:
    """`base` with `option` as `recipe` has it, and what is coupled to it; labels setting, instead, also.

    Raises ConfigError where the option has no other value.
    """
    changes = {name: RECIPES[recipe][name] for name in (option, *COUPLED.get(option, ()))}
    if base.value(option) == changes[option]:
        if option not in ALTERNATIVES:
            raise ConfigError(f"{option} is {changes[option]} in both recipes: there is nothing to change it to")
        changes[option] = ALTERNATIVES[option]
    others = [f"{name} = {new}" for name, new in changes.items() if name != option and base.value(name) != new]
    settings = {"setting": base.value(option), "instead": changes[option], "also": ", ".join(others)}
    return Row({**labels, **settings}, base.override(changes))


def component_rows(study: Study) -> list[Row]:
    """The method built up, one change per row: up-sampling is bilinear, the transformer learns along, and only labelled
    images are learned from, until the last rows of a recipe that has it otherwise."""
    config, rows = reduced_budget(study.config), list[Row]()
    for row, option, without in (
        ("+ self-training", "segmentation.self_training_weight", 0.0),
        ("+ frozen transformer", "segmentation.frozen_transformer", False),
        ("+ encoder from ImageNet", "segmentation.upsampling", "bilinear"),
        ("+ graph module", "segmentation.use_deepcut", False),
        ("+ masked pretraining", "segmentation.mlm_weight", 0.0),
        ("+ transformer", "masked_gpt.n_layer", 0),
    ):
        rows.insert(0, Row({"stages": row}, config, pretrained=row != "+ transformer"))
        if config.value(option) != without:
            config = config.override({option: without})
    rows.insert(0, Row({"stages": "tokenizer"}, config, pretrained=False))
    pairs = itertools.pairwise(rows)
    return rows[:1] + [row for above, row in pairs if (row.config, row.pretrained) != (above.config, above.pretrained)]


def deviation_rows(study: Study) -> list[Row]:
    """`released` with one option corrected, and `revised` with one set back, for each of `ablation.deviations`."""
    rows, options = list[Row](), study.config.ablation.deviations
    for recipe, other in (("released", "revised"), ("revised", "released")):
        base = reduced_budget(study.config.with_recipe(recipe), "vqgan")
        rows.append(Row({"recipe": recipe}, base, shown=False))
        rows += [changed(base, option, other, {"option": option, "recipe": recipe}) for option in options]
    return rows


def step_rows(study: Study) -> list[Row | Callable[[Config], Row]]:
    """From `described` to `revised`: each of `ablation.steps` on top of those that were kept before it; last `revised`
    as it stands. The tokenizer is that of `revised` all along. Raises ConfigError for a step that changes nothing."""
    steps = study.config.ablation.steps
    along = [name for step in steps for name in (step, *COUPLED.get(step, ()))]
    for step in steps:
        if step.startswith("vqgan.") or RECIPES["described"][step] == RECIPES["revised"][step]:
            raise ConfigError(f"ablation.steps names {step}, which is the same at both ends; leave it out")
        if along.count(step) > 1:
            raise ConfigError(
                f"ablation.steps names {step} twice, or beside an option that takes it along; name it once"
            )
    revised = reduced_budget(study.config.with_recipe("revised"), "masked_gpt")
    described = {name: value for name, value in RECIPES["described"].items() if not name.startswith("vqgan.")}
    rows = [lambda best, one=one: changed(best, one, "revised", {"step": one}) for one in steps]
    no_change = {"setting": "", "instead": "", "also": ""}
    start, end = revised.override(described), Row({"step": "revised"} | no_change, revised)
    return [Row({"step": "described"} | no_change, start), *rows, end]


def label_rows(study: Study) -> list[Row]:
    """Our method (self-supervised stages on all images) and `ablation.label_methods`, by share of the labels."""
    ablation, config, rows = study.config.ablation, study.config, list[Row]()
    names = [OURS, *(name for name in ablation.label_methods if name != config.recipe)]
    for share, name in itertools.product(ablation.label_fractions, names):
        base, method = (config.with_recipe(name), OURS) if name in RECIPES else (config, name)
        row = _compared(base).override({"data.label_fraction": share})
        rows.append(Row({"method": name, "fraction": share}, row, method))
    return rows


def baseline_rows(study: Study) -> list[Row]:
    """Our method and `ablation.baselines` under one budget."""
    config = _compared(study.config)
    return [Row({"method": name}, config, name) for name in (OURS, *study.config.ablation.baselines)]


def _compared(config: Config) -> Config:
    return config if config.ablation.full_comparisons else reduced_budget(config)


# ---- further measures -----------------------------------------------------------------------------------------------


def codebook_measures(study: Study, row: Row, *_: Any) -> dict[str, Any]:
    """usage, perplexity, psnr with its interval psnr_low, psnr_high, and ssim of the row's tokenizer on validation."""
    images, vqgan = study.source.load(study.source.primary, "validation"), study.tokenizer(row.config).model()
    summary = codebook_summary(tokenize(vqgan, images), row.config.vqgan.codebook_size)
    quality = decoding_scores(vqgan, images)
    draws, psnr = study.config.evaluation.bootstrap_draws, quality["psnr"].to_numpy()
    low, high = statistics.mean_interval(psnr, draws, study.config.seed, images.units)
    found = {"usage": summary["usage"], "perplexity": summary["perplexity"], "psnr": psnr.mean()}
    return found | {"psnr_low": low, "psnr_high": high, "ssim": quality["ssim"].mean()}


def radius_measures(study: Study, row: Row, *_: Any) -> dict[str, Any]:
    """The neighbours of a token."""
    grid = (study.config.grid_size,) * 2
    return {"neighbours": len(stencil_offsets(*grid, row.labels["radius"], "cells")) - 1}


def label_measures(study: Study, row: Row, runs: list[Run], records: pd.DataFrame) -> dict[str, Any]:
    """What a method starts from (initialisation), the labels, how many different ones its training draws (labels_seen)
    in how many samples (images_seen), the means of the worst and best seed (seed_low, seed_high), and the score without
    the test images that some training may have seen (n_without, mean_without, low_without, high_without)."""
    labels, means = runs[0].metrics["training_images"], records.groupby("seed")["iou"].mean()
    kept = records[~records["id"].isin(_seen(study.source, study.source.primary, records["dataset"].iloc[0]))]
    without = statistics.UNSCORED
    if len(kept):
        draws = study.config.evaluation.bootstrap_draws
        without = statistics.summarise(kept, "per_image", "iou", draws, study.config.seed)
    seen = runs[0].metrics["images_seen"]
    facts = {"initialisation": initialisation(runs[0]), "labels": labels}
    facts |= {"labels_seen": min(labels, seen), "images_seen": seen}
    facts |= {"seed_low": means.min(), "seed_high": means.max(), "n_without": without.n}
    return facts | {f"{name}_without": getattr(without, name) for name in ("mean", "low", "high")}


_seen = functools.lru_cache(maxsize=8)(seen_in_training)  # for all rows of a table


def baseline_measures(study: Study, row: Row, runs: list[Run], _: pd.DataFrame) -> dict[str, Any]:
    """What a method starts from (initialisation), images_seen and seconds of its supervised training, and the
    pretraining_seconds of the stages before it."""
    before = [study.run(one) for one in study.parents(study.method(row.method)).values()]
    own = runs[0].metrics
    facts = {"initialisation": initialisation(runs[0]), "images_seen": own["images_seen"], "seconds": own["seconds"]}
    return facts | {"pretraining_seconds": sum(run.metrics["seconds"] for run in before)}


_codebooks = vary("codebook_size", "vqgan.codebook_size", "ablation.codebook_sizes", measures=codebook_measures)
_unit = {"segmentation.radius_unit": "cells"}
ABLATIONS = {
    "codebook_size": _codebooks,
    "stages": Ablation(component_rows, "previous"),
    "graph_radius": vary(
        "radius", "segmentation.graph_radius", "ablation.graph_radii", _unit, measures=radius_measures
    ),
    "deviations": Ablation(deviation_rows, group="recipe", seeds="ablation.deviation_seeds", whole_chain=True),
    "revised_steps": Ablation(step_rows, "best"),
    "label_efficiency": Ablation(
        label_rows, "proposed", "fraction", "test", external=True, seeds="ablation.seeds", measures=label_measures
    ),
    "baselines": Ablation(
        baseline_rows, "proposed", split="test", external=True, every_measure=True, measures=baseline_measures
    ),
}
"""Every ablation by the name of its table."""


def efficiency(study: Study) -> pd.DataFrame:
    """Parameters, operations, latency and memory of one image, for our method and the baseline networks."""
    config = study.config
    networks = [name for name in config.ablation.baselines if name != "otsu"]
    models = {OURS: TokenCutSeg(config)} | {name: build("baseline", config, name) for name in networks}
    return pd.DataFrame([cost_row(name, model, config.data.image_size) for name, model in models.items()])


def recipe_table() -> pd.DataFrame:
    """Every option of a recipe with its value under each: columns option, released, described, revised, reason."""
    table = pd.DataFrame(RECIPES).rename_axis("option").reset_index()
    return table.assign(reason=[options()[name].metadata["reason"] for name in table["option"]])
