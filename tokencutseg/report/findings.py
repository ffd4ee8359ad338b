"""What a study has found: sentences made from its tables, with their numbers and intervals.

A difference is called one only where its paired interval leaves out zero and its Holm-adjusted p, if it has one, is
below 0.05, which is the rule of the claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from tokencutseg.experiments.claims import UNTESTABLE
from tokencutseg.experiments.pipeline import OURS
from tokencutseg.plots.style import REDUCTIONS
from tokencutseg.report.tables import LABELS, VALUES, interval

MAX_NAMED = 4
"""Rows that a sentence names one by one, those with the largest differences."""


def headline(main_results: pd.DataFrame) -> str:
    """The main number against every other method, on the first test set."""
    rows = _first_pair(main_results).query("reduction == 'per_image' and measure == 'iou'")
    own, others = rows[rows["method"] == OURS].iloc[0], rows[rows["method"] != OURS]
    times = f" (mean of {own['seeds']:.0f} trainings)" if own["seeds"] > 1 else ""
    sentence = f"On {own['n']:.0f} test images of {own['test']}, TokenCutSeg{times}"
    sentence += f" has a lesion IoU of {_score(own)} per image"
    return f"{sentence}: {_compared(others, others['method'].replace(LABELS))}." if len(others) else f"{sentence}."


def budget(budgets: pd.DataFrame) -> str:
    """What our method's supervised training saw."""
    own = budgets[(budgets["method"] == OURS) & (budgets["stage"] == "segmentation")].iloc[0]
    return f"{own['images_seen']:,.0f} labelled samples from {own['training_images']:,.0f} masks"


def claims_tested(claims: pd.DataFrame) -> str:
    """Which of the paper's claims the study decides, and how."""
    if (claims["claim"] == "all").all():
        return f"No claim of the paper is tested here: {claims['reason'].iloc[0]}."
    decided = claims[claims["verdict"] != UNTESTABLE]
    named = [f"; {verdict}: {', '.join(rows['claim'])}" for verdict, rows in decided.groupby("verdict", sort=False)]
    return f"Of the paper's {len(claims)} claims this study can test {len(decided)}{''.join(named)}."


def _reconstruction(table: pd.DataFrame) -> str:
    row = table[table["measure"] == "psnr"].iloc[0]
    return f"Test images of {row['dataset']} decoded from their tokens have a PSNR of {_score(row)} dB."


def _codebook_usage(table: pd.DataFrame) -> str:
    share = table.loc[table["count"] > 0, "share"]
    evenly, lesion = np.exp(-(share * np.log(share)).sum()), (table["lesion_share"] > 0.5).sum()
    used = f"{len(share)} of {len(table)} codes are in use, with a perplexity of {evenly:.1f}"
    return f"{used}; {lesion} of them lie mostly on lesions, though the tokenizer saw no mask."


def _masked_prediction(table: pd.DataFrame) -> str:
    row = table.query("pattern == 'block' and mask_ratio == 0.5").iloc[0]
    accuracy = interval(*row[["accuracy", "low", "high"]])
    return (
        f"With half of an image's tokens masked, in blocks, {accuracy} of them are predicted exactly; "
        f"naming the commonest code each time would hit {row['chance']:.3f}."
    )


def _linear_probe(table: pd.DataFrame) -> str:
    rows = table.drop_duplicates("features").set_index("features")
    names = {"output": "the transformer's output", "tokenizer": "the tokenizer's vectors", "colour": "plain colour"}
    scores = [
        f"{interval(*rows.loc[name, ['balanced_accuracy', 'low', 'high']])} on {words}"
        for name, words in names.items()
        if name in rows.index
    ]
    return f"A linear probe tells lesion from skin tokens with a balanced accuracy of {', '.join(scores)} (not paired)."


def _segmentation_history(table: pd.DataFrame) -> str:
    kept = table.loc[[part[part["chosen_by"].iloc[0]].idxmax() for _, part in table.groupby("train", sort=False)]]
    parts = [f"{row[row['chosen_by']]:.3f} on {row['train']} (epoch {row['epoch']:.0f})" for _, row in kept.iterrows()]
    reduction = VALUES["chosen_by"][kept["chosen_by"].iloc[0]]
    return f"The epoch that was kept has, on validation images, an {reduction} of {', '.join(parts)}."


def _main_results(table: pd.DataFrame) -> str:
    rows = _first_pair(table).query("method == @OURS and measure == 'iou'")
    scores = ", ".join(f"{_score(row)} ({REDUCTIONS[row['reduction']].label})" for _, row in rows.iterrows())
    return f"The same masks of {rows['test'].iloc[0]} have {len(rows)} scores called IoU: {scores}."


def _cross_dataset(table: pd.DataFrame) -> str:
    rows = table.query("reduction == 'per_image' and measure == 'iou'")
    own = rows[rows["train"] == rows["test"]].set_index("train")
    parts = [
        f"{row['train']} → {row['test']} {_score(row)} against {_score(own.loc[row['train']])} on the own one"
        for _, row in rows[(rows["train"] != rows["test"]) & rows["train"].isin(own.index)].iterrows()
    ]
    return f"Lesion IoU on another set: {'; '.join(parts)} (other images, so no paired difference)." if parts else ""


def _score_by_group(table: pd.DataFrame) -> str:
    rows = table[(table["method"] == OURS) & (table["grouping"] == "lesion size")]
    rows = rows[(rows["train"] == rows["train"].iloc[0]) & (rows["test"] == rows["test"].iloc[0])]
    scores = ", ".join(f"{_score(row)} for {row['group']}" for _, row in rows.iterrows())
    return f"By size of the lesion, the lesion IoU is {scores} ones."


def _feature_quality(table: pd.DataFrame) -> str:
    rows = table[(table["head"] == "graph") & table["diff"].notna()]
    words = ("significantly better than on", "significantly worse than on", "without significant difference to")
    found = _compared(rows, rows["features"], words)
    return f"Under the graph head, IoU over tokens on the transformer's output is {found}."


def _against_methods(table: pd.DataFrame) -> str:
    rows = table[(table["reduction"] == "per_image") & (table["measure"] == "iou") & table["diff"].notna()]
    names = rows["method"].replace(LABELS)
    if "fraction" in rows:
        names += [f" with {share:.3g} % of the masks" for share in 100 * rows["fraction"]]
    if "test" in rows and rows["test"].nunique() > 1:
        names += " on " + rows["test"]
    samples = f"after {rows['images_seen'].max():,.0f} labelled samples each, " if "images_seen" in rows else ""
    sentence = f"{samples}TokenCutSeg's lesion IoU is {_compared(rows, names)}."
    return sentence[0].upper() + sentence[1:] if len(rows) else ""


def _changes(reference: str, name: Callable[[pd.Series], str]) -> Callable[[pd.DataFrame], str]:
    """A sentence on the rows of an ablation that are compared with `reference`."""

    def sentence(table: pd.DataFrame) -> str:
        rows = table[table["diff"].notna()]
        words = ("significantly better with", "significantly worse with", "not significantly different with")
        found = _compared(rows, [name(row) for _, row in rows.iterrows()], words)
        return f"Compared with {reference}, after the same short training, lesion IoU is {found}." if found else ""

    return sentence


def _option(row: pd.Series) -> str:
    change = f"{row['option' if 'option' in row else 'step']}"
    if pd.notna(row["setting"]) and row["setting"] != "":
        change += f" {row['setting']} → {row['instead']}"
    return f"{change} in {row['recipe']}" if "recipe" in row else change


def _efficiency(table: pd.DataFrame) -> str:
    parts = [
        f"{row['method']} {row['parameters'] / 1e6:.1f} million parameters, "
        f"{row['flops'] / 1e9:.1f} billion operations and {1000 * row['latency_seconds']:.0f} ms"
        for _, row in table.replace({"method": LABELS}).iterrows()
    ]
    return f"A prediction takes {'; '.join(parts)} on this machine."


SENTENCES: dict[str, Callable[[pd.DataFrame], str]] = {
    "reconstruction": _reconstruction,
    "codebook_usage": _codebook_usage,
    "masked_prediction": _masked_prediction,
    "linear_probe": _linear_probe,
    "segmentation_history": _segmentation_history,
    "main_results": _main_results,
    "cross_dataset": _cross_dataset,
    "score_by_group": _score_by_group,
    "codebook_size": _changes("the first row", lambda row: f"{row['codebook_size']} codes"),
    "stages": _changes("the row above", lambda row: row["stages"].removeprefix("+ ")),
    "graph_radius": _changes("the first row", lambda row: f"radius {row['radius']:g}"),
    "feature_quality": _feature_quality,
    "label_efficiency": _against_methods,
    "deviations": _changes("the unchanged recipe", _option),
    "revised_steps": _changes("the best before", _option),
    "efficiency": _efficiency,
    "baselines": _against_methods,
    "claims": claims_tested,
}
"""The sentence of a table, by its name."""


def _first_pair(table: pd.DataFrame) -> pd.DataFrame:
    scored = table[table["mean"].notna()]
    return scored[(scored["train"] == scored["train"].iloc[0]) & (scored["test"] == scored["test"].iloc[0])]


def _score(row: pd.Series) -> str:
    return interval(row["mean"], row["low"], row["high"])


def _compared(
    rows: pd.DataFrame,
    names: Iterable[str],
    words: tuple[str, str, str] = (
        "significantly above that of",
        "significantly below that of",
        "not significantly different from that of",
    ),
) -> str:
    """The paired differences of `rows`, those that are significant apart from the others."""
    shown = rows.assign(name=list(names)).sort_values("diff", key=abs, ascending=False, kind="stable")
    groups: tuple[list[str], ...] = ([], [], [])
    for _, row in shown.iterrows():
        difference = interval(row["diff"], row["diff_low"], row["diff_high"], signed=True)
        apart, p = row["diff_low"] * row["diff_high"] > 0, row.get("p_holm", 0.0)
        open_ = not apart or p >= 0.05
        note = f", Holm-adjusted p {p:.2g}" if apart and open_ else ""
        groups[2 if open_ else int(row["diff"] < 0)].append(f"{row['name']} ({difference}{note})")
    return "; ".join(
        f"{word} {', '.join(group[:MAX_NAMED])}{f' and {len(group) - MAX_NAMED} more' if group[MAX_NAMED:] else ''}"
        for word, group in zip(words, groups, strict=True)
        if group
    )
