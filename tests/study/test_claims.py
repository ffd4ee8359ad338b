"""The verdict rule on made-up results, and the arithmetic of the published table."""

import math

import pandas as pd
import pytest

from tokencutseg.study.claims import PUBLISHED, claims, published_consistency


def row(train, test, definition, measure, mean, half=0.01, n=100, complete=True, note=""):
    return {"train": train, "test": test, "method": "tokencutseg", "recipe": "revised", "definition": definition,
            "measure": measure, "n": n, "mean": mean, "low": mean - half, "high": mean + half, "complete": complete,
            "note": note}


def verdict(table, words):
    found = table[table["claim"].str.contains(words, regex=False)]
    assert len(found) == 1
    return found.iloc[0]


def no_results():
    return pd.DataFrame([row("site_a", "site_a", "image_lesion", "iou", 0.8)])


def test_published_rows_16_17_and_16_to_17_are_not_possible():
    table = published_consistency().set_index(["train", "test"])
    impossible = [pair for pair, possible in table["possible"].items() if not possible]
    assert impossible == [("isic2016", "isic2016"), ("isic2017", "isic2017"), ("isic2016", "isic2017")]
    # each image's Dice is 2J/(1+J) of its IoU J, so a mean of equal images attains the bound and none exceeds it
    for (train, test), scores in PUBLISHED.items():
        bound = table.loc[(train, test), "largest_dice"]
        assert bound == pytest.approx(1 / (0.5 + 0.5 / scores["iou"]))
        assert table.loc[(train, test), "excess"] == pytest.approx(scores["dice"] - bound)


@pytest.mark.parametrize(("mean", "expected"), [(0.8137, "supported"), (0.9, "supported"), (0.8037 + 1e-6, "supported"),
                                                (0.80, "not supported")])
def test_a_published_value_is_supported_inside_or_below_the_interval(mean, expected):
    results = pd.DataFrame([row("isic2017", "isic2017", "pooled_two_class", "iou", mean)])
    found = verdict(claims(results), "mIoU isic2017 → isic2017")
    assert found["verdict"] == expected
    assert (found["measured"], found["published"]) == (mean, 0.8137)


def test_without_images_a_published_value_is_not_testable():
    missing = pd.DataFrame([row("isic2018", "isic2018", "pooled_two_class", "iou", math.nan, n=0)])
    table = claims(pd.concat([no_results(), missing]))
    assert set(table["verdict"]) == {"not testable here"}
    assert (table["reason"].str.len() > 0).all()
    assert len(table) == 2 * len(PUBLISHED) + 5


def test_partial_data_are_named_in_the_reason():
    results = pd.DataFrame([row("isic2016", "isic2016", "pooled_two_class", "dice", 0.95, complete=False,
                                note="isic2016 test partial: 305 of 379")])
    found = verdict(claims(results), "DSC isic2016 → isic2016")
    assert not found["complete"]
    assert "305 of 379" in found["reason"]


@pytest.mark.parametrize(("away", "expected"), [(0.80, "supported"), (0.79, "supported"), (0.70, "not supported")])
def test_generalisation_holds_while_the_intervals_meet(away, expected):
    results = pd.DataFrame([row("isic2016", "isic2016", "image_lesion", "iou", 0.80),
                            row("isic2016", "isic2017", "image_lesion", "iou", away)])
    assert verdict(claims(results), "generalises")["verdict"] == expected


@pytest.mark.parametrize(("ours", "expected"), [([0.80], "supported"), ([0.72], "not supported"),
                                                ([0.80, 0.80], "supported"), ([0.80, 0.715], "not supported")])
def test_label_efficiency_compares_at_the_fewest_labels_under_every_seed(ours, expected):
    rows = []
    for seed, mean in enumerate(ours):
        for fraction, gain in ((1.0, 0.1), (0.05, 0.0)):
            for method, value in (("tokencutseg", mean + gain), ("unet", 0.71 + 2 * gain)):
                rows.append({"method": method, "fraction": fraction, "seed": seed, "mean": value, "low": value - 0.01,
                             "high": value + 0.01})
    found = verdict(claims(no_results(), pd.DataFrame(rows)), "label-efficient")
    assert found["verdict"] == expected
    assert found["reason"].startswith("at 5% of the labels")
    assert found["measured"] == pytest.approx(sum(ours) / len(ours))


def test_a_demonstration_gives_no_verdict():
    found = pd.DataFrame([row("isic2017", "isic2017", "pooled_two_class", "iou", 0.82)])
    assert verdict(claims(found, preset="small"), "mIoU isic2017 → isic2017")["verdict"] == "supported"
    shown = claims(found, preset="quick")
    assert set(shown["verdict"]) == {"not testable here"}
    cell = verdict(shown, "mIoU isic2017 → isic2017")
    assert cell["measured"] == 0.82 and cell["reason"].startswith("preset quick is a demonstration; ")
