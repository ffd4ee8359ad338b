"""The tables of README and REPRODUCTION, made from committed ones: `python -m tokencutseg.study.readme` renews them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokencutseg.config import RECIPES, Config, configure
from tokencutseg.model.saved import PRETRAINED
from tokencutseg.study.claims import (
    DEMONSTRATIONS,
    INSIDE,
    RULE,
    SUPPORTED,
    UNET_TOO,
    UNTESTABLE,
    VERDICTS,
    better_by,
    clearly_ahead,
    place,
    published_consistency,
)
from tokencutseg.study.grids import recipe_table, shortened
from tokencutseg.study.runner import ROOT

REFERENCE = ROOT / "results" / "reference"
"""Committed results: one folder per study, with its tables and the command that made them."""
MODEL_STUDY = "small-isic2017-encoder"
"""The committed study that the model beside the package is from."""
PAIRED = (
    "The interval is that of the mean difference over the same images (bootstrap). p is Wilcoxon's signed-rank test on "
    "the images' differences, adjusted by Holm's method for the number of the table's rows; it asks whether gains "
    "outrank losses, and can be small where the interval holds zero (many small gains, a few large losses). Being "
    "clearly ahead asks for both. Both are about the images, and where there is one training, they say nothing of "
    "another: two that differ by chance alone can have a small p.")
UNDER_ONE_BUDGET = (
    "p is Wilcoxon's signed-rank test on the images' differences, adjusted for the methods of one measure; it "
    "ranks the differences, and can be small where the interval of their mean holds zero. "
    "Minutes are those of the supervised training; \"before\" are the self-supervised stages.")
CHOSEN = (
    "Where a row has several trainings, the interval of the lead covers their spread too (Student's t over them); that "
    "of the score, and p, are about images alone. Images seen in training are those that the training set or the "
    "self-supervised pool holds too, by id, pixels or appearance; in brackets stands how many are left. All methods "
    "choose their epoch on the same validation masks, which the number of labels does not count.")
MEASURED = {"l1": "L1", "psnr": "PSNR in dB", "ssim": "SSIM", "lpips": "LPIPS", "iou": "lesion IoU",
            "nsd": "NSD", "hd95": "HD95 in pixels"}
DOCUMENTS = (ROOT / "README.md", ROOT / "REPRODUCTION.md", PRETRAINED / "README.md")
EARLIER = "an earlier recipe"
NO_TABLE = "No committed study is large enough for this yet.\n"
REACHED = "not testable here, but within or below the interval of `revised`"
"""Said in the summary of a published value, held against a method of our own."""
NO_VERDICT = "No committed study is large enough for a verdict yet.\n"
NAMES = {**dict.fromkeys(("tokencutseg", *RECIPES), "TokenCutSeg"), "otsu": "Otsu threshold", "unet": "U-Net",
         "unet_plain": "U-Net, trained plainly", "unetplusplus": "U-Net++", "fpn": "FPN", "deeplabv3plus": "DeepLabV3+",
         "segformer": "SegFormer", "upernet": "UPerNet"}


def results_markdown(reference: Path = REFERENCE) -> str:
    """Every committed study's main results, lesion IoU per image and the released code's score, under the first words
    of what is said about it."""
    parts = []
    for study in _studies(reference, "main_results"):
        lead, _, _ = (study / "about.md").read_text().partition(":")
        parts += [f"Study [`{study.name}`](results/reference/{study.name}/about.md). {lead}:", "", _table(study), ""]
    return "\n".join(parts)


def studies_markdown(reference: Path = REFERENCE) -> str:
    """The same, under all that is said about each study: its data, its command, what it does not say; and what is said
    about studies of few labels that have no main results and stand nowhere else."""
    main, elsewhere, parts = _studies(reference, "main_results"), _dissected(reference), []
    few = [study for study in _studies(reference, "label_efficiency", demonstrations=False) if study not in elsewhere]
    for study in dict.fromkeys([*main, *few]):
        parts += [(study / "about.md").read_text().strip(), "", *([_table(study), ""] if study in main else [])]
    return "\n".join(parts)


def _studies(reference: Path, table: str, demonstrations: bool = True) -> list[Path]:
    """The committed studies that hold a table, by name; demonstrations last, if at all."""
    found = sorted(path.parent.parent for path in reference.glob(f"*/tables/{table}.csv"))
    shown = {study: _config(study)["preset"] in DEMONSTRATIONS for study in found}
    return [study for study in sorted(found, key=shown.__getitem__) if demonstrations or not shown[study]]


def _read(study: Path, table: str) -> pd.DataFrame:
    return pd.read_csv(study / f"tables/{table}.csv")


def model_markdown(reference: Path = REFERENCE) -> str:
    """The scores of the model that comes with the package."""
    return f"{_table(reference / MODEL_STUDY)}\n"


def labels_markdown(reference: Path = REFERENCE) -> str:
    """Lesion IoU by share of the labels, and how far ours is ahead of each other method on the same images, in every
    committed study that is more than a demonstration."""
    parts = []
    for study in _studies(reference, "label_efficiency", demonstrations=False):
        table, config = _read(study, "label_efficiency"), _config(study)
        own, looks = config["recipe"], _looks(config, "label_efficiency")
        known, kept = "weights" in table, "mean_without" in table
        rows = ["| labels | method |" + (" starts from |" if known else "") + " seeds | images "
                f"| lesion IoU per image [95 %] | {'without images seen in training |' if kept else ''}"
                f" `{own}` is ahead by [95 %, paired] | p (Holm) |",
                "|---|---|" + "---|" * (known + kept) + "---|---|---|---|---|"]
        for row in table.itertuples():
            recipe = own if row.method == "tokencutseg" else row.method
            unseen = "" if getattr(row, "labels_seen", row.labels) == row.labels else f", {row.labels_seen} seen"
            rows.append(f"| {row.labels} ({row.fraction:.0%}){unseen} | {NAMES.get(row.method, row.method)}"
                        + (f", `{recipe}` " if recipe in RECIPES else " ")
                        + (f"| {row.weights} " if known else "")
                        + f"| {row.seeds} | {row.n} | {_scored(row)} "
                        + (f"| {row.mean_without:.3f} ({row.n_without}) " if kept else "")
                        + f"| {_lead(row)} | {_p(row)} |")
        parts += [f"Study [`{study.name}`](results/reference/{study.name}/about.md)"
                  f"{f', {looks:,} looks at labelled images in each training' if looks else ''}:", "", *rows, ""]
    return "\n".join([*parts, PAIRED, CHOSEN, ""]) if parts else NO_TABLE


def _looks(config: dict[str, Any], table: str) -> int:
    """How many looks at labelled images each training behind a table has; 0 where the settings do not say."""
    if "ablation" not in config:
        return 0
    whole = Config.from_dict(config)
    training = (whole if table == "main_results" else shortened(whole)).segmentation
    return training.epochs * (training.images_per_epoch or 0)


def groups_markdown(reference: Path = REFERENCE) -> str:
    """Lesion IoU of each method by size and contrast of the lesion, in every committed study that is more than a
    demonstration."""
    parts = []
    for study in _studies(reference, "score_by_group", demonstrations=False):
        table, config = _read(study, "score_by_group"), _config(study)
        table = table[table["grouping"] != "site"].sort_values(["train", "test"], kind="stable")
        methods = list(dict.fromkeys(table["method"]))
        recipes = [config["recipe"] if name == "tokencutseg" else name for name in methods]
        named = [f"`{name}`" if name in RECIPES else NAMES.get(name, name) for name in recipes]
        rows = [f"| train → test | third by | | images | {' | '.join(named)} |", "|---" * (4 + len(methods)) + "|"]
        for (train, test, by, group), found in table.groupby(["train", "test", "grouping", "group"], sort=False):
            scores = {row.method: _scored(row) for row in found.itertuples()}
            rows.append(f"| {train} → {test} | {by} | {group} | {found['n'].iloc[0]} "
                        f"| {' | '.join(scores[name] for name in methods)} |")
        parts += [f"Study `{study.name}`, {_recipe(config)}, lesion IoU per image [95 %]:", "", *rows, ""]
    return "\n".join(parts) if parts else NO_TABLE


def baselines_markdown(reference: Path = REFERENCE) -> str:
    """Ours beside other networks under one budget: lesion IoU per image and both boundary measures, and how far ours is
    ahead on the same images, in every committed study that is more than a demonstration and trained other networks than
    those of its main results."""
    parts, holding = [], _studies(reference, "main_results")
    for study in _studies(reference, "baselines", demonstrations=False):
        table = _read(study, "baselines")
        if study in holding and set(table["method"]) <= set(_read(study, "main_results")["method"]):
            continue
        rows = ["| method | starts from | images seen | minutes | measure | per image [95 %] "
                "| TokenCutSeg is better by [95 %, paired] | p (Holm) |", "|---|---|---|---|---|---|---|---|"]
        table = better_by(table)
        shown = table[(table["definition"] == "image_lesion") & table["measure"].isin(["iou", "nsd", "hd95"])]
        for row in shown.itertuples():
            before = f" + {row.pretraining_seconds / 60:.1f} before" if row.pretraining_seconds else ""
            rows.append(f"| {NAMES.get(row.method, row.method)} | {row.weights} | {row.images_seen} "
                        f"| {row.seconds / 60:.1f}{before} | {MEASURED[row.measure]} | {_scored(row)} "
                        f"| {_lead(row)} | {_p(row)} |")
        parts += [f"Study `{study.name}`:", "", *rows, ""]
    return "\n".join([*parts, UNDER_ONE_BUDGET, ""]) if parts else NO_TABLE


def tokenizer_markdown(reference: Path = REFERENCE) -> str:
    """How well the tokenizer of every committed study that is more than a demonstration paints test images again, and
    how many of its words it uses."""
    parts = []
    for study in _studies(reference, "reconstruction", demonstrations=False):
        counts = _read(study, "codebook_usage")["count"].to_numpy(float)
        share = counts[counts > 0] / counts.sum()
        words = (f"{len(share) / len(counts):.0%} of {len(counts)} words in use on test images, perplexity "
                 f"{np.exp(-(share * np.log(share)).sum()):.1f}")
        parts += [f"Study `{study.name}`, {words}:", "",
                  "| test images | measure | images | mean [95 %] | features |", "|---|---|---|---|---|"]
        for row in _read(study, "reconstruction").itertuples():
            weights = "" if pd.isna(row.weights) else row.weights
            parts.append(f"| {row.dataset} | {MEASURED[row.measure]} | {row.n} "
                         f"| {row.mean:.4g} [{row.low:.4g}, {row.high:.4g}] | {weights} |")
        parts += [""]
    return "\n".join(parts) if parts else NO_TABLE


def consistency_markdown() -> str:
    """Each published pair of mIoU and DSC against the bound that one scoring rule sets."""
    return "\n".join([
        "| train → test | mIoU $J$ | DSC | at most $2J/(1+J)$ | possible |", "|---|---|---|---|---|",
        *(f"| {row.train} → {row.test} | {row.iou:.4f} | {row.dice:.4f} | {row.largest_dice:.4f} "
          f"| {'yes' if row.possible else '**no**'} |" for row in published_consistency().itertuples()), ""])


def ablations_markdown(reference: Path = REFERENCE) -> str:
    """The tables of notebook 05 that ask what each part gives, of every committed study that is more than a
    demonstration: what was measured with its interval, and paired changes."""
    parts = []
    for study in _dissected(reference):
        parts += [(study / "about.md").read_text().strip(), ""]
        for name, (heading, columns) in ABLATIONS.items():
            if (study / f"tables/{name}.csv").exists():
                parts += [f"**{heading}** (`{name}.csv`):", "", f"| {' | '.join(columns)} |",
                          "|" + "---|" * len(columns)]
                parts += [f"| {' | '.join(cell(row) for cell in columns.values())} |"
                          for row in _read(study, name).itertuples()]
                parts += [""]
    return "\n".join(parts) if parts else NO_TABLE


def _dissected(reference: Path) -> list[Path]:
    """The committed studies that are more than a demonstration and ask what each part gives."""
    return sorted({study for name in ABLATIONS for study in _studies(reference, name, demonstrations=False)})


def _scored(row: Any) -> str:
    return f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _signed(*keys: str) -> Callable[[Any], str]:
    """A difference with its interval, by the names of the three columns."""
    def shown(row: Any) -> str:
        value, low, high = (getattr(row, key) for key in keys)
        digits = 4 if min(abs(low), abs(high)) < 5e-4 else 3  # of an end so near zero the sign is to be seen
        return "" if pd.isna(value) else f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"

    return shown


def _p(row: Any) -> str:
    """The adjusted p-value, where there is one."""
    return "" if pd.isna(row.p_holm) else f"{row.p_holm:.2g}"


def _turned(row: Any) -> str:
    """What a step changes."""
    also = "" if pd.isna(row.also) else f" ({row.also})"
    return "" if pd.isna(row.setting) else f"{_setting(row.setting)} → {_setting(row.instead)}{also}"


def _setting(text: str) -> str:
    """A value as it stands in a table, without the digits that nobody reads."""
    return f"{float(text):g}" if re.fullmatch(r"-?\d+\.\d+", str(text)) else str(text)


_lead = _signed("ahead", "ahead_low", "ahead_high")
_CHANGE = _signed("change", "change_low", "change_high")
_VALIDATION = "lesion IoU on validation [95 %]"
ABLATIONS: dict[str, tuple[str, dict[str, Callable[[Any], str]]]] = {
    "stages": ("What each stage adds, under one budget (the graph module with its loss)", {
        "stages": lambda row: row.stages, _VALIDATION: _scored, "change to the row above [paired]": _CHANGE}),
    "graph_radius": ("How far the graph reaches", {
        "radius in tokens": lambda row: f"{row.radius:g}", "neighbours": lambda row: f"{row.neighbours}",
        _VALIDATION: _scored, "change to the first row [paired]": _CHANGE}),
    "codebook_size": ("How many visual words", {
        "codes": lambda row: f"{row.n_embed}", "in use": lambda row: f"{row.usage:.0%}",
        "perplexity": lambda row: f"{row.perplexity:.1f}",
        "PSNR in dB [95 %]": lambda row: f"{row.psnr:.2f} [{row.psnr_low:.2f}, {row.psnr_high:.2f}]",
        _VALIDATION: _scored, "change to the first row [paired]": _CHANGE}),
    "feature_quality": ("What frozen features know about lesions", {
        "features": lambda row: row.features, "head": lambda row: row.head,
        "token IoU on validation [95 %]": lambda row: f"{row.iou:.3f} [{row.iou_low:.3f}, {row.iou_high:.3f}]",
        "the transformer's output is ahead by [paired]": _lead}),
    "revised_steps": ("From `described` to `revised`, a switch at a time (kept where the mean rises, even by chance)", {
        "step": lambda row: f"`{row.step}`", "change": _turned, _VALIDATION: _scored,
        "change to the best so far [paired]": _CHANGE, "kept": lambda row: "yes" if row.kept else "no"}),
    "deviations": ("One switch turned in each recipe", {
        "recipe": lambda row: row.recipe, "switch": lambda row: f"`{row.switch}`", "change": _turned,
        "seeds": lambda row: f"{row.seeds}", "change in lesion IoU on validation [paired]": _signed(
            "difference", "low", "high"), "p (Holm)": _p}),
    "efficiency": ("What one forward pass costs (a score with test-time flips takes four)", {
        "method": lambda row: NAMES.get(row.method, row.method), "parameters": lambda row: f"{row.parameters:,}",
        "GFLOP": lambda row: f"{row.flops / 1e9:.2f}", "seconds": lambda row: f"{row.latency_seconds:.3f}",
        "peak memory in MiB": lambda row: f"{row.peak_memory_bytes / 2**20:.1f}"}),
}
"""What the documents show of notebook 05's tables: heading, and how each column is written from a row."""


def summary_markdown(reference: Path = REFERENCE) -> str:
    """Which claims the committed studies support and which not, in a few lines."""
    table = _judged(reference)
    if table.empty:
        return NO_VERDICT
    decided = table["claim"].isin(table.loc[table["verdict"] != UNTESTABLE, "claim"])
    table = table[~decided | (table["verdict"] != UNTESTABLE)]
    ours = ~table["claim"].str.contains(", recipe ", regex=False)
    inside = np.array([place(row.published, row.low, row.high) == INSIDE for row in table.itertuples()])
    reached = (table["verdict"] == UNTESTABLE) & inside & ours
    table = table.assign(verdict=table["verdict"].mask(reached, REACHED))
    split = table.groupby("claim")["verdict"].transform("nunique") > 1  # where studies disagree, they are named
    claims = table["claim"].where(~split, table["claim"] + " (study `" + table["study"] + "`)")
    supported = table["verdict"] == SUPPORTED
    reached_too = supported & table["reason"].str.contains(UNET_TOO, regex=False)
    lacking = supported & table["complete"].isin([False])
    claims += np.where(reached_too, ", which a U-Net reaches too", "") + np.where(lacking, " (images are missing)", "")
    said = {verdict: list(dict.fromkeys(claims[table["verdict"] == verdict])) for verdict in (*VERDICTS, REACHED)}
    untestable = table["verdict"] == UNTESTABLE
    values = table["claim"].str.partition(", recipe ")[0].where(table["published"].notna())
    others = values[untestable & ~values.isin(values[~untestable])].nunique()
    said[UNTESTABLE] = [*dict.fromkeys(claims[untestable & values.isna()]),
                        *([f"{others} of {values.nunique()} published values"] if others else [])]
    lines = [f"- **{verdict}**: {'; '.join(found)}" for verdict, found in said.items() if found]
    pairs = published_consistency()
    broken = [f"{row.train} → {row.test}" for row in pairs[~pairs["possible"]].itertuples()]
    lines += [f"- **not possible by one scoring rule**: the published mIoU and DSC of {', '.join(broken)}, whatever "
              "was trained"]
    return "\n".join(["The claims of the paper's abstract and its authors' README, as far as our trainings carry "
                      "(recipe `revised` where no other is named; "
                      "[values, intervals and the rule](#the-papers-claims)):", "", *lines, "",
                      *_against_unet(reference)])


def _against_unet(reference: Path) -> list[str]:
    """Where ours is clearly ahead of a U-Net under the same loop, where neither is, and where the U-Net is; within each
    of these those first that learned longest."""
    ahead, neither, behind = "`revised` clearly", "neither clearly", "U-Net clearly"
    places: dict[str, list[tuple[int, str]]] = {ahead: [], neither: [], behind: []}
    for table in ("main_results", "label_efficiency"):
        for study in _studies(reference, table, demonstrations=False):
            rows, config = _read(study, table), _config(study)
            shown = (rows[["method", "definition", "measure"]] == ["unet", "image_lesion", "iou"]).all(axis=1)
            for row in rows[shown & (config["recipe"] == "revised")].itertuples():
                what = f"{row.train} → {row.test}" if table == "main_results" else f"{row.fraction:.0%} of the labels"
                side = (ahead if clearly_ahead(row.ahead_low, row.ahead_high, row.p_holm) else
                        behind if clearly_ahead(-row.ahead_high, -row.ahead_low, row.p_holm) else neither)
                imagenet = "U-Net from ImageNet weights" if getattr(row, "weights", "") == "imagenet" else ""
                named = ", ".join(filter(None, [f"`{study.name}`", _departs(config), imagenet]))
                looks = _looks(config, table)
                places[side].append((looks, f"| {side} | {what} | {_lead(row)} | {getattr(row, 'seeds', 1)} "
                                            f"| {f'{looks:,}' if looks else ''} | {named} |"))
    lines = [line for side in places.values() for _, line in sorted(side, key=lambda found: -found[0])]
    return ["`revised` against a U-Net under the same loop on the same labelled images: how far it is ahead in lesion "
            "IoU on test images, with the paired 95 % interval over images and, where there are several, trainings. "
            "Looks are those of each training at labelled images; after few of them neither scores what it does after "
            "more. Where nothing else is said, the U-Net starts from scratch:", "",
            "| ahead is | on | `revised` is ahead by | trainings | looks | study |", "|---|---|---|---|---|---|",
            *lines, ""] if lines else []


def claims_markdown(reference: Path = REFERENCE) -> str:
    """The claims that a committed study judges, with what was measured; then those that none does."""
    table = _judged(reference)
    if table.empty:
        return NO_VERDICT
    parts = []
    for study, part in table.groupby("study", sort=False):
        config = _config(reference / study) if study else {}
        parts += [f"Study `{study}`, preset `{config['preset']}`, {_recipe(config)}:" if study
                  else "Open in every study:", "",
                  "| claim | published | measured [95 %] | verdict | why |", "|---|---|---|---|---|"]
        for row in part.itertuples():
            shown = ["" if pd.isna(value) else f"{value:.4f}" for value in (row.published, row.measured)]
            interval = "" if pd.isna(row.low) else f" [{row.low:.3f}, {row.high:.3f}] {row.definition}"
            looks = _looks(config, row.experiment) if row.experiment == "label_efficiency" and interval else 0
            reason = row.reason + (f"; each training had {looks:,} looks at labelled images" if looks else "")
            parts.append(f"| {row.claim} | {shown[0]} | {shown[1]}{interval} | **{row.verdict}** | {reason} |")
        parts += [""]
    return "\n".join([*parts, RULE, ""])


def _judged(reference: Path) -> pd.DataFrame:
    """The rows of all committed tables `claims` that give a verdict or measured something, with the column study; then,
    without a study, the claims of which no table says more, each once: the row that names what is missing, else one
    that says what its study is not about, and last what it has not written. Demonstrations are left out."""
    tables = [_read(study, "claims").assign(study=study.name)
              for study in _studies(reference, "claims", demonstrations=False)]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    told = (table["verdict"] != UNTESTABLE) | table["measured"].notna()
    rest = table[~table["claim"].isin(table.loc[told, "claim"])].assign(study="")
    rank = (rest["reason"].str.startswith("this study") * 1
            + rest["reason"].str.startswith("this study has not written"))
    rest = rest.loc[rank.sort_values(kind="stable").index].drop_duplicates("claim").sort_index()
    return pd.concat([table[told], rest], ignore_index=True)


def _config(study: Path) -> dict[str, Any]:
    return json.loads((study / "config.json").read_text())


def _recipe(config: dict[str, Any]) -> str:
    """A study's recipe in words."""
    departs = _departs(config)
    if departs == EARLIER:
        return f"{EARLIER} `{config['recipe']}`"
    return ", ".join(filter(None, [f"recipe `{config['recipe']}`", departs]))


def _departs(config: dict[str, Any]) -> str:
    """In which way a study's recipe is not that of today, or not that of its preset."""
    today = ((*name.split("."), json.loads(json.dumps(value))) for name, value in RECIPES[config["recipe"]].items())
    turned = {key for stage, key, value in today if stage in config and config[stage].get(key) != value}
    if turned - {"batch_size"}:
        return EARLIER
    usual = configure(config["preset"], config["recipe"]).to_dict()
    longer = _looks_before({**usual, **config}) > _looks_before(usual)
    return ", ".join(filter(None, ["other batch sizes" if turned else "", "longer pretraining" if longer else ""]))


def _looks_before(config: dict[str, Any]) -> int:
    """Images that the masked pretraining looks at; 0 where that depends on the data."""
    return config["masked_gpt"]["epochs"] * (config["masked_gpt"]["images_per_epoch"] or 0)


def bench_markdown(reference: Path = REFERENCE) -> str:
    """Every committed bench: what it was measured with, its lines, and how time and memory grow with the tokens."""
    parts = []
    for bench in sorted(path.parent for path in reference.glob("bench-*/lines.csv")):
        lines, slopes = pd.read_csv(bench / "lines.csv"), pd.read_csv(bench / "exponents.csv")
        growth = "; ".join(f"{row.part} time T^{row.time:.2f}, memory T^{row.memory:.2f}"
                           for row in slopes.itertuples())
        about = (bench / "about.md").read_text().strip()
        parts += [about, "", _bench_table(lines), "", f"Growth with the number of tokens T: {growth}.", ""]
    return "\n".join(parts)


def budgets_markdown(reference: Path = REFERENCE) -> str:
    """What the trainings behind every committed study cost."""
    parts = []
    for study in _studies(reference, "budgets"):
        rows = ["| method | stage | trained on | training images | images seen | unlabelled beside | steps | minutes "
                "| device |", "|---|---|---|---|---|---|---|---|---|"]
        rows += [f"| {row.method} | {row.stage} | {row.saw} | {row.training_images} | {row.images_seen} "
                 f"| {'' if pd.isna(row.unlabelled_seen) else int(row.unlabelled_seen)} | {row.steps} "
                 f"| {row.seconds / 60:.1f} | {row.device} |"
                 for row in _read(study, "budgets").itertuples()]
        parts += [f"Study `{study.name}`:", "", *rows, ""]
    return "\n".join(parts) if parts else "No committed study has a table of budgets yet.\n"


def switches_markdown() -> str:
    """Every switch in which `released` and `described` differ, with the reason."""
    table = recipe_table()
    table = table[table["released"] != table["described"]]
    shown = table[["switch", "released", "described", "reason"]].map(
        lambda value: f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|"))
    return "\n".join(["| switch | released | described | |", "|---|---|---|---|",
                      *(f"| `{row.switch}` | {row.released} | {row.described} | {row.reason} |"
                        for row in shown.itertuples()), ""])


def with_results(text: str, reference: Path = REFERENCE) -> str:
    """A document with the tables between its marks brought up to date."""
    made = {"results": results_markdown, "studies": studies_markdown, "budgets": budgets_markdown,
            "labels": labels_markdown, "groups": groups_markdown, "baselines": baselines_markdown,
            "tokenizer": tokenizer_markdown, "ablations": ablations_markdown, "claims": claims_markdown,
            "summary": summary_markdown, "bench": bench_markdown, "model": model_markdown,
            "consistency": lambda _: consistency_markdown(), "switches": lambda _: switches_markdown()}
    for mark, table in made.items():
        start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        before, found, rest = text.partition(start)
        if found:
            text = before + start + table(reference) + end + rest.partition(end)[2]
    return text


def _bench_table(lines: pd.DataFrame) -> str:
    rows = ["| part | ours | against | theirs | times faster | less memory | of the matmul rate | images/s |",
            "|---|---|---|---|---|---|---|---|"]
    for row in lines.itertuples():
        shown = [row.line, _seconds(row.seconds), row.against, _seconds(row.plain_seconds), f"{row.ratio:.3g}×",
                 f"{row.memory_ratio:.3g}×", f"{row.share_of_matmul_rate:.0%}", f"{row.images_per_second:.3g}"]
        rows.append("| " + " | ".join("" if "nan" in str(cell) else cell for cell in shown) + " |")
    return "\n".join(rows)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _table(study: Path) -> str:
    results = _read(study, "main_results")
    paired = "ahead" in results
    own = results.loc[results["method"] == "tokencutseg", "recipe"].iloc[0]
    lines = ["| train → test | method | recipe | images | lesion IoU per image | lesion Dice per image "
             "| IoU as the released code scores | published |"
             + (f" `{own}` is ahead in lesion IoU by [95 %, paired] |" if paired else ""),
             "|---|---|---|---|---|---|---|---|" + ("---|" if paired else "")]
    for (train, test, method, recipe), rows in results.groupby(["train", "test", "method", "recipe"], sort=False):
        cells = rows.set_index(["definition", "measure"])
        n, note = rows["n"].iloc[0], rows["note"].astype(object).fillna("").iloc[0]
        published = cells["published"].get(("pooled_two_class", "iou"))
        shown = [_interval(cells, *key) for key in (("image_lesion", "iou"), ("image_lesion", "dice"),
                                                    ("pooled_two_class", "iou"))]
        lines.append(f"| {train} → {test} | {NAMES.get(method, method)} | {recipe if recipe != 'none' else ''} "
                     f"| {f'{n}' + (f' ({note})' if note else '') if n else note} | {' | '.join(shown)} "
                     f"| {'' if pd.isna(published) else f'{published:.4f}'} |"
                     + (f" {_lead(cells.loc['image_lesion', 'iou']) if n else ''} |" if paired else ""))
    return "\n".join(lines)


def _interval(cells: pd.DataFrame, definition: str, measure: str) -> str:
    if (definition, measure) not in cells.index or pd.isna(cells.loc[(definition, measure), "mean"]):
        return ""
    row = cells.loc[(definition, measure)]
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(with_results(path.read_text()))
