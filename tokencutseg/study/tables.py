"""The tables of notebooks 01 to 04, each a function of the study."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from tokencutseg.data.audit import overlaps
from tokencutseg.evaluation.codebook import codebook_table
from tokencutseg.evaluation.inference import cell_masks, map_batches, tokenize
from tokencutseg.evaluation.probes import cell_labels, layer_features, linear_probe
from tokencutseg.evaluation.reconstruction import reconstruction_scores
from tokencutseg.evaluation.summaries import summary_table
from tokencutseg.model.losses import masked_token_loss
from tokencutseg.model.masked_gpt import draw_mask
from tokencutseg.model.perceptual import load_lpips
from tokencutseg.model.segmenter import TokenCutSeg
from tokencutseg.model.vqgan import VQGAN
from tokencutseg.study.claims import PUBLISHED
from tokencutseg.study.study import Study

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
    rng, rows = np.random.default_rng(study.config.seed), []
    for dataset in test_sets(study):
        images = study.source.load(dataset, "test")
        chosen = images.subset(np.linspace(0, len(images) - 1, min(len(images), study.config.evaluation.lpips_images))
                               .astype(int))
        for part, measures, model in ((images, ("l1", "psnr", "ssim"), None), (chosen, ("lpips",), lpips_model)):
            x = part.images.float() / 255
            back = map_batches(lambda batch: vqgan.detokenize(vqgan.tokenize(batch)), part, 32)
            scores = reconstruction_scores(x, back, model)
            for measure in measures:
                values = scores[measure].to_numpy()
                draws = rng.choice(values, (1000, len(values))).mean(1)
                low, high = np.percentile(draws, [2.5, 97.5])
                rows.append({"dataset": dataset, "measure": measure, "n": len(values), "mean": values.mean(),
                             "low": low, "high": high, "weights": weights if measure == "lpips" else ""})
    return pd.DataFrame(rows)


def codebook_usage(study: Study, dataset: str | None = None) -> pd.DataFrame:
    """One row per code: how often it fires on the test images, and how much of that on lesions."""
    vqgan, images = tokenizer_of(study), study.source.load(dataset or study.source.primary, "test")
    tokens = tokenize(vqgan, images)
    return codebook_table(tokens, cell_masks(images.masks, tuple(tokens.shape[1:])), vqgan.config.n_embed)


# ---- notebook 02 ----------------------------------------

MASK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def masked_prediction(study: Study) -> pd.DataFrame:
    """Accuracy and loss on hidden tokens of the test images, by mask ratio and pattern.

    Columns pattern, mask_ratio, accuracy, loss, chance (always saying the most frequent code), n (hidden tokens).
    """
    model, images = transformer_of(study), study.source.load(study.source.primary, "test")
    batches = [model.words(chunk.float() / 255) for chunk in images.images.split(32)]
    commonest = torch.cat([tokens.flatten() for tokens, _ in batches]).mode().values
    rows = []
    for pattern in ("iid", "block"):
        config = study.config.override({"masked_gpt.mask_pattern": pattern}).masked_gpt
        for ratio in MASK_RATIOS:
            generator = torch.Generator().manual_seed(study.config.seed)
            hits = chance = loss = n = 0.0
            for tokens, encoding in batches:
                mask = draw_mask(tuple(tokens.shape), config, generator, ratio=ratio)
                logits = model.masked_gpt.lm_head(model.transformer_features(tokens, encoding, mask))
                flat, hidden = tokens.flatten(1), int(mask.sum())
                hits += (logits.argmax(-1) == flat)[mask].sum().item()
                chance += (flat[mask] == commonest).sum().item()
                loss += masked_token_loss(logits, flat, mask).item() * hidden
                n += hidden
            rows.append({"pattern": pattern, "mask_ratio": ratio, "accuracy": hits / n, "loss": loss / n,
                         "chance": chance / n, "n": int(n)})
    return pd.DataFrame(rows)


def linear_probes(study: Study) -> pd.DataFrame:
    """A logistic regression lesion/skin on every layer's frozen features: training images → test images.

    Columns features, balanced_accuracy, iou, auc, n (test tokens).
    """
    model, primary = transformer_of(study), study.source.primary
    train, test = study.source.load(primary, "train"), study.source.load(primary, "test")
    train = train.subset(range(min(len(train), 300)))
    features, test_features = layer_features(model, train), layer_features(model, test)
    grid = (study.config.grid_size,) * 2
    labels, test_labels = cell_labels(train, grid), cell_labels(test, grid)
    return pd.DataFrame([{"features": name, **linear_probe(values, labels, test_features[name], test_labels)}
                         for name, values in features.items()])


# ---- notebook 04 ----------------------------------------

def main_records(study: Study) -> pd.DataFrame:
    """Per-image records of every (train, test) pair that the data allows: our method and the Otsu threshold."""
    parts = []
    for train, test in study.source.rows:
        if study.source.has(train, "train") and study.source.has(test, "test"):
            ours = study.records(study.segmenter(train), test, "test").assign(recipe=study.config.recipe)
            parts += [frame.assign(train=train, test=test)
                      for frame in (ours, study.otsu_records(test, "test").assign(recipe="none"))]
    return pd.concat(parts, ignore_index=True)


def main_results(study: Study) -> pd.DataFrame:
    """The study's main table; its columns are described in the README.

    A pair whose images are missing has one row per published number with an empty `mean` and a `note` that says so.
    """
    records = main_records(study)
    table = summary_table(records, ["train", "test", "method", "recipe"], draws=study.config.evaluation.bootstrap_draws,
                          seed=study.config.seed)
    table["published"] = [_published(row) for row in table.itertuples()]
    table["complete"] = [_complete(study, row.train, row.test) for row in table.itertuples()]
    table["note"] = [_note(study, row.train, row.test) for row in table.itertuples()]
    missing = [{"train": train, "test": test, "method": "tokencutseg", "recipe": study.config.recipe,
                "definition": "pooled_two_class", "measure": measure, "n": 0,
                "published": PUBLISHED[train, test][measure], "complete": False, "note": "data not available"}
               for train, test in study.source.rows if (train, test) in PUBLISHED
               and not (study.source.has(train, "train") and study.source.has(test, "test"))
               for measure in ("iou", "dice")]
    return pd.concat([table, pd.DataFrame(missing)], ignore_index=True) if missing else table


def _published(row: Any) -> float | None:
    """The published number, beside our method's row of the definition that the released code prints."""
    if row.method != "tokencutseg" or row.definition != "pooled_two_class":
        return None
    return PUBLISHED.get((row.train, row.test), {}).get(row.measure)


def _complete(study: Study, train: str, test: str) -> bool:
    return study.source.load(train, "train").complete and study.source.load(test, "test").complete


def _note(study: Study, train: str, test: str) -> str:
    partial = []
    for dataset, split in ((train, "train"), (test, "test")):
        images = study.source.load(dataset, split)
        if not images.complete:
            partial.append(f"{dataset} {split} partial: {len(images)} of {images.expected}")
    return "; ".join(partial)


def cross_dataset(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """What a change of test set costs: each row's score beside the same model's score on its own test set.

    Columns train, test, method, definition, measure, n, mean, low, high, own (on the test set of `train`), change.
    """
    ours = results[(results["method"] == "tokencutseg") & (results["n"] > 0)]
    own = ours[ours["train"] == ours["test"]].set_index(["train", "definition", "measure"])["mean"]
    keys = pd.MultiIndex.from_frame(ours[["train", "definition", "measure"]])
    table = ours[["train", "test", "method", "definition", "measure", "n", "mean", "low", "high"]].copy()
    table["own"] = own.reindex(keys).to_numpy()
    table["change"] = table["mean"] - table["own"]
    return table.reset_index(drop=True)


def leakage(study: Study) -> pd.DataFrame:
    """Images that two splits share, by id or by content, and what leaving them out does to the score.

    One row per pair of splits: columns set_1, set_2, same_id, same_content, images (of set_2 that are in set_1), and
    for a scored pair (train → test) n_without, iou (image_lesion, all images) and iou_without (shared images left out).
    """
    source = study.source
    sets = {(dataset, split): source.load(dataset, split)
            for dataset, splits in source.datasets.items() for split in splits}
    found = overlaps(sets)
    names, rows = list(sets), []
    for i, one in enumerate(names):
        for two in names[i + 1:]:
            pairs = _pairs(found, one, two)
            scored = one[1] == "train" and two[1] == "test" and (one[0], two[0]) in source.rows
            row = {"set_1": "/".join(one), "set_2": "/".join(two), "same_id": int((pairs["kind"] == "same id").sum()),
                   "same_content": int((pairs["kind"] == "same content").sum()), "images": pairs["id_2"].nunique()}
            if scored:
                records = study.records(study.segmenter(one[0]), two[0], "test")
                kept = records[~records["id"].isin(pairs["id_2"])]
                row |= {"n_without": len(kept), "iou": records["iou"].mean(), "iou_without": kept["iou"].mean()}
            rows.append(row)
    rows.append({"set_1": "self-supervised pool", "set_2": "all scored splits", "same_id": 0, "same_content": 0,
                 "images": 0} | _pool_overlap(study))
    return pd.DataFrame(rows)


def _pairs(found: pd.DataFrame, one: tuple[str, str], two: tuple[str, str]) -> pd.DataFrame:
    """The overlapping pairs of two splits, `one` on the left."""
    left = found[(found["dataset_1"] == one[0]) & (found["split_1"] == one[1])
                 & (found["dataset_2"] == two[0]) & (found["split_2"] == two[1])]
    right = found[(found["dataset_1"] == two[0]) & (found["split_1"] == two[1])
                  & (found["dataset_2"] == one[0]) & (found["split_2"] == one[1])]
    swapped = right.rename(columns={"id_1": "id_2", "id_2": "id_1"})
    return pd.concat([left, swapped])[["id_1", "id_2", "kind"]]


def _pool_overlap(study: Study) -> dict[str, int]:
    """How many images of scored splits the pool shares: measured, not assumed."""
    source, pool = study.source, study.source.pool()
    scored = [source.load(dataset, split) for dataset, splits in source.datasets.items() for split in splits
              if split in ("validation", "test")]
    ids = {i for images in scored for i in images.ids}
    return {"same_id": len(ids & set(pool.ids)), "images": len(ids & set(pool.ids))}
