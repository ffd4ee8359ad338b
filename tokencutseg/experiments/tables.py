"""The tables of notebooks 01 to 04, each a function of the study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tokencutseg.config import RECIPES, Config
from tokencutseg.data.audit import between, both_ways, learnt_pairs, overlaps, pool_pairs
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError
from tokencutseg.evaluation.codebook import codebook_table
from tokencutseg.evaluation.inference import downsample_mask, map_batches, predict_masks, tokenize
from tokencutseg.evaluation.probes import layer_features, probe_scores, token_labels, train_linear_probe
from tokencutseg.evaluation.reconstruction import reconstruction_scores
from tokencutseg.evaluation.statistics import (
    UNSCORED,
    holm,
    interval,
    mean_interval,
    paired_differences,
    summarise,
    summary_table,
)
from tokencutseg.experiments.claims import PUBLISHED
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study
from tokencutseg.models.deepcut import GridGraph, normalised_cut, orthogonality, to_nodes
from tokencutseg.models.losses import masked_token_loss
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.perceptual import load_lpips
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN

SPLITS = ("train", "validation", "test")


def tokenizer_of(study: Study) -> VQGAN:
    """The study's trained tokenizer."""
    return study.tokenizer().model()


def transformer_of(study: Study) -> TokenCutSeg:
    """The model that holds the study's trained tokenizer and transformer."""
    return study.transformer().model()


def test_sets(study: Study) -> list[str]:
    """Datasets with a scored test split, the primary one first."""
    names = [test for _, test in study.source.rows if study.source.has(test, "test")]
    return sorted(dict.fromkeys(names), key=lambda name: name != study.source.primary)


# ---- notebook 01 ----------------------------------------


def reconstruction(study: Study) -> pd.DataFrame:
    """L1, PSNR, SSIM and LPIPS of test images after one trip through the tokenizer, with bootstrap intervals.

    Columns dataset, measure, n, mean, low, high, weights (what LPIPS's features were trained on).
    """
    vqgan, (lpips_model, weights) = tokenizer_of(study), load_lpips()
    draws, rows = study.config.evaluation.bootstrap_draws, []
    for dataset in test_sets(study):
        images = study.source.load(dataset, "test")
        chosen = images.subset(
            np.linspace(0, len(images) - 1, min(len(images), study.config.evaluation.lpips_images)).astype(int)
        )
        for part, measures, model in ((images, ("l1", "psnr", "ssim"), None), (chosen, ("lpips",), lpips_model)):
            x = part.images.float() / 255
            back = map_batches(lambda batch: vqgan.detokenize(vqgan.tokenize(batch)), part, 32)
            scores = reconstruction_scores(x, back, model)
            for measure in measures:
                values = scores[measure].to_numpy()
                low, high = mean_interval(values, draws, study.config.seed, part.units)
                rows.append(
                    {
                        "dataset": dataset,
                        "measure": measure,
                        "n": len(values),
                        "mean": values.mean(),
                        "low": low,
                        "high": high,
                        "weights": weights if measure == "lpips" else "",
                    }
                )
    return pd.DataFrame(rows)


def codebook_usage(study: Study, dataset: str | None = None) -> pd.DataFrame:
    """One row per code: how often it fires on the test images, and how much of that on lesions."""
    vqgan, images = tokenizer_of(study), study.source.load(dataset or study.source.primary, "test")
    tokens = tokenize(vqgan, images)
    return codebook_table(tokens, downsample_mask(images.masks, tuple(tokens.shape[1:])), vqgan.config.codebook_size)


# ---- notebook 02 ----------------------------------------

MASK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def masked_prediction(study: Study) -> pd.DataFrame:
    """Accuracy and loss on hidden tokens of the test images, by mask ratio and pattern.

    Columns pattern, mask_ratio, accuracy, low, high (95 % interval of the accuracy over images), loss, chance (always
    saying the most frequent code), n (hidden tokens).
    """
    model, images = transformer_of(study), study.source.load(study.source.primary, "test")
    batches = [chunk.float() / 255 for chunk in images.images.split(32)]
    words = [
        (tokens, encoding._replace(stages=[])) for tokens, encoding in map(model.encode_to_tokens, batches)
    ]  # maps take GiB
    commonest = torch.cat([tokens.flatten() for tokens, _ in words]).mode().values
    draws, rows = study.config.evaluation.bootstrap_draws, []
    for pattern in ("iid", "block"):
        config = study.config.override({"masked_gpt.mask_pattern": pattern}).masked_gpt
        for ratio in MASK_RATIOS:
            generator = torch.Generator().manual_seed(study.config.seed)
            counts, loss = [], 0.0  # per image: hits, hits by chance, hidden
            for batch, known in zip(batches, words, strict=True):
                mask = sample_token_mask(tuple(known[0].shape), config, generator, ratio=ratio)
                tokens, logits = model.predict_masked(batch, mask, known)
                flat = tokens.flatten(1)
                hits = (logits.argmax(-1) == flat) & mask
                counts.append(torch.stack([hits.sum(1), ((flat == commonest) & mask).sum(1), mask.sum(1)], 1))
                loss += masked_token_loss(logits, flat, mask).item() * int(mask.sum())
            counted = torch.cat(counts).numpy()
            hits, chance, n = (int(total) for total in counted.sum(0))
            low, high = interval(
                counted, lambda sums: sums[..., 0] / sums[..., 2], draws, study.config.seed, images.units
            )
            rows.append(
                {
                    "pattern": pattern,
                    "mask_ratio": ratio,
                    "accuracy": hits / n,
                    "low": low,
                    "high": high,
                    "loss": loss / n,
                    "chance": chance / n,
                    "n": n,
                }
            )
    return pd.DataFrame(rows)


def linear_probes(study: Study) -> pd.DataFrame:
    """A logistic regression lesion/skin on every layer's frozen features: training images → test images.

    Columns features, balanced_accuracy, low, high (its 95 % interval over images), iou, auc, n (test tokens).
    """
    model, primary = transformer_of(study), study.source.primary
    train, test = study.source.load(primary, "train"), study.source.load(primary, "test")
    train = train.subset(range(min(len(train), 300)))
    grid = (study.config.grid_size,) * 2
    labels, test_labels = token_labels(train, grid), token_labels(test, grid)
    features, test_features = (layer_features(model, images) for images in (train, test))
    rows = []
    for name in features:
        lesion_scores = train_linear_probe(features[name], labels, test_features[name])
        scores = probe_scores(lesion_scores, test_labels, study.config.evaluation.bootstrap_draws, test.units)
        rows.append({"features": name, **scores})
    return pd.DataFrame(rows)


# ---- notebook 03 ----------------------------------------


def wanted_rows(study: Study) -> list[tuple[str, str]]:
    """The (train, test) pairs that the main results are about. Raises DataError for a training set that is in none."""
    wanted, rows = study.config.evaluation.train_sets, study.source.rows
    known = dict.fromkeys(train for train, _ in rows)
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(
            f"evaluation.train_sets names {unknown[0]!r}; the {study.source.name} data have {', '.join(known)}"
        )
    return [(train, test) for train, test in rows if not wanted or train in wanted]


def available_rows(study: Study) -> list[tuple[str, str]]:
    """Those of `wanted_rows` whose images are there. Raises DataError when there is none."""
    source = study.source
    rows = [
        (train, test) for train, test in wanted_rows(study) if source.has(train, "train") and source.has(test, "test")
    ]
    if not rows:
        raise DataError(
            f"the {source.name} data hold no training split with a test split to score it on; add both for "
            f"{source.primary}"
        )
    return rows


def home(study: Study) -> tuple[str, str]:
    """The pair of the main results that stands for the study where one must: the primary set's own, else the first."""
    rows, own = available_rows(study), (study.source.primary, study.source.primary)
    return own if own in rows else rows[0]


def segmentation_history(study: Study) -> pd.DataFrame:
    """The training histories behind the main results: one row per training set and epoch.

    Columns train, chosen_by (the score whose best epoch was kept), then those of a run's history.
    """
    parts = []
    for train in dict.fromkeys(train for train, _ in available_rows(study)):
        history = study.segmenter(train).history
        history.insert(0, "train", train)
        history.insert(1, "chosen_by", f"validation_{study.config.evaluation.score_reduction}_iou")
        parts.append(history)
    return pd.concat(parts, ignore_index=True)


def cut_examples(study: Study, index: int = 0) -> pd.DataFrame:
    """The cut and its balance term for assignments made by hand, on the position graph of the study's token grid.

    One of them is the reference mask of a test image. Columns assignment, cut, orthogonality, sum.
    """
    config, side = study.config.segmentation, study.config.grid_size
    images = study.source.load(study.source.primary, "test")
    graph = GridGraph(side, side, config.graph_radius, config.radius_unit)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    lesion = {
        "everything is skin": torch.zeros(side, side),
        "lesion and skin, as in the reference": (
            downsample_mask(images.masks[index][None], (side, side))[0] > 0.5
        ).float(),
        "left and right half": (column >= side / 2).float(),
        "checkerboard": ((row + column) % 2).float(),
        "undecided, one half each": torch.full((side, side), 0.5),
    }
    S = torch.stack([torch.stack([1 - share, share]) for share in lesion.values()])  # (5, 2, H, W)
    cut, balance = normalised_cut(S, graph), orthogonality(to_nodes(S))
    return pd.DataFrame(
        {
            "assignment": list(lesion),
            "cut": cut.numpy(),
            "orthogonality": balance.numpy(),
            "sum": (cut + balance).numpy(),
        }
    )


# ---- notebook 04 ----------------------------------------


def written(study: Study, name: str) -> pd.DataFrame | None:
    """A table that another notebook of this study has written, or None while it has not."""
    path = study.folder / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def main_records(study: Study) -> pd.DataFrame:
    """Per-image records of every (train, test) pair that the data allow: our method and the study's rivals.

    `method` is `tokencutseg` for the study's own recipe; another recipe is a method of its name. `weights` says what a
    method starts from.
    """
    parts = []
    for train, test in available_rows(study):
        run = study.segmenter(train)
        ours = study.records(run, test, "test").assign(recipe=study.config.recipe, weights=initialisation(run))
        rivals = [_rival_records(study, name, train, test) for name in _rivals(study)]
        parts += [frame.assign(train=train, test=test) for frame in (ours, *rivals)]
    return pd.concat(parts, ignore_index=True)


def _rivals(study: Study) -> list[str]:
    """The methods beside the study's own recipe, by name."""
    return [name for name in study.config.evaluation.rivals if name != study.config.recipe]


def _rival_records(study: Study, name: str, train: str, test: str) -> pd.DataFrame:
    if name == "otsu":
        return study.otsu_records(test, "test").assign(recipe="none", weights=initialisation(None))
    known = name in RECIPES
    run = study.segmenter(train, study.config.with_recipe(name)) if known else study.baseline(name, train)
    return study.records(run, test, "test").assign(
        method=name, recipe=name if known else "none", weights=initialisation(run)
    )


def initialisation(run: Run | None) -> str:
    """What a method's supervised training starts from: `imagenet` weights or from `scratch` (baselines),
    `self-supervised` stages (every recipe), or `none` (Otsu, which has no run)."""
    return "none" if run is None else run.metrics.get("pretrained_weights", "self-supervised")


def budgets(study: Study) -> pd.DataFrame:
    """What each training behind the main results cost, one row per method and stage.

    Columns train, method, recipe, stage, saw (the self-supervised pool, or the training set), training_images,
    images_seen, unlabelled_seen (in self-training), steps (of the optimizer), seconds, device, run. A stage that serves
    several training sets stands beside the first.
    """
    rows = []
    for train in dict.fromkeys(train for train, _ in available_rows(study)):
        for method in ("tokencutseg", *_rivals(study)):
            if method == "otsu":
                continue
            recipe = study.config.recipe if method == "tokencutseg" else method if method in RECIPES else "none"
            if recipe == "none":
                runs = [study.baseline(method, train)]
            else:
                config = study.config.with_recipe(recipe) if method in RECIPES else study.config
                runs = [
                    study.tokenizer(config, train),
                    study.transformer(config, train),
                    study.segmenter(train, config),
                ]
            rows += [
                {
                    "train": train,
                    "method": method,
                    "recipe": recipe,
                    "stage": run.metadata["stage"],
                    "saw": "pool" if _saw_pool(run) else train,
                    **{
                        key: run.metrics.get(key)
                        for key in ("training_images", "images_seen", "unlabelled_seen", "steps", "seconds", "device")
                    },
                    "run": run.id,
                }
                for run in runs
            ]
    return pd.DataFrame(rows).drop_duplicates(["method", "run"], ignore_index=True)


def _saw_pool(run: Run) -> bool:
    """Whether a training read the whole self-supervised pool."""
    about = run.metadata
    return about["config"].get(about["stage"], {}).get("images") == "unlabelled"


def main_results(study: Study) -> pd.DataFrame:
    """The study's main table; its columns are described in the README.

    A pair whose images are missing has one row per published number with an empty `mean` and a `note` that says so. How
    far the study's own recipe is diff of each other method stands in the columns of `with_differences`.
    """
    records = main_records(study)
    table = summary_table(
        records,
        ["train", "test", "method", "recipe", "weights"],
        draws=study.config.evaluation.bootstrap_draws,
        seed=study.config.seed,
    )
    table["published"] = np.array([_published(row) for row in table.itertuples()], float)
    notes = [gaps(study, (row.train, "train"), (row.test, "test")) for row in table.itertuples()]
    table["complete"], table["note"] = [not note for note in notes], notes
    table = with_differences(table, records, study.config, ["train", "test"])
    table["weights"] = table.pop("weights")  # last: readers count on the order of the others
    there = available_rows(study)
    missing = [
        {
            "train": train,
            "test": test,
            "method": "tokencutseg",
            "recipe": study.config.recipe,
            "reduction": "micro_two_class",
            "measure": measure,
            "n": 0,
            "published": published,
            "complete": False,
            "note": "data not available",
        }
        for train, test in wanted_rows(study)
        if (train, test) not in there
        for measure, published in PUBLISHED.get((train, test), {}).items()
    ]
    return pd.concat([table, pd.DataFrame(missing)], ignore_index=True) if missing else table


def with_differences(
    table: pd.DataFrame, records: pd.DataFrame, config: Config, pair: Sequence[str] = ()
) -> pd.DataFrame:
    """A table of scores with how far `tokencutseg` is above each other method on the same images.

    `records` holds all methods' per-image records; `pair` are the columns of both that say what was trained and tested
    on. Adds the paired difference `diff` with its bootstrap interval `diff_low`, `diff_high`, Wilcoxon's p, and
    `p_holm` over the methods of one pair, reduction and measure; all empty in our own rows.
    """
    scored = dict(iter(records.groupby([*pair, "method"], sort=False)))
    none, leads = dict.fromkeys(("diff", "diff_low", "diff_high", "p"), math.nan), []
    for (*place, method), rows in table.groupby([*pair, "method"], sort=False):
        shown = list(zip(rows["reduction"], rows["measure"], strict=True))
        found = (
            [none] * len(rows)
            if method == "tokencutseg"
            else [
                result.columns()
                for result in paired_differences(
                    scored[*place, "tokencutseg"],
                    scored[*place, method],
                    shown,
                    config.evaluation.bootstrap_draws,
                    config.seed,
                )
            ]
        )
        leads.append(pd.DataFrame(found, rows.index))
    table = table.join(pd.concat(leads))
    return table.assign(p_holm=table.groupby([*pair, "reduction", "measure"])["p"].transform(holm))


def _published(row: Any) -> float:
    """The published number, beside a recipe's row of the reduction that the released code prints; else NaN."""
    if row.recipe == "none" or row.reduction != "micro_two_class":
        return math.nan
    return PUBLISHED.get((row.train, row.test), {}).get(row.measure, math.nan)


def gaps(study: Study, *splits: tuple[str, str]) -> str | None:
    """What of the official images is not there, by (dataset, split): empty where nothing is missing, None where a whole
    split is."""
    if not all(study.source.has(*split) for split in splits):
        return None
    sets = [study.source.load(*split) for split in splits]
    return "; ".join(
        f"{images.dataset} {images.split} partial: {len(images)} of {images.expected}"
        for images in sets
        if not images.complete
    )


def cross_dataset(results: pd.DataFrame) -> pd.DataFrame:
    """What a change of test set costs: each row of main_results beside the same model's score on its own test set.

    Columns train, test, method, reduction, measure, n, mean, low, high, published, own (the mean on the test set of
    `train`), change.
    """
    ours = results[(results["method"] == "tokencutseg") & (results["n"] > 0)]
    own = ours[ours["train"] == ours["test"]].set_index(["train", "reduction", "measure"])["mean"]
    keys = pd.MultiIndex.from_frame(ours[["train", "reduction", "measure"]])
    table = ours[["train", "test", "method", "reduction", "measure", "n", "mean", "low", "high", "published"]].copy()
    table["own"] = own.reindex(keys).to_numpy()
    table["change"] = table["mean"] - table["own"]
    return table.reset_index(drop=True)


def score_by_group(study: Study, records: pd.DataFrame | None = None) -> pd.DataFrame:
    """Lesion IoU by size of the lesion, by its contrast to the skin, and by where the image comes from.

    `records` of `main_records`, made anew by default. Size and contrast are cut into thirds of each test set; the site
    is the test set, since the lists of these sets name no other. Columns train, test, method, grouping, group,
    reduction, measure, n, mean, low, high.
    """
    records = main_records(study) if records is None else records
    images = records.drop_duplicates(["test", "id"]).set_index(["test", "id"])  # every method has the same ones
    keys = pd.MultiIndex.from_frame(records[["test", "id"]])
    parts = []
    for grouping, column, names in (
        ("lesion size", "lesion_fraction", ["small", "medium", "large"]),
        ("contrast", "contrast", ["low", "medium", "high"]),
    ):
        rank = images.groupby(level="test")[column].rank(pct=True)
        third = pd.cut(rank, [0, 1 / 3, 2 / 3, 1], labels=names).reindex(keys)
        parts.append(
            records.assign(grouping=grouping, group=third.to_numpy())
            .dropna(subset="group")
            .sort_values("group", key=lambda group, names=names: group.map(names.index), kind="stable")
        )
    parts.append(records.assign(grouping="site", group=records["test"]))
    return summary_table(
        pd.concat(parts),
        ["train", "test", "method", "grouping", "group"],
        ["per_image"],
        ["iou"],
        study.config.evaluation.bootstrap_draws,
        study.config.seed,
    )


def worst_first(study: Study, count: int = 12) -> tuple[ImageSet, Tensor, np.ndarray]:
    """The images of the first row of the main results that our method segments worst, worst first: images, predicted
    masks (n, S, S), and their lesion IoU (n,)."""
    train, test = available_rows(study)[0]
    run, images = study.segmenter(train), study.source.load(test, "test")
    scores = study.records(run, test, "test")["iou"].to_numpy()
    order = np.argsort(scores, kind="stable")[:count]
    chosen = images.subset(order)
    return chosen, predict_masks(run.model(), chosen), scores[order]


def leakage(study: Study) -> pd.DataFrame:
    """Images that two splits share, and what leaving them out does to every method's score.

    Each pair of splits (a split with itself: its own duplicates); then, if the recipe uses the self-supervised pool,
    this and each test set of the main results, and pool and training set together; last the pool against all validation
    and test splits. Columns set_1, set_2, same_id, same_content, near_duplicate (pairs, see `overlaps`), images (of
    set_2 that are also in set_1). Where these are what the main results were trained and tested on, one row per method
    with train (the training set), method, n_without (images left when the shared ones are left out), iou (per_image
    over all test images), low, high, iou_without, low_without, high_without; else one row without these.
    """
    source = study.source
    sets = {
        (dataset, split): source.load(dataset, split) for dataset, splits in source.datasets.items() for split in splits
    }
    found, results, records = both_ways(overlaps(sets)), available_rows(study), main_records(study)
    rows = []
    for one, two in itertools.combinations_with_replacement(sets, 2):
        pairs, scores = between(found, one, two), []
        for train, test in ((one, two), (two, one)):
            if (train[1], test[1]) == ("train", "test") and (train[0], test[0]) in results:
                scores = _scores_without(study, records, train[0], test[0], between(found, train, test)["id_2"])
        rows += [_shared("/".join(one), "/".join(two), pairs) | score for score in scores or [{}]]
    pool = pool_pairs(source, found)
    for train, test in results if "unlabelled" in (study.config.vqgan.images, study.config.masked_gpt.images) else ():
        pairs = pool[(pool["dataset_2"] == test) & (pool["split_2"] == "test")]
        both = learnt_pairs(source, found, train, test)
        for name, shared in (("self-supervised pool", pairs), (f"self-supervised pool or {train}/train", both)):
            rows += [
                _shared(name, f"{test}/test", shared) | score
                for score in _scores_without(study, records, train, test, shared["id_2"])
            ]
    rows.append(_shared("self-supervised pool", "validation and test", pool))
    return pd.DataFrame(rows)


def _shared(one: str, two: str, pairs: pd.DataFrame) -> dict[str, Any]:
    counts = {
        kind.replace(" ", "_"): int((pairs["kind"] == kind).sum())
        for kind in ("same id", "same content", "near duplicate")
    }
    images = len(pairs.drop_duplicates(["dataset_2", "split_2", "id_2"]))
    return {"set_1": one, "set_2": two, **counts, "images": images}


def _scores_without(
    study: Study, records: pd.DataFrame, train: str, test: str, shared: pd.Series
) -> list[dict[str, Any]]:
    """The score of each method of the main results on `test`, with and without the images of the ids `shared`."""
    rows = []
    own = records[(records["train"] == train) & (records["test"] == test)]
    for method, part in own.groupby("method", sort=False):
        kept = part[~part["id"].isin(shared)]
        row = {"train": train, "method": method, "n_without": len(kept)}
        for behind, chosen in (("", part), ("_without", kept)):
            score = (
                summarise(chosen, "per_image", "iou", study.config.evaluation.bootstrap_draws, study.config.seed)
                if len(chosen)
                else UNSCORED
            )
            row |= {f"iou{behind}": score.mean, f"low{behind}": score.low, f"high{behind}": score.high}
        rows.append(row)
    return rows
