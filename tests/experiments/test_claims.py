"""The verdict rule on made-up results, and the arithmetic of the published table."""

import math

import numpy as np
import pandas as pd
import pytest

from tokencutseg.experiments.claims import DRAWN, PUBLISHED, STRONG, claims, published_consistency, significant


def row(train, test, reduction, measure, mean, half=0.01, n=100, complete=True, note=""):
    return {
        "train": train,
        "test": test,
        "method": "tokencutseg",
        "recipe": "described",
        "reduction": reduction,
        "measure": measure,
        "n": n,
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "complete": complete,
        "note": note,
    }


def verdict(table, words):
    found = table[table["claim"].str.contains(words, regex=False)]
    assert len(found) == 1
    return found.iloc[0]


def no_results():
    return pd.DataFrame([row("site_a", "site_a", "per_image", "iou", 0.8)])


def test_published_rows_16_17_and_16_to_17_are_not_possible():
    table = published_consistency().set_index(["train", "test"])
    impossible = [pair for pair, possible in table["possible"].items() if not possible]
    assert impossible == [("isic2016", "isic2016"), ("isic2017", "isic2017"), ("isic2016", "isic2017")]
    # each image's Dice is 2J/(1+J) of its IoU J, so a mean of equal images attains the bound and none exceeds it
    for (train, test), scores in PUBLISHED.items():
        bound = table.loc[(train, test), "largest_dice"]
        assert bound == pytest.approx(1 / (0.5 + 0.5 / scores["iou"]))
        assert table.loc[(train, test), "excess"] == pytest.approx(scores["dice"] - bound)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0.8137, "supported"),
        (0.9, "supported"),
        (0.8040 + 1e-6, "supported"),
        (0.80, "not supported"),
        (0.8034 - 1e-6, "not supported"),
        (0.8038, "not testable here"),
        (0.8036, "not testable here"),
    ],
)
def test_a_published_value_is_supported_inside_or_below_the_interval(mean, expected):
    """And judged neither way within 0.014 of its width, 0.02 here, around its upper end."""
    results = pd.DataFrame([row("isic2017", "isic2017", "micro_two_class", "iou", mean)])
    found = verdict(claims(results), "mIoU isic2017 → isic2017")
    assert found["verdict"] == expected
    assert (found["measured"], found["published"]) == (mean, 0.8137)


def test_bootstrap_ends_are_as_uncertain_as_the_rule_says():
    """Twice the spread of the 97.5 % quantile of 10,000 draws, over 200 sets of draws, by the width of the interval."""
    draws = np.random.default_rng(0).normal(size=(200, 10_000))
    low, high = np.percentile(draws, [2.5, 97.5], axis=1)
    assert 2 * high.std() / (high - low).mean() == pytest.approx(DRAWN, rel=0.15)


@pytest.mark.parametrize(
    ("low", "p_holm", "clear"),
    [(0.0015, 0.01, True), (0.0013, 0.01, False), (0.0, 0.01, False), (0.05, 0.06, False), (-0.01, 0.01, False)],
)
def test_a_lead_is_clear_by_more_than_other_draws_would_move_its_end(low, p_holm, clear):
    """By 0.014 of an interval's width, 0.1 here."""
    assert significant(low, low + 0.1, p_holm) == clear


@pytest.mark.parametrize(
    ("mean", "unet", "words"),
    [
        (
            0.9,
            0.8,
            "within or below the measured interval of `revised`, which is not the published method; "
            "a U-Net under the same loop reaches it too (0.8000)",
        ),
        (0.9, None, "within or below the measured interval of `revised`, which is not the published method"),
        (0.7, 0.8, "above the measured interval of `revised`, which is not the published method"),
    ],
)
@pytest.mark.parametrize("preset", ["small", "full"])
def test_a_method_of_our_own_proves_and_refutes_no_published_value(mean, unet, words, preset):
    ours = row("isic2017", "isic2017", "micro_two_class", "iou", mean) | {"recipe": "revised"}
    rivals = (
        []
        if unet is None
        else [  # and others that are not asked for
            *(
                ours | other | {"method": "unet", "recipe": "none", "mean": 0.1}
                for other in (
                    {"train": "isic2016"},
                    {"test": "isic2016"},
                    {"measure": "dice"},
                    {"reduction": "per_image"},
                )
            ),
            ours | {"method": "unet", "recipe": "none", "mean": unet},
        ]
    )
    found = verdict(claims(pd.DataFrame([ours, *rivals]), preset=preset), "mIoU isic2017 → isic2017")
    assert (found["verdict"], found["measured"], found["reason"]) == ("not testable here", mean, words)


def test_another_recipe_has_verdicts_of_its_own():
    results = pd.DataFrame(
        [
            row("isic2017", "isic2017", "micro_two_class", "iou", 0.9),
            row("isic2017", "isic2017", "micro_two_class", "iou", 0.7) | {"method": "released", "recipe": "released"},
        ]
    )
    table = claims(results)
    assert verdict(table, "mIoU isic2017 → isic2017 is 81.37%, recipe released")["verdict"] == "not supported"
    assert table[table["claim"] == "mIoU isic2017 → isic2017 is 81.37%"]["verdict"].tolist() == ["supported"]
    assert len(table) == 2 * len(PUBLISHED) + 2 + 6  # a pair that this recipe was not scored on has no row


def test_without_images_a_published_value_is_not_testable():
    missing = pd.DataFrame([row("isic2018", "isic2018", "micro_two_class", "iou", math.nan, n=0)])
    table = claims(pd.concat([no_results(), missing]))
    assert set(table["verdict"]) == {"not testable here"}
    assert (table["reason"].str.len() > 0).all()
    assert len(table) == 2 * len(PUBLISHED) + 6


def test_a_pair_that_the_study_leaves_out_is_said_to_be_left_out():
    found = verdict(claims(no_results()), "mIoU isic2016 → isic2016")
    assert found["reason"] == "this study does not train and test isic2016 → isic2016"


def test_without_main_results_their_claims_are_open_and_the_others_are_not():
    rows = [rival("unet", "nsd", 0.05), rival("unet", "hd95", -2.0, half=1.0)]
    table, whole = claims(None, compared(*rows)), claims(no_results(), compared(*rows))
    assert list(table["claim"]) == list(whole["claim"])
    reason = "this study has not written main_results yet"
    cells = table[table["claim"].str.contains("mIoU|DSC|generalisation")]
    assert len(cells) == 2 * len(PUBLISHED) + 1
    assert (cells["verdict"] == "not testable here").all() and (cells["reason"] == reason).all()
    assert (cells["published"].notna() == cells["claim"].str.startswith(("mIoU", "DSC"))).all()
    rest = whole.drop(cells.index)
    pd.testing.assert_frame_equal(table.drop(cells.index)[rest.columns], rest, check_dtype=False)


def test_partial_data_are_named_in_the_reason():
    results = pd.DataFrame(
        [
            row(
                "isic2016",
                "isic2016",
                "micro_two_class",
                "dice",
                0.95,
                complete=False,
                note="isic2016 test partial: 305 of 379",
            )
        ]
    )
    found = verdict(claims(results), "DSC isic2016 → isic2016")
    assert not found["complete"]
    assert "305 of 379" in found["reason"] and "breaks the bound" in found["reason"]


@pytest.mark.parametrize(("gap", "complete"), [("", True), ("isic2017 test partial: 5 of 600", False), (None, None)])
def test_evidence_of_other_tables_says_whether_its_images_are_complete(gap, complete):
    rows = [rival("unet", "iou", 0.05), rival("unet", "nsd", 0.05), rival("unet", "hd95", -2.0, half=1.0)]
    known, plain = (
        claims(no_results(), compared(*rows), gaps=given).set_index("experiment")
        for given in ({"baselines": gap, "feature_quality": gap}, None)
    )
    assert [said is complete for said in known.loc["baselines", "complete"]] == [True, True]
    assert (known.loc["baselines", "reason"] == plain.loc["baselines", "reason"] + (f"; {gap}" if gap else "")).all()
    rest = ["label_efficiency", "feature_quality", "none"]
    pd.testing.assert_frame_equal(known.loc[rest], plain.loc[rest], check_dtype=False)


def away_from_home(*rivals, weights="imagenet"):
    """Trained on isic2016 and tested on isic2017: ours, and rivals as (method, how far ours is diff)."""
    ours = row("isic2016", "isic2017", "per_image", "iou", 0.70) | {"weights": "self-supervised"}
    others = [
        ours
        | {
            "method": method,
            "weights": weights,
            "mean": 0.70 - diff,
            "diff": diff,
            "diff_low": diff - 0.01,
            "diff_high": diff + 0.01,
            "p_holm": 0.001,
        }
        for method, diff in rivals
    ]
    return pd.DataFrame([ours, *others])


@pytest.mark.parametrize(
    ("diff", "expected"), [(0.02, "supported"), (0.005, "not supported"), (-0.05, "not supported")]
)
def test_generalisation_is_being_clearly_ahead_of_the_rivals_on_another_data_set(diff, expected):
    """Other recipes are no rivals, and how much harder the other set is does not count."""
    results = away_from_home(("otsu", 0.3), ("unet", diff), ("released", -0.1))
    at_home = pd.DataFrame([row("isic2017", "isic2017", "per_image", "iou", 0.75)])
    found = verdict(claims(pd.concat([results, at_home]), preset="small"), "generalisation")
    assert (found["verdict"], found["measured"]) == (expected, 0.70)
    assert "unet" in found["reason"] and found["reason"].endswith("; trained at home, lesion IoU 0.750")


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (away_from_home(("otsu", 0.3)), "no trained baseline was compared with"),
        (away_from_home(("fpn", 0.3)), "better than fpn by iou; without unet"),
        (
            away_from_home(("unet", 0.3), weights="scratch"),
            "better than unet by iou; without known ImageNet weights in unet",
        ),
        (
            away_from_home(("unet", 0.3)).drop(columns="weights"),
            "better than unet by iou; without known ImageNet weights in unet",
        ),
    ],
)
def test_generalisation_needs_a_trained_and_strong_rival(results, reason):
    found = verdict(claims(results, preset="small"), "generalisation")
    assert (found["verdict"], found["reason"]) == ("not testable here", reason)


def test_a_smaller_preset_supports_a_published_value_and_never_refutes_it():
    reached, missed = (
        pd.DataFrame([row("isic2017", "isic2017", "micro_two_class", "iou", mean)]) for mean in (0.81, 0.70)
    )
    cells = [
        verdict(claims(found, preset=preset), "mIoU isic2017 → isic2017")
        for found in (reached, missed)
        for preset in ("small", "full")
    ]
    assert [cell["verdict"] for cell in cells] == ["supported", "supported", "not testable here", "not supported"]
    assert cells[2]["measured"] == 0.70 and "preset small trains less" in cells[2]["reason"]
    assert "preset quick trains less" in verdict(claims(missed, preset="quick"), "mIoU isic2017 → isic2017")["reason"]


def few_labels(*leads, p_holm=0.001, seeds=None, weights="imagenet"):
    """Ours and a U-Net by share of the labels; `leads` are (share, how far ours is diff), and `seeds` says where there
    are fewer than three, by (method, share)."""
    return {
        "label_efficiency": pd.DataFrame(
            [
                {
                    "method": method,
                    "weights": weights,
                    "fraction": share,
                    "seeds": (seeds or {}).get((method, share), 3),
                    "mean": 0.7 + share,
                    "low": 0.69,
                    "high": 0.71,
                }
                | (
                    {}
                    if method == "tokencutseg"
                    else {"diff": diff, "diff_low": diff - 0.01, "diff_high": diff + 0.01, "p_holm": p_holm}
                )
                for share, diff in leads
                for method in ("tokencutseg", "released", "unet")
            ]
        )
    }


ALL_FEW = ((0.02, 0.05), (0.05, 0.04), (0.1, 0.03), (1.0, -0.3))


@pytest.mark.parametrize(
    ("table", "expected", "words"),
    [
        (
            few_labels((0.01, -0.3), *ALL_FEW),
            "supported",
            "lead over the U-Net in lesion IoU: 2% of the labels +0.050 "
            "[0.040, 0.060], 5% of the labels +0.040 [0.030, 0.050], 10% of the labels +0.030 [0.020, 0.040]",
        ),
        (few_labels(*ALL_FEW, p_holm=0.2), "not supported", ": 2% of the labels +0.050 [0.040, 0.060] (not clear)"),
        (
            few_labels((0.02, 0.05), (0.05, 0.005), (1.0, 0.3)),
            "not supported",
            "lead over the U-Net in lesion IoU: 2% of the labels +0.050 [0.040, 0.060], "
            "5% of the labels +0.005 [-0.005, 0.015] (not clear)",
        ),
        (few_labels(*ALL_FEW[:2]), "not testable here", "; without 10%"),
        (few_labels(*ALL_FEW, seeds={("unet", 0.05): 1}), "not testable here", "; with 1 of 3 draws of the labels"),
        (
            few_labels(*ALL_FEW, seeds={("tokencutseg", 0.1): 2}),
            "not testable here",
            "; with 2 of 3 draws of the labels",
        ),
        (few_labels(*ALL_FEW, weights="scratch"), "not testable here", "; without known ImageNet weights in unet"),
    ],
)
def test_label_efficiency_is_being_clearly_ahead_of_the_unet_at_every_small_share(table, expected, words):
    found = verdict(claims(no_results(), table), "label-efficient")
    assert (found["verdict"], found["measured"]) == (expected, 0.72) and words in found["reason"]


def test_label_efficiency_needs_a_unet_with_few_labels():
    found = verdict(claims(no_results(), few_labels((1.0, 0.3))), "label-efficient")
    assert (found["verdict"], found["reason"]) == ("not testable here", "no U-Net with few labels was compared with")


def test_a_demonstration_gives_no_verdict():
    found = pd.DataFrame([row("isic2017", "isic2017", "micro_two_class", "iou", 0.82)])
    assert verdict(claims(found, preset="small"), "mIoU isic2017 → isic2017")["verdict"] == "supported"
    shown = claims(found, preset="quick")
    assert set(shown["verdict"]) == {"not testable here"}
    cell = verdict(shown, "mIoU isic2017 → isic2017")
    assert cell["measured"] == 0.82 and cell["reason"].startswith("preset quick is a demonstration; ")


def rival(method, measure, diff, half=0.01, p_holm=0.001, weights="imagenet"):
    return {
        "method": method,
        "weights": weights,
        "reduction": "per_image",
        "measure": measure,
        "mean": 0.7,
        "low": 0.69,
        "high": 0.71,
        "diff": diff,
        "diff_low": diff - half,
        "diff_high": diff + half,
        "p_holm": p_holm,
    }


def beaten(measure, diff=0.03, half=0.01):
    """The strong networks, all behind ours."""
    return [rival(name, measure, diff, half) for name in STRONG]


def compared(*rivals):
    ours = [
        rival("tokencutseg", measure, math.nan, weights="self-supervised") | {"mean": 0.8}
        for measure in ("iou", "nsd", "hd95")
    ]
    return {"baselines": pd.DataFrame([*ours, *rivals])}


@pytest.mark.parametrize(
    ("rivals", "expected", "words"),
    [
        (
            [*beaten("iou"), rival("fpn", "iou", 0.02)],
            "supported",
            "better than unet, deeplabv3plus, segformer, fpn by iou",
        ),
        ([*beaten("iou"), rival("fpn", "iou", 0.005)], "not supported", "against fpn"),
        ([*beaten("iou"), rival("fpn", "iou", 0.02, weights="scratch")], "supported", "better than"),
        ([rival("unet", "iou", 0.03, p_holm=0.2)], "not supported", "against unet"),
        ([rival("unet", "iou", 0.03), rival("segformer", "iou", 0.03)], "not testable here", "; without deeplabv3plus"),
        (
            [*beaten("iou")[1:], rival("unet", "iou", 0.03, weights="scratch")],
            "not testable here",
            "; without known ImageNet weights in unet",
        ),
        (
            [rival("unet", "iou", 0.03, weights="scratch"), rival("segformer", "iou", 0.03)],
            "not testable here",
            "; without deeplabv3plus; without known ImageNet weights in unet",
        ),
        ([rival("unet", "iou", -0.03, weights="scratch")], "not supported", "iou -0.03 [-0.04, -0.02] against unet"),
        ([rival("otsu", "iou", 0.03, weights="none")], "not testable here", "no trained baseline"),
    ],
)
def test_state_of_the_art_is_being_clearly_ahead_of_every_rival(rivals, expected, words):
    found = verdict(claims(no_results(), compared(*rivals)), "state-of-the-art")
    assert (found["verdict"], found["measured"] in (0.8, None)) == (expected, True)
    assert words in found["reason"]


@pytest.mark.parametrize(
    ("nsd", "hd95", "expected"),
    [
        (0.05, -2.0, "supported"),
        (0.05, 2.0, "not supported"),
        (-0.05, -2.0, "not supported"),
        (0.05, -0.5, "not supported"),
    ],
)
def test_boundaries_are_better_when_close_and_near(nsd, hd95, expected):
    rows = [*beaten("nsd", nsd), *beaten("hd95", hd95, half=1.0)]
    assert verdict(claims(no_results(), compared(*rows)), "boundary")["verdict"] == expected
    if expected == "supported":
        few = compared(rival("unet", "nsd", nsd), rival("unet", "hd95", hd95))
        found = verdict(claims(no_results(), few), "boundary")
        assert found["verdict"] == "not testable here"
        assert found["reason"].endswith("; without deeplabv3plus, segformer")


@pytest.mark.parametrize(("lead", "expected"), [(0.03, "supported"), (0.01, "not supported"), (-0.1, "not supported")])
def test_the_bottleneck_is_solved_when_no_other_features_without_masks_do_as_well(lead, expected):
    rows = [
        {
            "features": name,
            "head": head,
            "iou": 0.8 - diff,
            "iou_low": 0.7,
            "iou_high": 0.9,
            "images_seen": 100 if name == "after masks" else 0,
        }
        | ({} if name == "transformer" else {"diff": diff, "diff_low": diff - 0.02, "diff_high": diff + 0.02})
        for name, diff in (
            ("colour", 0.2),
            ("untrained CNN", lead),
            ("transformer block 1", -0.3),
            ("transformer", 0.0),
            ("after masks", -0.1),
        )
        for head in ("linear probe", "graph")
    ]
    found = verdict(claims(no_results(), {"feature_quality": pd.DataFrame(rows)}), "bottleneck")
    assert found["verdict"] == expected
    told = found["reason"].partition("better than on those of: ")[2]
    assert "untrained CNN" in told and ("colour" in told) == (expected == "supported")
    assert told.endswith("; after masks, which has seen masks, 0.900")
    joint = pd.DataFrame(rows).replace({"images_seen": {0: 100}})
    found = verdict(claims(no_results(), {"feature_quality": joint}), "bottleneck")
    assert (found["verdict"], found["reason"]) == (
        "not testable here",
        "under this recipe the transformer's features have seen the masks",
    )
    older = pd.DataFrame(rows).drop(columns="images_seen")
    assert verdict(claims(no_results(), {"feature_quality": older}), "bottleneck")["verdict"] == "not testable here"
