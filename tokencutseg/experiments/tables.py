"""The tables of notebooks 01 to 04, each a function of the study.

A row that rests on trainings names in its column `runs` the runs that it scores, by id, separated by spaces.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tokencutseg.config import RECIPES
from tokencutseg.data.audit import between, both_ways, learnt_pairs, pool_pairs
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError
from tokencutseg.evaluation.codebook import codebook_table
from tokencutseg.evaluation.inference import downsample_mask, predict_masks, tokenize
from tokencutseg.evaluation.probes import layer_features, token_labels, token_records, token_scores, train_linear_probe
from tokencutseg.evaluation.reconstruction import decoding_scores
from tokencutseg.evaluation.statistics import holm, interval, mean_interval, paired_differences, summary_table
from tokencutseg.experiments.claims import PUBLISHED
from tokencutseg.experiments.engine import train_missing
from tokencutseg.experiments.pipeline import OURS, Training
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study
from tokencutseg.models.baselines import BASELINES
from tokencutseg.models.losses import masked_token_loss
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.perceptual import load_lpips

MASK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
KINDS = ("same id", "same content", "near duplicate")
"""How two images can be the same (`overlaps`)."""
DIFFERENCE = ("diff", "diff_low", "diff_high", "p")


def reconstruction(study: Study) -> pd.DataFrame:
    """L1, PSNR, SSIM and LPIPS of decoded test images, with bootstrap intervals, the primary dataset first.

    Columns dataset, measure, n, mean, low, high, weights (what LPIPS's features were trained on), runs.
    """
    run, lpips_model = study.tokenizer(), load_lpips()
    vqgan, settings, rows = run.model(), study.config.evaluation, []
    datasets = dict.fromkeys(test for _, test in study.source.rows if study.source.has(test, "test"))
    for dataset in sorted(datasets, key=lambda name: name != study.source.primary):
        images = study.source.load(dataset, "test")
        few = images.subset(np.linspace(0, len(images) - 1, min(len(images), settings.lpips_images)).astype(int))
        for part, measures, model in ((images, ("l1", "psnr", "ssim"), None), (few, ("lpips",), lpips_model)):
            scores = decoding_scores(vqgan, part, model)
            for measure in measures:
                values = scores[measure].to_numpy()
                low, high = mean_interval(values, settings.bootstrap_draws, study.config.seed, part.units)
                own = lpips_model.weights_name if measure == "lpips" else ""
                rows.append((dataset, measure, len(values), values.mean(), low, high, own, run.id))
    return pd.DataFrame(rows, columns=["dataset", "measure", "n", "mean", "low", "high", "weights", "runs"])


def codebook_usage(study: Study) -> pd.DataFrame:
    """`codebook_table` of the primary dataset's test images: one row per code; and runs."""
    run, images = study.tokenizer(), study.source.load(study.source.primary, "test")
    tokens = tokenize(run.model(), images)
    masks = downsample_mask(images.masks, tuple(tokens.shape[1:]))
    return codebook_table(tokens, masks, study.config.vqgan.codebook_size).assign(runs=run.id)


@torch.no_grad()
def masked_prediction(study: Study) -> pd.DataFrame:
    """Accuracy and loss on masked tokens of the test images, by mask ratio and pattern.

    Columns pattern, mask_ratio, accuracy, low, high (95 % interval of the accuracy over images), loss, chance (always
    predicting the most frequent code), n (masked tokens), runs. A prediction is a code, never the mask token.
    """
    run, images = study.transformer(), study.source.load(study.source.primary, "test")
    model, draws, rows = run.model(), study.config.evaluation.bootstrap_draws, []
    batches = [chunk.float() / 255 for chunk in images.images.split(32)]
    encoded = [model.encode_to_tokens(batch) for batch in batches]
    commonest = torch.cat([tokens.flatten() for tokens, _ in encoded]).mode().values
    for pattern, ratio in itertools.product(("iid", "block"), MASK_RATIOS):
        config = study.config.override({"masked_gpt.mask_pattern": pattern}).masked_gpt
        generator = torch.Generator().manual_seed(study.config.seed)
        counts, loss = [], 0.0  # per image: hits, hits by chance, masked
        for batch, known in zip(batches, encoded, strict=True):
            mask = sample_token_mask(tuple(known[0].shape), config, generator, ratio=ratio)
            tokens, logits = model.predict_masked(batch, mask, known)
            flat = tokens.flatten(1)
            hits = (logits[..., : model.masked_gpt.codebook_size].argmax(-1) == flat) & mask
            counts.append(torch.stack([hits.sum(1), ((flat == commonest) & mask).sum(1), mask.sum(1)], 1))
            loss += masked_token_loss(logits, flat, mask).item() * int(mask.sum())
        counted = torch.cat(counts).numpy()
        hits, chance, n = (int(total) for total in counted.sum(0))
        low, high = interval(counted, lambda sums: sums[..., 0] / sums[..., 2], draws, study.config.seed, images.units)
        rows.append((pattern, ratio, hits / n, low, high, loss / n, chance / n, n, run.id))
    columns = ["pattern", "mask_ratio", "accuracy", "low", "high", "loss", "chance", "n", "runs"]
    return pd.DataFrame(rows, columns=columns)


def linear_probes(study: Study) -> pd.DataFrame:
    """A logistic regression lesion/skin on every layer's frozen features: training images → test images.

    Columns features, then those of `token_scores`, auc (of all tokens), n (tokens), runs.
    """
    run, primary = study.transformer(), study.source.primary
    train, test = study.source.load(primary, "train"), study.source.load(primary, "test")
    train, model, rows = train.subset(range(min(len(train), 300))), run.model(), []
    grid = (study.config.grid_size,) * 2
    labels, test_labels = token_labels(train, grid), token_labels(test, grid)
    features, test_features = (layer_features(model, images) for images in (train, test))
    for name in features:
        lesion_scores = train_linear_probe(features[name], labels, test_features[name])
        records = token_records(lesion_scores, test_labels, test.units)
        scores = token_scores(records, study.config.evaluation.bootstrap_draws)
        both = bool(test_labels.any() and not test_labels.all())
        auc = roc_auc_score(test_labels.ravel(), lesion_scores.ravel()) if both else math.nan
        rows.append({"features": name, **scores, "auc": auc, "n": test_labels.numel(), "runs": run.id})
    return pd.DataFrame(rows)


def wanted_rows(study: Study) -> list[tuple[str, str]]:
    """The (train, test) pairs that the main results are about, the primary training set's first. Raises DataError where
    their plan names a training set that is in none of them, or a method that nobody knows."""
    plan, source = study.config.evaluation, study.source
    known = list(dict.fromkeys(train for train, _ in source.rows))
    pairs = [f"{rival}/{train}" for rival, train in itertools.product(plan.rivals, known)]
    baselines = ["otsu", *BASELINES]
    methods = [*baselines, *RECIPES]
    plans = {"evaluation.rivals": methods, "ablation.label_methods": methods, "ablation.baselines": baselines}
    once = [*methods, *known, *map(str, study.config.ablation.label_fractions)]
    plans |= {"evaluation.train_sets": known, "evaluation.trained_once": once}
    for setting, names in (plans | {"evaluation.left_out": pairs}).items():
        if unknown := [name for name in study.config.value(setting) if name not in names]:
            there = f"with the {source.name} data it can name {', '.join(names) or 'nothing'}"
            raise DataError(f"{setting} names {unknown[0]!r}; {there}")
    for setting in ("evaluation.rivals", "ablation.label_methods"):
        if {*study.config.value(setting)} <= {study.config.recipe}:
            raise DataError(f"{setting} names no other method than the study's own recipe; add one, as unet")
    rows = [(train, test) for train, test in source.rows if not plan.train_sets or train in plan.train_sets]
    return sorted(rows, key=lambda row: (row[0] != source.primary, known.index(row[0])))


def available_rows(study: Study) -> list[tuple[str, str]]:
    """Those of `wanted_rows` whose images are there. Raises DataError when there is none."""
    has = study.source.has
    rows = [(train, test) for train, test in wanted_rows(study) if has(train, "train") and has(test, "test")]
    if not rows:
        missing = "no training split with a test split to score it on"
        raise DataError(f"the {study.source.name} data hold {missing}; add both for {study.source.primary}")
    return rows


def train_sets(study: Study) -> list[str]:
    """The training sets of `available_rows`."""
    return list(dict.fromkeys(train for train, _ in available_rows(study)))


def segmentation_history(study: Study) -> pd.DataFrame:
    """The histories of our first training on each training set of the main results, a row per epoch.

    Columns train, chosen_by (the score whose best epoch was kept), then those of a run's history, runs.
    """
    runs = {train: study.segmenter(train) for train in train_sets(study)}
    parts = [run.history.assign(train=train, runs=run.id) for train, run in runs.items()]
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "train", table.pop("train"))
    table.insert(1, "chosen_by", f"validation_{study.config.evaluation.score_reduction}_iou")
    return table


def main_trainings(study: Study) -> dict[tuple[str, str, int], Training]:
    """The trainings of the main results by (train, method, seed): `tokencutseg` under the study's own recipe, and
    `evaluation.rivals`, where another recipe is a method of its name, but those in `evaluation.left_out`;
    `evaluation.seeds` of each method, one of Otsu's threshold and of what `evaluation.trained_once` names. Seeds reach
    the supervised training and its choice of labels alone: all start from the same stages before it.
    """
    rows, settings, first, found = available_rows(study), study.config.evaluation, study.config.seed, {}
    methods = [OURS, *(name for name in settings.rivals if name != study.config.recipe)]
    for train, method in itertools.product(train_sets(study), methods):
        if f"{method}/{train}" in settings.left_out:
            continue
        tests = tuple((test, "test") for other, test in rows if other == train)
        count = 1 if {method, train} & {"otsu", *settings.trained_once} else settings.seeds
        for seed in range(first, first + count):
            found[train, method, seed] = study.method(method, train, seed=seed, score_on=tests)
    return found


def initialisation(run: Run) -> str:
    """What a method's supervised training starts from: `imagenet` weights or from `scratch` (baselines),
    `self-supervised` stages (every recipe; with `imagenet` beside them where its encoder is that), or `none` (Otsu,
    which learns nothing)."""
    about = run.metadata
    if about["stage"] == "baseline":
        return run.metrics["pretrained_weights"]
    from_imagenet = about["config"]["segmentation"]["upsampling"] == "unet"
    return "self-supervised, imagenet" if from_imagenet else "self-supervised"


def main_records(study: Study) -> pd.DataFrame:
    """Per-image records of the test images behind the main results, with the columns train, test, note (which official
    images are missing, or what stands in for them), method, seed, recipe (`none` for baselines), initialisation and
    runs (those of all seeds)."""
    trainings, parts = main_trainings(study), []
    train_missing(study, trainings.values())
    for train, test in available_rows(study):
        pair = {"train": train, "test": test, "note": study.source.missing_images((train, "train"), (test, "test"))}
        for (_, method, seed), training in trainings.items():
            if training.train_set == train:
                run = study.run(training)
                labels = {"method": method, "seed": seed, "recipe": _recipe(training)}
                labels |= {"initialisation": initialisation(run), "runs": run.id}
                parts.append(study.records(run, test, "test").assign(**pair, **labels))
    records = pd.concat(parts, ignore_index=True)
    runs = records.groupby(["train", "method"])["runs"].transform(lambda ids: " ".join(ids.unique()))
    return records.assign(runs=runs)


def budgets(study: Study) -> pd.DataFrame:
    """What each training behind the main results cost, one row per method, seed and stage.

    Columns train, method, recipe, stage, seed, data (`unlabelled` images, or the training set), training_images,
    images_seen, unlabelled_seen (in self-training), steps (of the optimizer), seconds, processes (that
    shared each batch), device, runs. A stage that serves several trainings stands beside the first.
    """
    rows, costs = [], ("training_images", "images_seen", "unlabelled_seen", "steps", "seconds", "processes", "device")
    for (train, method, seed), last in main_trainings(study).items():
        for training in (*study.parents(last).values(), last) if last.baseline != "otsu" else ():
            run, pretraining = study.run(training), training.section != "segmentation"
            row: dict[str, object] = {"train": train, "method": method, "recipe": _recipe(last)}
            row |= {"stage": training.stage, "seed": seed, "data": train}
            if pretraining and getattr(training.config, training.stage).images == "unlabelled":
                row["data"] = "unlabelled"
            rows.append(row | {name: run.metrics.get(name) for name in costs} | {"runs": run.id})
    return pd.DataFrame(rows).drop_duplicates(["method", "runs"], ignore_index=True)


def _recipe(training: Training) -> str:
    return "none" if training.baseline else training.config.recipe


def main_results(study: Study) -> pd.DataFrame:
    """The study's main table: every method on every (train, test) pair, under every reduction and measure.

    Columns train, test, method, recipe, initialisation, runs, seeds (trainings), reduction, measure, n (images), mean,
    low, high (over images), published (beside a recipe's row of the reduction that the released code prints), complete
    and note (which official images are missing), and how far `tokencutseg` is above each other method on the same
    images: the paired difference diff (`paired_differences`) with its interval diff_low, diff_high over images and, of
    several trainings, seeds, Wilcoxon's p, and p_holm over the methods of one pair, reduction and measure. A pair whose
    images are missing has one row per published number with an empty mean and a note, and a method that is left out
    has one.
    """
    records, draws, seed = main_records(study), study.config.evaluation.bootstrap_draws, study.config.seed
    labels = ["train", "test", "method", "recipe", "initialisation", "runs"]
    scored, parts = dict(iter(records.groupby(labels[:3], sort=False))), []
    for (train, test, method), own in scored.items():
        part = summary_table(own, labels, draws=draws, seed=seed)
        part.insert(len(labels), "seeds", own["seed"].nunique())
        comparable = (part["recipe"] != "none") & (part["reduction"] == "micro_two_class")
        comparable &= study.source.note(test, "test") == ""  # another split that stands in is not the published test
        part["published"] = part["measure"].map(PUBLISHED.get((train, test), {})).where(comparable)
        note = own["note"].iloc[0]
        part = part.assign(complete=note == "", note=note, **dict.fromkeys(DIFFERENCE, math.nan))
        if method != OURS:
            shown = list(zip(part["reduction"], part["measure"], strict=True))
            differences = paired_differences(scored[train, test, OURS], own, shown, draws, seed)
            part.update(pd.DataFrame([one.columns() for one in differences]))
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table["p_holm"] = table.groupby(["train", "test", "reduction", "measure"])["p"].transform(holm)
    wanted, available = wanted_rows(study), available_rows(study)
    none = {"reduction": "micro_two_class", "n": 0, "seeds": 0, "complete": False}
    missing = [
        {"train": train, "test": test, "method": OURS, "recipe": study.config.recipe}
        | {**none, "measure": measure, "published": published, "note": "data not available"}
        for train, test in wanted
        if (train, test) not in available
        for measure, published in PUBLISHED.get((train, test), {}).items()
    ]
    missing += [
        {"train": train, "test": test, "method": method, "recipe": method if method in RECIPES else "none"}
        | {**none, "measure": "iou", "note": "not trained"}
        for train, test in available
        for method in study.config.evaluation.rivals
        if f"{method}/{train}" in study.config.evaluation.left_out
    ]
    table = pd.concat([table, pd.DataFrame(missing)]) if missing else table
    order = table[["train", "test"]].apply(tuple, axis=1).map(wanted.index)
    return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def pairwise(study: Study, records: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every two methods of the main results on the same images.

    `records` of `main_records`, made anew by default. Columns train, test, method, other, seeds and other_seeds (their
    trainings), reduction, measure, n, the paired difference diff (method − other) with its interval diff_low,
    diff_high, Wilcoxon's p, runs (of the one, then of the other), and p_holm over all pairs of one (train, test) and
    measure.
    """
    records, settings = main_records(study) if records is None else records, study.config.evaluation
    measures, rows = [("per_image", name) for name in ("iou", "dice", "nsd", "hd95")], []
    for (train, test), part in records.groupby(["train", "test"], sort=False):
        for (one, own), (two, other) in itertools.combinations(part.groupby("method", sort=False), 2):
            pair = {"train": train, "test": test, "method": one, "other": two}
            pair |= {"seeds": own["seed"].nunique(), "other_seeds": other["seed"].nunique()}
            runs = " ".join(side["runs"].iloc[0] for side in (own, other))
            found = paired_differences(own, other, measures, settings.bootstrap_draws, study.config.seed)
            for (reduction, measure), difference in zip(measures, found, strict=True):
                score = {"reduction": reduction, "measure": measure, "n": difference.n, "runs": runs}
                rows.append(pair | score | difference.columns())
    labels = ["train", "test", "method", "other", "seeds", "other_seeds", "reduction", "measure", "n"]
    table = pd.DataFrame(rows, columns=[*labels, *DIFFERENCE, "runs"])
    return table.assign(p_holm=table.groupby(["train", "test", "measure"])["p"].transform(holm))


def cross_dataset(results: pd.DataFrame) -> pd.DataFrame:
    """What a change of test set costs: each row of `tokencutseg` in main_results beside the same models' score on the
    test images of their own training set.

    Columns train, test, method, runs, reduction, measure, n, mean, low, high, published, note, in_domain (that score),
    diff (mean − in_domain).
    """
    ours = results[(results["method"] == OURS) & (results["n"] > 0)]
    columns = ["train", "test", "method", "runs", "reduction", "measure", "n", "mean", "low", "high"]
    columns += ["published", "note"]
    own = ours.loc[ours["train"] == ours["test"], ["train", "reduction", "measure", "mean"]]
    table = ours[columns].merge(own.rename(columns={"mean": "in_domain"}), "left", ["train", "reduction", "measure"])
    return table.assign(diff=table["mean"] - table["in_domain"])


def score_by_group(study: Study, records: pd.DataFrame | None = None) -> pd.DataFrame:
    """Lesion IoU by size of the lesion, by its contrast to the skin, by diagnosis, and by where the image comes from.

    `records` of `main_records`, made anew by default. Size and contrast are cut into thirds of each test set; diagnoses
    are there where a set names them (HAM10000, PH2); the site is the test set, since these sets name no other. Columns
    train, test, note, method, runs, grouping, group, reduction, measure, n, mean, low, high.
    """
    records = main_records(study) if records is None else records
    parts, sizes = [], ("lesion size", "lesion_fraction", ["small", "medium", "large"])
    for grouping, column, names in (sizes, ("contrast", "contrast", ["low", "medium", "high"])):
        rank = records.groupby(["train", "test", "method", "seed"])[column].rank(pct=True)  # all have the same images
        chosen = records.assign(grouping=grouping, group=pd.cut(rank, [0, 1 / 3, 2 / 3, 1], labels=names))
        parts.append(chosen.dropna(subset="group").sort_values("group", kind="stable").astype({"group": str}))
    for test in records["test"].unique():
        images = study.source.load(test, "test")
        diagnosis = dict(zip(images.ids, images.groups or (), strict=False))
        own = records[records["test"] == test]
        parts.append(own.assign(grouping="diagnosis", group=own["id"].map(diagnosis)).dropna(subset="group"))
    parts.append(records.assign(grouping="site", group=records["test"]))
    by, settings = ["train", "test", "note", "method", "runs", "grouping", "group"], study.config.evaluation
    return summary_table(pd.concat(parts), by, ["per_image"], ["iou"], settings.bootstrap_draws, study.config.seed)


def worst_first(study: Study, count: int = 12) -> tuple[ImageSet, Tensor, np.ndarray]:
    """The images of the first pair of the main results with the lowest lesion IoU, lowest first: images, predicted
    masks (n, S, S), and their IoU (n,)."""
    train, test = available_rows(study)[0]
    run, images = study.segmenter(train), study.source.load(test, "test")
    scores = study.records(run, test, "test")["iou"].to_numpy()
    order = np.argsort(scores, kind="stable")[:count]
    chosen = images.subset(order)
    return chosen, predict_masks(run.model(), chosen), scores[order]


def leakage(study: Study) -> pd.DataFrame:
    """Images that two splits share, and what leaving them out does to every method's score.

    Each pair of splits (a split with itself: its own duplicates); then, if the recipe learns from unlabelled images,
    these and each test set of the main results, and these and the training set together; last the unlabelled images
    against all validation and test splits. Columns set_1, set_2, same_id, same_content, near_duplicate (pairs, see
    `overlaps`), images (of set_2 that are also in set_1). Where these are what the main results were trained and tested
    on, one row per method with train (the training set), method, runs, iou (per_image over all test images), low, high,
    and the same without the shared images: iou_without, low_without, high_without, n_without (images that are left);
    else one row without these.
    """
    source, settings = study.source, study.config
    sets = {(name, split): source.load(name, split) for name, splits in source.datasets.items() for split in splits}
    found, results, records = both_ways(source.overlaps), available_rows(study), main_records(study)

    def rows(one: str, two: str, pairs: pd.DataFrame, scores: pd.DataFrame | None = None) -> pd.DataFrame:
        counts = {kind.replace(" ", "_"): int((pairs["kind"] == kind).sum()) for kind in KINDS}
        images = len(pairs.drop_duplicates(["dataset_2", "split_2", "id_2"]))
        shared = pd.DataFrame([{"set_1": one, "set_2": two, **counts, "images": images}])
        return shared if scores is None else shared.merge(scores, "cross")

    def scores(train: str, test: str, shared: pd.Series) -> pd.DataFrame:
        own, by = records[(records["train"] == train) & (records["test"] == test)], ["train", "method", "runs"]
        whole, without = (
            summary_table(part, by, ["per_image"], ["iou"], settings.evaluation.bootstrap_draws, settings.seed)
            for part in (own, own[~own["id"].isin(shared)])
        )
        columns = [*by, "mean", "low", "high"]
        table = whole[columns].merge(without[[*columns, "n"]], "left", by, suffixes=("", "_without"))
        table = table.rename(columns={"mean": "iou", "mean_without": "iou_without", "n": "n_without"})
        return table.fillna({"n_without": 0}).astype({"n_without": int})

    parts = []
    for one, two in itertools.combinations_with_replacement(sets, 2):
        own = None
        for first, second in ((one, two), (two, one)):
            if (first[1], second[1]) == ("train", "test") and (first[0], second[0]) in results:
                own = scores(first[0], second[0], between(found, first, second)["id_2"])
        parts.append(rows("/".join(one), "/".join(two), between(found, one, two), own))
    pool = pool_pairs(source, found)
    for train, test in results if "unlabelled" in (settings.vqgan.images, settings.masked_gpt.images) else ():
        pairs = pool[(pool["dataset_2"] == test) & (pool["split_2"] == "test")]
        both = learnt_pairs(source, found, train, test)
        for name, shared in (("unlabelled images", pairs), (f"unlabelled images or {train}/train", both)):
            parts.append(rows(name, f"{test}/test", shared, scores(train, test, shared["id_2"])))
    parts.append(rows("unlabelled images", "validation and test", pool))
    return pd.concat(parts, ignore_index=True)
