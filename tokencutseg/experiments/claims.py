"""What the paper's abstract and its authors' README claim, and the verdict on each by one stated rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tokencutseg.evaluation.statistics import LESS_IS_BETTER, largest_dice
from tokencutseg.experiments.study import Study
from tokencutseg.files import read_csv

PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("isic2016", "isic2016"): {"iou": 0.8618, "dice": 0.9330},
    ("isic2017", "isic2017"): {"iou": 0.8137, "dice": 0.9071},
    ("isic2018", "isic2018"): {"iou": 0.8276, "dice": 0.9039},
    ("isic2016", "isic2017"): {"iou": 0.7433, "dice": 0.8719},
    ("isic2016", "isic2018"): {"iou": 0.8040, "dice": 0.8892},
}
"""mIoU and DSC of the authors' README, as shares, by (train, test)."""

SUPPORTED, NOT_SUPPORTED, UNTESTABLE = "supported", "not supported", "not testable here"
REPRODUCTION_RECIPES = ("released", "described")
"""The recipes that reproduce the published method; `revised` is another one."""
SMOKE_PRESETS = ("tiny", "quick")
"""Presets whose trainings are too short to test a claim."""
RULE = """\
- A published value is supported when it lies within or below the 95 % interval of `released` or `described`. Above
  both, it is not supported at preset full, and not testable at a smaller preset, which trains less.
- `revised` is another method: its score stands beside the published value and decides nothing.
- A published mIoU and DSC that no scoring rule gives together (2J/(1+J)) are not testable: nothing says which is wrong.
- Better than a baseline: the paired 95 % interval of the difference excludes zero, on the better side, and its
  Holm-adjusted p is below 0.05 (there is no p where scores are pooled over tokens).
- Such a claim is supported when this holds against every baseline compared, the required ones from ImageNet weights
  among them, as everybody in practice starts: U-Net, U-Net++, FPN and DeepLabV3+ on the primary test set, the U-Net for
  generalisation. Few labels are judged against the U-Net alone, on every test set. Without these it is not testable;
  it is not supported where one difference fails.
- Not supported: our trainings do not bear it out. Verdicts hold for one preset; tiny and quick give none."""


@dataclass(frozen=True)
class Published:
    """A published value."""

    train: str
    test: str
    measure: str
    value: float
    table: str = "main_results"

    @property
    def text(self) -> str:
        return f"{'mIoU' if self.measure == 'iou' else 'DSC'} {self.train} → {self.test} is {self.value:.2%}"


@dataclass(frozen=True)
class Claim:
    """A claim that TokenCutSeg is better than others, by the rows of a table (pandas queries)."""

    text: str
    table: str
    rows: str
    """The rows that are compared, of all methods."""
    measures: tuple[str, ...] = ("iou",)
    """By each of them it must be better."""
    own: str = 'method == "tokencutseg"'
    others: str = 'method != "tokencutseg"'
    label: str = "method"
    """The column that names one of the others."""
    primary: bool = False
    """Whether the primary test set, the first of the table, counts alone."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """What must be among the others before being better than all of them counts."""


def _imagenet(*names: str) -> dict[str, str]:
    return {f"{name} from ImageNet": f'method == "{name}" and initialisation == "imagenet"' for name in names}


_BASELINES = ("baselines", 'reduction == "per_image"')
_STRONG = _imagenet("unet", "unetplusplus", "fpn", "deeplabv3plus")
_FEW_LABELS = {
    f"{name} with {share:.0%} of the labels, drawn three times": f"{query} and fraction == {share} and seeds >= 3"
    for name, query in _imagenet("unet").items()
    for share in (0.02, 0.05, 0.1)
}
CLAIMS: tuple[Published | Claim, ...] = (
    *(Published(*pair, *score) for pair, scores in PUBLISHED.items() for score in scores.items()),
    Claim("achieves state-of-the-art performance", *_BASELINES, primary=True, needs=_STRONG),
    Claim("superior boundary accuracy", *_BASELINES, ("nsd", "hd95"), primary=True, needs=_STRONG),
    Claim(
        "superior generalisation",
        "main_results",
        'train == "isic2016" and test == "isic2017" and reduction == "per_image" and n > 0',
        others='recipe == "none"',
        needs=_imagenet("unet"),
    ),
    Claim(
        "label-efficient",
        "label_efficiency",
        "fraction in (0.02, 0.05, 0.1)",
        others='method == "unet"',
        label="fraction",
        needs=_FEW_LABELS,
    ),
    Claim(
        "effectively solves the feature bottleneck",
        "feature_quality",
        'head == "graph" and images_seen == 0',
        own='features == "transformer"',
        others='not features.str.startswith("transformer")',
        label="features",
    ),
    Claim("more robust and practical", "", ""),
)
SPLITS = {"label_efficiency": "test", "baselines": "test", "feature_quality": "validation"}
"""The split of the primary dataset that a table without notes of its own is scored on."""
COLUMNS = ["claim", "table", "reduction", "measure", "published", "recipe", "measured", "low", "high"]
COLUMNS += ["revised", "unet", "complete", "verdict", "reason"]


def claims(study: Study) -> pd.DataFrame:
    """One row per claim, judged by `RULE` from the tables that the study has written.

    Columns claim, table, reduction, measure, published, recipe, measured, low, high, revised and unet (their scores,
    beside a published value), complete (whether no official image was missing), verdict, reason.
    """
    preset, tables = study.config.preset, {}
    short, drawn = preset in SMOKE_PRESETS, study.source.name == "synthetic"
    if short or drawn:
        why = [f"preset {preset} trains for too short a time"] * short + ["the lesions are synthetic"] * drawn
        return pd.DataFrame([{"claim": "all", "verdict": UNTESTABLE, "reason": " and ".join(why)}], columns=COLUMNS)
    for name in {claim.table for claim in CLAIMS}:
        if (path := study.folder / "tables" / f"{name}.csv").is_file():
            tables[name] = read_csv(path)
            if name in SPLITS:
                pairs = [(study.source.primary, split) for split in ("train", SPLITS[name])]
                tables[name]["note"] = study.source.missing_images(*pairs)
    return pd.DataFrame([judge(claim, tables, preset) for claim in CLAIMS], columns=COLUMNS)


def judge(claim: Published | Claim, tables: Mapping[str, pd.DataFrame], preset: str = "full") -> dict[str, Any]:
    """What is known of a claim's row of `claims`, from tables by name with a column `note` of missing images."""
    table = tables.get(claim.table)
    if not claim.table:
        found = {"reason": "neither the abstract nor the authors' README names a measure of it"}
    elif table is None:
        found = {"reason": f"this study has not written {claim.table}"}
    else:
        found = _judge_value(claim, table, preset) if isinstance(claim, Published) else _judge_better(claim, table)
    return {"claim": claim.text, "table": claim.table, "verdict": UNTESTABLE} | found


def _judge_value(claim: Published, table: pd.DataFrame, preset: str) -> dict[str, Any]:
    pair = f'train == "{claim.train}" and test == "{claim.test}" and n > 0'
    rows = table.query(f'{pair} and reduction == "micro_two_class" and measure == "{claim.measure}"')
    row = {"reduction": "micro_two_class", "measure": claim.measure, "published": claim.value}
    row["revised"] = rows.loc[rows["recipe"] == "revised", "mean"].max()
    row["unet"] = rows.loc[rows["method"] == "unet", "mean"].max()
    broken = (
        "" if _possible(PUBLISHED[claim.train, claim.test]) else "; the published mIoU and DSC break the bound 2J/(1+J)"
    )
    found = rows[rows["recipe"].isin(REPRODUCTION_RECIPES)]
    if found.empty:
        neither = f"neither {' nor '.join(REPRODUCTION_RECIPES)}"
        return row | {"reason": f"{neither} has a score {claim.train} → {claim.test}{broken}"}
    if found["published"].isna().all():
        return row | {"reason": f"not scored on the published test: {found['note'].iloc[0]}"}
    best = found.loc[found["high"].idxmax()]
    reached = claim.value <= best["high"]
    verdict = SUPPORTED if reached else NOT_SUPPORTED if preset == "full" else UNTESTABLE
    reason = f"{'within or below' if reached else 'above'} the interval of {best['recipe']}"
    if not reached and preset != "full":
        reason += f", but preset {preset} trains less and at fewer pixels than the paper"
    return row | _measured(best, reason + broken) | {"verdict": UNTESTABLE if broken else verdict}


def _judge_better(claim: Claim, table: pd.DataFrame) -> dict[str, Any]:
    if claim.table == "feature_quality":  # scores pooled over tokens, under names of their own
        names = {"iou": "mean", "iou_low": "low", "iou_high": "high"}
        table = table.drop(columns=["low", "high"]).rename(columns=names)
        table = table.assign(reduction="micro_lesion", measure="iou")
    rows = table.query(claim.rows)
    rows = rows[rows["measure"].isin(claim.measures)]
    if claim.primary:
        rows = rows[rows["test"] == table["test"].iloc[0]]
    own, others = rows.query(claim.own), rows.query(claim.others)
    if own.empty or others.empty:
        query = f"{claim.own if own.empty else claim.others} and {claim.rows}"
        return {"reason": f"{claim.table} has no row with {query.replace(' ==', '').replace(chr(34), '')}"}
    better = np.array([_significantly_better(row) for _, row in others.iterrows()])
    failed = others[~better]
    several = "test" in rows and rows["test"].nunique() > 1
    named = "; ".join(
        f"{row['measure']} {row['diff']:+.3g} [{row['diff_low']:.3g}, {row['diff_high']:.3g}] to {row[claim.label]}"
        + (f" on {row['test']}" if several else "")
        + (f" (Holm-adjusted p {row['p_holm']:.2g})" if _leads(row) and not failed.empty else "")
        for _, row in (others if failed.empty else failed).iterrows()
    )
    lacking = [name for name, query in claim.needs.items() if others.query(query).empty]
    verdict, reason = NOT_SUPPORTED, f"not significantly better: {named}"
    if failed.empty:
        without = f"; without {', '.join(lacking)}" if lacking else ""
        verdict, reason = UNTESTABLE if lacking else SUPPORTED, f"significantly better: {named}{without}"
    return _measured(own.iloc[0], reason) | {"verdict": verdict}


def _significantly_better(row: pd.Series) -> bool:
    return _leads(row) and not row.get("p_holm", 0.0) >= 0.05


def _leads(row: pd.Series) -> bool:
    return bool((-row["diff_high"] if row["measure"] in LESS_IS_BETTER else row["diff_low"]) > 0)


def _measured(score: pd.Series, reason: str) -> dict[str, Any]:
    """The columns that a row of another table fills, with what images it was made without."""
    note = "" if pd.isna(score.get("note")) else score["note"]
    row = {"measured": score["mean"], "complete": note == "", "reason": f"{reason}; {note}" if note else reason}
    return row | {name: score.get(name) for name in ("reduction", "measure", "recipe", "low", "high")}


def published_consistency() -> pd.DataFrame:
    """Each published (mIoU, DSC) pair against the largest DSC that its mIoU allows over the same units, 2J/(1+J).

    Columns train, test, iou, dice, largest_dice, excess, possible.
    """
    table = pd.DataFrame({"train": train, "test": test, **scores} for (train, test), scores in PUBLISHED.items())
    bound = largest_dice(table["iou"])
    return table.assign(largest_dice=bound, excess=table["dice"] - bound, possible=_possible(table))


def _possible(scores: Any) -> Any:
    """Whether a published pair of mIoU and DSC can come from one scoring rule, as far as its digits go."""
    return scores["dice"] <= largest_dice(scores["iou"]) + 5e-5
