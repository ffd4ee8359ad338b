"""What the paper's abstract and its authors' README claim, and what the records say about it, by a stated rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from tokencutseg.config import RECIPES
from tokencutseg.evaluation.statistics import LESS_IS_BETTER, largest_dice

PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("isic2016", "isic2016"): {"iou": 0.8618, "dice": 0.9330},
    ("isic2017", "isic2017"): {"iou": 0.8137, "dice": 0.9071},
    ("isic2018", "isic2018"): {"iou": 0.8276, "dice": 0.9039},
    ("isic2016", "isic2017"): {"iou": 0.7433, "dice": 0.8719},
    ("isic2016", "isic2018"): {"iou": 0.8040, "dice": 0.8892},
}
"""mIoU and DSC of the authors' README, as shares, by (train, test)."""

VERDICTS = SUPPORTED, NOT_SUPPORTED, UNTESTABLE = "supported", "not supported", "not testable here"

UNET_TOO = "; a U-Net under the same loop reaches it too"
"""Said of a published value that is reached."""
INSIDE, EDGE, ABOVE = (
    "within or below the measured interval",
    "too near the end of the measured interval",
    "above the measured interval",
)
"""Where a published value lies."""
DRAWN = 0.014
"""How far off the end of a bootstrap interval may be, as a share of its width: twice the standard error of the 97.5 %
quantile of 10,000 draws from a normal distribution."""
READINGS = ("released", "described")
"""The recipes that read the published method; `revised` is another one."""
STRONG = ("unet", "deeplabv3plus", "segformer")
"""Networks that must be among the beaten ones before a method counts as diff of the field."""
FEW_LABELS, SEEDS = (0.02, 0.05, 0.1), 3
"""Shares of the labels that are few, and how many draws of them a lead needs."""

RULE = (
    "A published value is judged where a recipe that reads the published method, `released` or `described`, was "
    "trained: supported when it lies inside the 95 % interval of the measured one or below it; above it, not supported "
    "where we train as long and at as many pixels as the paper (preset full), since a smaller preset can reach a value "
    "but not refute it; one so near the interval's upper end that other bootstrap draws may put it on the other side "
    "gets no verdict, and neither does a DSC that no scoring rule gives together with its mIoU. `revised` is another "
    "method: what it reaches is said, and is no verdict on the published one. Being better than rivals is supported "
    "when, all under one budget, the paired 95 % interval of the difference to each of them lies on the better side of "
    "zero, by more than other draws may move its end, and its Holm-adjusted p is below 0.05, and not supported "
    "otherwise; where all rivals are beaten, but the strong ones are not among them or did not start from ImageNet "
    "weights, it is not testable. For the state of the art (lesion IoU) and for boundaries (NSD and HD95) the strong "
    "ones are U-Net, DeepLabV3+ and SegFormer; for generalisation (lesion IoU, 16 → 17, which the paper takes for it, "
    "though both sets come from one archive) it is the U-Net. Label-efficient is what is better in this sense than the "
    "U-Net under the same loop with 2, with 5 and with 10 % of the labels, each drawn three times. The feature "
    "bottleneck is solved, as we read it, when under the graph head the paired interval of the lead that the "
    "transformer's features, before any mask, have over each other kind that has seen none lies above zero. Not "
    "testable here: the data, the comparison or the training is missing. Not supported says that our trainings do not "
    "bear a claim out, and does not prove its opposite. A verdict holds for the preset of its study and, where no "
    "other is named, for its recipe, so that being better is then that of `revised` and not of the published method; "
    "the presets tiny and quick give none."
)


def published_consistency() -> pd.DataFrame:
    """Each published (mIoU, DSC) pair against the largest DSC that its mIoU allows over the same units, 2J/(1+J).

    Columns train, test, iou, dice, largest_dice, excess, possible.
    """
    rows = []
    for (train, test), scores in PUBLISHED.items():
        bound = float(largest_dice(scores["iou"]))
        rows.append(
            {
                "train": train,
                "test": test,
                **scores,
                "largest_dice": bound,
                "excess": scores["dice"] - bound,
                "possible": _possible(train, test),
            }
        )
    return pd.DataFrame(rows)


def _possible(train: str, test: str) -> bool:
    """Whether a published pair of mIoU and DSC can come from one scoring rule, as far as its digits tell."""
    return PUBLISHED[train, test]["dice"] <= largest_dice(PUBLISHED[train, test]["iou"]) + 5e-5


DEMONSTRATIONS = ("tiny", "quick")
"""Presets whose trainings are too short to hold a claim against: their tables give no verdict."""


def claims(
    results: pd.DataFrame | None,
    others: Mapping[str, pd.DataFrame | None] | None = None,
    preset: str = "full",
    gaps: Mapping[str, str | None] | None = None,
) -> pd.DataFrame:
    """One row per claim: what was measured, its interval, and the verdict by `RULE`. A published value has one more for
    each other recipe that was scored.

    `results` is the table main_results, `others` the tables `label_efficiency`, `baselines` and `feature_quality`, all
    as far as they are there; `preset` is the one that they were made with, and `gaps` says by name which official
    images those of `others` were made without (empty: none, None: not known). Columns claim, experiment, reduction,
    published, measured, low, high, complete, verdict, reason.
    """
    others = others or {}
    scored = (
        set()
        if results is None
        else set(results.loc[results["n"] > 0, ["train", "test", "method"]].itertuples(index=False, name=None))
    )
    rows = [
        _cell(results, train, test, measure, method, preset)
        for method in ("tokencutseg", *RECIPES)
        for (train, test) in PUBLISHED
        for measure in ("iou", "dice")
        if method == "tokencutseg" or (train, test, method) in scored
    ]
    table = pd.DataFrame(
        [
            *rows,
            _state_of_the_art(others.get("baselines")),
            _boundaries(others.get("baselines")),
            _generalisation(results),
            _label_efficiency(others.get("label_efficiency")),
            _bottleneck(others.get("feature_quality")),
            _row(
                "more robust and practical",
                "none",
                UNTESTABLE,
                "neither the abstract nor the authors' README names a measure of either",
            ),
        ]
    )
    for experiment, gap in (gaps or {}).items():
        rows = (table["experiment"] == experiment) & table["measured"].notna()
        if gap is not None:
            table.loc[rows, "complete"] = gap == ""
            table.loc[rows, "reason"] += f"; {gap}" if gap else ""
    if preset in DEMONSTRATIONS:
        measured = table["verdict"] != UNTESTABLE
        table.loc[measured, "reason"] = f"preset {preset} is a demonstration; " + table.loc[measured, "reason"]
        table["verdict"] = UNTESTABLE
    return table


def significant(low: Any, high: Any, p_holm: Any = 0.0) -> Any:
    """Whether a lead is clear: the low end of its paired interval above zero by more than other bootstrap draws would
    move it, and its adjusted p below 0.05."""
    return (low > DRAWN * (high - low)) & (p_holm < 0.05)


def better_by(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `diff` and its interval turned for measures that are better when smaller: above zero is better."""
    turned, ends = rows["measure"].isin(LESS_IS_BETTER), ["diff", "diff_low", "diff_high"]
    swapped = -rows[["diff", "diff_high", "diff_low"]].set_axis(ends, axis=1)
    return rows.assign(**{end: rows[end].mask(turned, swapped[end]) for end in ends})


def place(published: float, low: float, high: float) -> str:
    """Where a published value lies beside a measured interval: `INSIDE` it or below, `ABOVE`, or at its `EDGE`."""
    if abs(published - high) <= DRAWN * (high - low):
        return EDGE
    return INSIDE if published <= high else ABOVE


def _verdict(holds: bool) -> str:
    return SUPPORTED if holds else NOT_SUPPORTED


def _row(claim: str, experiment: str, verdict: str, reason: str, **values: object) -> dict[str, object]:
    unknown = dict.fromkeys(("published", "measured", "low", "high", "complete"))
    return (
        {"claim": claim, "experiment": experiment, "reduction": "", **unknown}
        | values
        | {"verdict": verdict, "reason": reason}
    )


def _cell(
    results: pd.DataFrame | None, train: str, test: str, measure: str, method: str, preset: str
) -> dict[str, object]:
    """One cell of the published table, held against the study's own recipe or another one."""
    published = PUBLISHED[train, test][measure]
    claim = f"{'mIoU' if measure == 'iou' else 'DSC'} {train} → {test} is {published:.2%}" + (
        f", recipe {method}" if method in RECIPES else ""
    )
    experiment, reduction = "main_results", "micro_two_class"
    if results is None:
        return _unwritten(claim, experiment) | {"reduction": reduction, "published": published}
    found = _find(results, train=train, test=test, method=method, reduction=reduction, measure=measure)
    if found is None:
        return _row(
            claim, experiment, UNTESTABLE, _absent(results, train, test), reduction=reduction, published=published
        )
    where = reason = place(published, found["low"], found["high"])
    verdict = UNTESTABLE if where == EDGE else _verdict(where == INSIDE)
    unet = _find(results, train=train, test=test, method="unet", reduction=reduction, measure=measure)
    if found["recipe"] not in READINGS:
        verdict, reason = UNTESTABLE, f"{reason} of `{found['recipe']}`, which is not the published method"
    elif where == EDGE:
        reason += ": other bootstrap draws may put it on the other side"
    elif where == ABOVE and preset != "full":
        verdict, reason = UNTESTABLE, f"{reason}, but preset {preset} trains less and at fewer pixels than the paper"
    if where == INSIDE and unet is not None and place(published, unet["low"], unet["high"]) == INSIDE:
        reason += f"{UNET_TOO} ({unet['mean']:.4f})"
    if measure == "dice" and not _possible(train, test):
        verdict, reason = UNTESTABLE, f"{reason}; with the published mIoU it breaks the bound 2J/(1+J)"
    if not found["complete"]:
        reason += f"; {found['note']}"
    return _row(
        claim,
        experiment,
        verdict,
        reason,
        reduction=reduction,
        published=published,
        measured=found["mean"],
        low=found["low"],
        high=found["high"],
        complete=bool(found["complete"]),
    )


def _absent(results: pd.DataFrame, train: str, test: str) -> str:
    """Why a pair has no score: its images are missing, or the study is about others."""
    rows = results[(results["train"] == train) & (results["test"] == test)]
    return f"no images of {train} → {test}" if len(rows) else f"this study does not train and test {train} → {test}"


def _unwritten(claim: str, table: str) -> dict[str, object]:
    return _row(claim, table, UNTESTABLE, f"this study has not written {table} yet")


def _state_of_the_art(table: pd.DataFrame | None) -> dict[str, object]:
    """Lesion IoU against every other method under one budget."""
    claim, experiment = "achieves state-of-the-art performance", "baselines"
    return _unwritten(claim, experiment) if table is None else _against_all(claim, experiment, table, ["iou"], STRONG)


def _boundaries(table: pd.DataFrame | None) -> dict[str, object]:
    """Both boundary measures against every other method."""
    claim, experiment = "superior boundary accuracy", "baselines"
    return (
        _unwritten(claim, experiment)
        if table is None
        else _against_all(claim, experiment, table, ["nsd", "hd95"], STRONG)
    )


def _against_all(
    claim: str, experiment: str, table: pd.DataFrame, measures: list[str], strong: tuple[str, ...]
) -> dict[str, object]:
    """Whether our method is clearly better than all others of `table` by every one of `measures`, the `strong` ones
    among them."""
    rows = table[(table["reduction"] == "per_image") & table["measure"].isin(measures)]
    rivals = rows[rows["method"] != "tokencutseg"]
    if set(rivals["method"]) <= {"otsu"}:
        return _row(claim, experiment, UNTESTABLE, "no trained baseline was compared with")
    rivals = better_by(rivals)
    clear = significant(rivals["diff_low"], rivals["diff_high"], rivals["p_holm"])
    ours = rows[(rows["method"] == "tokencutseg") & (rows["measure"] == measures[0])].iloc[0]
    told = [
        f"{row.measure} {row.diff:+.3g} [{row.diff_low:.3g}, {row.diff_high:.3g}] against {row.method}"
        for row in rivals[~clear].itertuples()
    ]
    reason = (
        "not clearly better: " + "; ".join(told)
        if told
        else f"better than {', '.join(dict.fromkeys(rivals['method']))} by {' and '.join(measures)}"
    )
    verdict, lacking = _verdict(clear.all()), _lacking(rivals, strong)
    if clear.all() and lacking:
        verdict, reason = UNTESTABLE, f"{reason}; {lacking}"
    return _row(
        claim,
        experiment,
        verdict,
        reason,
        reduction="per_image",
        measured=ours["mean"],
        low=ours["low"],
        high=ours["high"],
    )


def _lacking(rivals: pd.DataFrame, strong: tuple[str, ...]) -> str:
    """What the comparison with `rivals` lacks before beating them all counts: strong ones, from ImageNet weights."""
    missing = [name for name in strong if name not in set(rivals["method"])]
    known = rivals["method"].isin(strong) & (rivals["weights"] == "imagenet" if "weights" in rivals else False)
    plain = [name for name in strong if name not in {*missing, *rivals.loc[known, "method"]}]
    return "; ".join(
        f"{words} {', '.join(names)}"
        for words, names in (("without", missing), ("without known ImageNet weights in", plain))
        if names
    )


def _generalisation(results: pd.DataFrame | None) -> dict[str, object]:
    """16 → 17: lesion IoU on another data set than was trained on, against every other method there.

    How far a score falls from one test set to the other says little: the other may be harder for everyone.
    """
    claim, experiment, (train, test) = "superior generalisation", "main_results", ("isic2016", "isic2017")
    if results is None:
        return _unwritten(claim, experiment)
    away = results[
        (results["train"] == train) & (results["test"] == test) & (results["n"] > 0) & ~results["method"].isin(RECIPES)
    ]
    if away.empty:
        return _row(claim, experiment, UNTESTABLE, _absent(results, train, test))
    row = _against_all(claim, experiment, away, ["iou"], ("unet",))
    home = _find(results, train=test, test=test, method="tokencutseg", reduction="per_image", measure="iou")
    row["reason"] += "" if home is None else f"; trained at home, lesion IoU {home['mean']:.3f}"
    complete = bool(away["complete"].all())
    row["reason"] += "" if complete else f"; {away['note'].iloc[0]}"
    return row | {"complete": complete}


def _label_efficiency(table: pd.DataFrame | None) -> dict[str, object]:
    """Few labels: our method against U-Net on the same few."""
    claim, experiment = "label-efficient", "label_efficiency"
    if table is None or "diff" not in table:
        return _unwritten(claim, experiment)
    few = table[table["fraction"].isin(FEW_LABELS)]
    ours, unet = (few[few["method"] == method].sort_values("fraction") for method in ("tokencutseg", "unet"))
    if unet.empty:
        return _row(claim, experiment, UNTESTABLE, "no U-Net with few labels was compared with")
    clear = significant(unet["diff_low"], unet["diff_high"], unet["p_holm"])
    told = [
        f"{row.fraction:.0%} of the labels {row.diff:+.3f} [{row.diff_low:.3f}, {row.diff_high:.3f}]"
        f"{'' if above else ' (not clear)'}"
        for row, above in zip(unet.itertuples(), clear, strict=True)
    ]
    reason = f"lead over the U-Net in lesion IoU: {', '.join(told)}"
    shares = [f"{share:.0%}" for share in FEW_LABELS if share not in set(unet["fraction"])]
    seeds = min(ours["seeds"].min(), unet["seeds"].min())
    lacking = [
        f"without {', '.join(shares)}" if shares else "",
        _lacking(unet, ("unet",)),
        f"with {seeds} of {SEEDS} draws of the labels" if seeds < SEEDS else "",
    ]
    verdict = _verdict(clear.all())
    if clear.all() and any(lacking):
        verdict, reason = UNTESTABLE, "; ".join(filter(None, [reason, *lacking]))
    fewest = ours.iloc[0]
    return _row(
        claim,
        experiment,
        verdict,
        reason,
        reduction=f"per_image, {fewest['fraction']:.0%} of the labels",
        measured=fewest["mean"],
        low=fewest["low"],
        high=fewest["high"],
    )


def _bottleneck(table: pd.DataFrame | None) -> dict[str, object]:
    """The graph head on the transformer's features against the same head on others that have seen no mask."""
    claim, experiment = "effectively solves the feature bottleneck", "feature_quality"
    if table is None or not {"diff", "images_seen"} <= set(table):
        return _unwritten(claim, experiment)
    rows = table[table["head"] == "graph"].set_index("features")
    ours, others = rows.loc["transformer"], rows[~rows.index.str.startswith("transformer")]
    if ours["images_seen"] > 0:
        return _row(claim, experiment, UNTESTABLE, "under this recipe the transformer's features have seen the masks")
    supervised, others = others[others["images_seen"] > 0], others[others["images_seen"] == 0]
    behind = others[~significant(others["diff_low"], others["diff_high"])]
    told = [
        f"{row.Index} {row.iou:.3f} ({row.diff:+.3f} [{row.diff_low:.3f}, {row.diff_high:.3f}])"
        for row in (others if behind.empty else behind).itertuples()
    ]
    reason = (
        f"token IoU of the graph head {ours['iou']:.3f} on transformer features, "
        f"{'clearly' if behind.empty else 'not clearly'} better than on those of: {'; '.join(told)}"
        + "".join(f"; {row.Index}, which has seen masks, {row.iou:.3f}" for row in supervised.itertuples())
    )
    return _row(
        claim,
        experiment,
        _verdict(behind.empty),
        reason,
        reduction="token IoU",
        measured=ours["iou"],
        low=ours["iou_low"],
        high=ours["iou_high"],
    )


def _find(results: pd.DataFrame, **values: str) -> pd.Series | None:
    rows = results[(results[list(values)] == pd.Series(values)).all(axis=1) & (results["n"] > 0)]
    return None if rows.empty else rows.iloc[0]
