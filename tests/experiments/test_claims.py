"""The verdict rule on made-up tables, and the arithmetic of the published table."""

import pandas as pd
import pytest

from tokencutseg.experiments.claims import CLAIMS, COLUMNS, PUBLISHED, claims, judge, published_consistency
from tokencutseg.experiments.study import Study

BY_TEXT = {claim.text: claim for claim in CLAIMS}
STRONG = ("unet", "unetplusplus", "fpn", "deeplabv3plus")


def score(mean, method="tokencutseg", recipe="described", pair=("isic2018", "isic2018"), **values):
    row = {"train": pair[0], "test": pair[1], "method": method, "recipe": recipe, "reduction": "micro_two_class"}
    row |= {"measure": "iou", "n": 100, "mean": mean, "low": mean - 0.01, "high": mean + 0.01, "note": ""}
    row |= {"published": 0.8276}
    return row | values


def value_verdict(rows, measure="mIoU", pair="isic2018 → isic2018", preset="full"):
    (claim,) = [claim for text, claim in BY_TEXT.items() if text.startswith(f"{measure} {pair}")]
    return judge(claim, {"main_results": pd.DataFrame(rows)}, preset)


def test_three_published_pairs_are_not_possible():
    table = published_consistency().set_index(["train", "test"])
    impossible = [pair for pair, possible in table["possible"].items() if not possible]
    assert impossible == [("isic2016", "isic2016"), ("isic2017", "isic2017"), ("isic2016", "isic2017")]
    # each image's Dice is 2J/(1+J) of its IoU J, so a mean of equal images attains the bound and none exceeds it
    for pair, scores in PUBLISHED.items():
        bound = 1 / (0.5 + 0.5 / scores["iou"])
        assert table.loc[pair, ["largest_dice", "excess"]].tolist() == pytest.approx([bound, scores["dice"] - bound])


@pytest.mark.parametrize(
    ("mean", "preset", "expected"),
    [
        (0.8276, "full", "supported"),
        (0.9, "small", "supported"),
        (0.8177, "full", "supported"),
        (0.8175, "full", "not supported"),
        (0.8175, "small", "not testable here"),
    ],
)
def test_a_published_value_is_supported_inside_or_below_the_interval(mean, preset, expected):
    found = value_verdict([score(mean)], preset=preset)
    assert (found["verdict"], found["measured"], found["published"]) == (expected, mean, 0.8276)


def test_a_published_value_has_one_verdict_by_the_better_reproduction():
    others = [score(0.79, "released", "released"), score(0.95, "revised", "revised"), score(0.7, "unet", "none")]
    found = value_verdict([score(0.83), *others])
    assert (found["recipe"], found["measured"], found["verdict"]) == ("described", 0.83, "supported")
    assert (found["revised"], found["unet"]) == (0.95, 0.7)
    alone = value_verdict([score(0.95, recipe="revised")])
    assert alone["verdict"] == "not testable here" and alone["revised"] == 0.95 and "measured" not in alone


def test_a_value_of_other_rows_is_none_of_the_claims():
    others = [{"pair": ("isic2016", "isic2017")}, {"measure": "dice"}, {"reduction": "per_image"}, {"n": 0}]
    assert value_verdict([score(0.9, **other) for other in others])["verdict"] == "not testable here"


def test_a_split_that_stands_in_tests_no_published_value():
    stand_in = score(0.99, published=float("nan"), note="the validation split stands in")
    found = value_verdict([stand_in])
    assert found["verdict"] == "not testable here" and "stands in" in found["reason"] and "measured" not in found


@pytest.mark.parametrize(("text", "measure"), [("mIoU", "iou"), ("DSC", "dice")])
def test_an_impossible_pair_is_not_testable_and_a_possible_one_is(text, measure):
    for name, verdict in (("isic2017", "not testable here"), ("isic2018", "supported")):
        row = score(0.99, measure=measure, pair=(name, name))
        assert value_verdict([row], text, f"{name} → {name}")["verdict"] == verdict


def compared(diff, p_holm=0.01, methods=STRONG, initialisation="imagenet", measures=("iou", "nsd", "hd95"), **columns):
    """Rows of tokencutseg and of others that it is better than by `diff`."""
    rows = []
    for measure in measures:
        sign = -1 if measure == "hd95" else 1
        own = {"reduction": "per_image", "measure": measure, "mean": 0.8, "low": 0.7, "high": 0.9, "note": ""}
        own |= {"test": "isic2017"} | columns
        rows.append(own | {"method": "tokencutseg", "recipe": "revised", "initialisation": "self-supervised"})
        for method in methods:
            ends = sorted((sign * (diff - 0.01), sign * (diff + 0.01)))
            other = {"method": method, "recipe": "none", "initialisation": initialisation, "p_holm": p_holm}
            rows.append(own | other | {"diff": sign * diff, "diff_low": ends[0], "diff_high": ends[1]})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"diff": 0.02}, "supported"),
        ({"diff": 0.02, "p_holm": 0.06}, "not supported"),
        ({"diff": 0.005}, "not supported"),
        ({"diff": -0.02}, "not supported"),
        ({"diff": 0.02, "methods": STRONG[:2]}, "not testable here"),
        ({"diff": 0.005, "methods": STRONG[:2]}, "not supported"),
        ({"diff": 0.02, "initialisation": "scratch"}, "not testable here"),
    ],
)
@pytest.mark.parametrize("text", ["achieves state-of-the-art performance", "superior boundary accuracy"])
def test_better_than_all_strong_baselines(text, values, expected):
    found = judge(BY_TEXT[text], {"baselines": compared(**values)})
    assert (found["verdict"], found["measured"]) == (expected, 0.8)


def test_the_primary_test_set_counts_alone_against_the_baselines():
    for here, there, expected in ((0.02, -0.02, "supported"), (-0.02, 0.02, "not supported")):
        table = pd.concat([compared(here), compared(there, test="isic2018")])
        assert judge(BY_TEXT["achieves state-of-the-art performance"], {"baselines": table})["verdict"] == expected


def test_a_boundary_claim_needs_both_measures():
    table = compared(0.02)
    table.loc[(table["measure"] == "hd95") & (table["method"] == "unet"), "diff_high"] = 0.001
    assert judge(BY_TEXT["superior boundary accuracy"], {"baselines": table})["verdict"] == "not supported"
    assert judge(BY_TEXT["achieves state-of-the-art performance"], {"baselines": table})["verdict"] == "supported"


def test_generalisation_is_the_cross_domain_pair_and_takes_no_recipe_for_a_baseline():
    table = compared(0.02, methods=("unet",), train="isic2016", test="isic2017", n=600)
    worse = table.iloc[[1]].assign(method="described", recipe="described", diff_low=-1.0)
    claim = BY_TEXT["superior generalisation"]
    assert judge(claim, {"main_results": pd.concat([table, worse])})["verdict"] == "supported"
    assert judge(claim, {"main_results": table.assign(train="isic2017")})["verdict"] == "not testable here"


def test_label_efficiency_needs_three_shares_of_three_draws():
    def verdict(*shares, seeds=3):
        columns = {"methods": ("unet",), "measures": ("iou",), "seeds": seeds}
        parts = [compared(0.02, fraction=share, **columns) for share in shares]
        parts.append(compared(-1, fraction=1.0, **columns))  # with all labels: no matter
        return judge(BY_TEXT["label-efficient"], {"label_efficiency": pd.concat(parts)})["verdict"]

    assert verdict(0.02, 0.05, 0.1) == "supported"
    assert verdict(0.02, 0.05) == verdict(0.02, 0.05, 0.1, seeds=1) == "not testable here"


def test_label_efficiency_must_hold_on_every_test_set():
    parts = [
        compared(diff, fraction=share, methods=("unet",), measures=("iou",), seeds=3).assign(test=test)
        for share in (0.02, 0.05, 0.1)
        for test, diff in (("isic2017", 0.02), ("ham10000", -0.02))
    ]
    found = judge(BY_TEXT["label-efficient"], {"label_efficiency": pd.concat(parts)})
    assert found["verdict"] == "not supported" and "ham10000" in found["reason"] and "isic2017" not in found["reason"]


def features(diff, seen=0):
    names = ["colour", "untrained CNN", "tokenizer", "transformer block 1", "transformer", "supervised U-Net"]
    rows = [{"features": name, "head": head, "images_seen": 0} for head in ("linear probe", "graph") for name in names]
    table = pd.DataFrame(rows).assign(iou=0.8, iou_low=0.7, iou_high=0.9, low=0.1, high=0.2, diff=diff, note="")
    table = table.assign(diff_low=table["diff"] - 0.01, diff_high=table["diff"] + 0.01)
    table.loc[table["features"] == "supervised U-Net", ["images_seen", "diff_low"]] = [200, -1.0]
    table.loc[table["features"].str.startswith("transformer"), "images_seen"] = seen
    table.loc[(table["features"] == "transformer block 1") | (table["head"] == "linear probe"), "diff_low"] = -1.0
    return table


def test_bottleneck_compares_features_that_have_seen_no_mask():
    def verdict(*values):
        return judge(BY_TEXT["effectively solves the feature bottleneck"], {"feature_quality": features(*values)})

    found = verdict(0.02)
    assert [found[key] for key in ("verdict", "measured", "low", "high")] == ["supported", 0.8, 0.7, 0.9]
    assert verdict(0.005)["verdict"] == "not supported"
    assert verdict(0.02, 200)["verdict"] == "not testable here"


def test_missing_images_are_said():
    found = judge(BY_TEXT["achieves state-of-the-art performance"], {"baselines": compared(0.02).assign(note="2 of 3")})
    assert (found["verdict"], found["complete"]) == ("supported", False) and found["reason"].endswith("; 2 of 3")


def test_without_tables_nothing_is_testable():
    assert {judge(claim, {})["verdict"] for claim in CLAIMS} == {"not testable here"}


def test_claims_are_judged_from_what_a_study_has_written(tmp_path):
    sizes = {f"data.synthetic_{split}": 4 for split in ("train", "validation", "test", "unlabelled")}
    study = Study.open("small", results=tmp_path, overrides=sizes | {"data.image_size": 32})
    for decides_nothing in (Study.open("tiny", results=tmp_path), study):
        assert claims(decides_nothing)["verdict"].tolist() == ["not testable here"]
    study.source.name = "own"  # as if these were real
    study.table("baselines", compared(0.02).drop(columns="note"))
    table = claims(study)
    assert table.columns.tolist() == COLUMNS and len(table) == len(CLAIMS)
    supported = ["achieves state-of-the-art performance", "superior boundary accuracy"]
    assert table.loc[table["verdict"] == "supported", "claim"].tolist() == supported
    assert table.loc[table["table"] == "baselines", "complete"].tolist() == [True, True]
