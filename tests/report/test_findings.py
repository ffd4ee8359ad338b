"""Sentences made from tables: what they call a difference, against the rule spelled out anew."""

import re

import numpy as np
import pandas as pd

from tokencutseg.report.findings import SENTENCES, claims_tested, headline

WORDS = {"above": 1, "below": -1, "not significantly different": 0}


def drawn(rng, count):
    """Rows of `main_results`: differences at random, their intervals sometimes across zero, p sometimes too large."""
    rows = pd.DataFrame({"method": ["tokencutseg", *(f"m{i}" for i in range(count))]})
    rows = rows.assign(train="a", test="a", reduction="per_image", measure="iou", n=9, mean=0.5, low=0.4, high=0.6)
    rows["seeds"] = 1
    rows["diff"] = np.append(np.nan, rng.normal(0, 0.1, count))
    half = np.append(np.nan, rng.uniform(0, 0.2, count))
    rows["diff_low"], rows["diff_high"] = rows["diff"] - half, rows["diff"] + half
    rows["p_holm"] = np.append(np.nan, rng.choice([0.01, 0.049, 0.05, 0.3], count))
    return rows


def test_a_difference_is_one_only_where_interval_and_p_say_so():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(100):
        rows = drawn(rng, 4)
        said = {}
        for part in headline(rows).partition("per image: ")[2].split("; "):
            (sign,) = {WORDS[word] for word in WORDS if word in part}
            said |= dict.fromkeys(re.findall(r"m\d", part), sign)
        for row in rows.iloc[1:].itertuples():
            apart = (row.diff_low > 0 or row.diff_high < 0) and row.p_holm < 0.05
            assert said[row.method] == (np.sign(row.diff) if apart else 0)
            seen.add(said[row.method])
    assert seen == {1, -1, 0}


def test_the_largest_differences_are_named_and_the_others_counted():
    rows = drawn(np.random.default_rng(1), 9).assign(p_holm=1.0)
    largest = rows.loc[rows["diff"].abs().nlargest(4).index, "method"]
    sentence = headline(rows)
    assert re.findall(r"m\d", sentence) == largest.tolist() and "and 5 more" in sentence


def test_the_kept_epoch_is_told_with_its_reduction():
    history = pd.DataFrame({"train": "a", "epoch": [0, 1], "chosen_by": "validation_micro_two_class_iou"})
    history = history.assign(validation_micro_two_class_iou=[0.8, 0.9], validation_per_image_iou=[0.7, 0.6])
    said = SENTENCES["segmentation_history"](history)
    assert "micro, two classes" in said and "0.900 on a (epoch 1)" in said


def test_nothing_is_said_of_rows_that_are_compared_with_nothing():
    row = {"reduction": "per_image", "measure": "iou", "method": "tokencutseg", "codebook_size": 64, "diff": np.nan}
    assert [SENTENCES[name](pd.DataFrame([row])) for name in ("baselines", "codebook_size")] == ["", ""]


def test_claims():
    assert SENTENCES["claims"] is claims_tested
    none = pd.DataFrame([{"claim": "all", "verdict": "not testable here", "reason": "too short"}])
    assert "No claim" in claims_tested(none) and "too short" in claims_tested(none)
    verdicts = ["supported", "not testable here", "not supported", "supported"]
    sentence = claims_tested(pd.DataFrame({"claim": list("wxyz"), "verdict": verdicts, "reason": ""}))
    assert "4 claims" in sentence and "can test 3" in sentence and "; supported: w, z; not supported: y" in sentence
