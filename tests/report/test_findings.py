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


def numbers(name, columns, *rows):
    """Those in the sentence of a table."""
    said = SENTENCES[name](pd.DataFrame(rows, columns=columns.split()))
    return [float(number.replace("−", "-")) for number in re.findall(r"(?<![\w.])[+−-]?\d+(?:\.\d+)?", said)]


def test_codes_and_masked_tokens_in_numbers():
    codes = [(4, 1 / 2, 0.9), (2, 1 / 4, 0.5), (1, 1 / 8, 0.6), (1, 1 / 8, 0), *[(0, 0, np.nan)] * 2]  # 1.75 bits
    assert numbers("codebook_usage", "count share lesion_share", *codes) == [4, 6, round(2**1.75, 1), 2]
    tokens = [
        (pattern, ratio, first + ratio, first + ratio - 0.01, first + ratio + 0.02, ratio / 2)
        for pattern, first in (("iid", 0.1), ("block", 0.05))
        for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    found = numbers("masked_prediction", "pattern mask_ratio accuracy low high chance", *tokens)
    assert found == [0.55, 0.54, 0.57, 0.25]


def test_probes_in_numbers():
    columns = "features balanced_accuracy low high iou"
    rows = [("colour", 0.71, 0.7, 0.73, 0.1), ("block 1", 0.8, 0.79, 0.82, 0.2), ("tokenizer", 0.76, 0.75, 0.78, 0.3)]
    found = numbers("linear_probe", columns, *rows, ("output", 0.83, 0.81, 0.84, 0.4))
    assert found == [0.83, 0.81, 0.84, 0.76, 0.75, 0.78, 0.71, 0.7, 0.73]
    columns = "head features diff diff_low diff_high"
    rows = [("linear", "colour", 0.9, 0.8, 1), ("graph", "output", *[np.nan] * 3), ("graph", "colour", 0.3, 0.2, 0.4)]
    rows.append(("graph", "tokenizer", -0.1, -0.2, -0.05))
    assert numbers("feature_quality", columns, *rows) == [0.3, 0.2, 0.4, -0.1, -0.2, -0.05]
    said = SENTENCES["feature_quality"](pd.DataFrame(rows, columns=columns.split()))
    assert said.index("better") < said.index("colour") < said.index("worse") < said.index("tokenizer")


def test_scores_by_test_set_and_size_in_numbers():
    columns, own = "train test reduction measure mean low high", ("per_image", "iou")
    rows = [("a", "a", *own, 0.8, 0.79, 0.82), ("b", "b", *own, 0.7, 0.68, 0.71), ("a", "b", *own, 0.6, 0.59, 0.63)]
    others = [("a", "b", "micro_lesion", "iou", 0.1, 0, 0.2), ("a", "b", "per_image", "dice", 0.3, 0.2, 0.4)]
    unpaired = ("c", "b", *own, 0.5, 0.4, 0.6)  # whose own test set is not there
    found = numbers("cross_dataset", columns, *others, unpaired, *rows)
    assert found == [0.6, 0.59, 0.63, 0.8, 0.79, 0.82]
    columns = "train test method grouping group mean low high"
    ours = [("a", "a", "tokencutseg", "lesion size", f"s{x}", 0.1 * x, 0.1 * x - 0.1, 0.1 * x + 0.2) for x in (5, 6, 7)]
    others = [
        ("a", "a", "otsu", "lesion size", "small", 0.1, 0, 0.2),
        ("a", "b", "tokencutseg", "lesion size", "small", 0.2, 0, 0.3),
        ("b", "a", "tokencutseg", "lesion size", "small", 0.3, 0, 0.4),
        ("a", "a", "tokencutseg", "contrast", "low", 0.4, 0, 0.5),
    ]
    found = numbers("score_by_group", columns, *ours, *others)
    assert found == [0.5, 0.4, 0.7, 0.6, 0.5, 0.8, 0.7, 0.6, 0.9]


def test_costs_in_numbers():
    columns, rows = "method parameters flops latency_seconds", [("otsu", 0, 0, 0.012), ("fpn", 5_340_000, 2.6e9, 0.1)]
    assert numbers("efficiency", columns, *rows) == [0, 0, 12, 5.3, 2.6, 100]
    columns, psnr = "dataset measure mean low high", ("site", "psnr", 25.5, 25.25, 26)
    assert numbers("reconstruction", columns, ("site", "l1", 0.1, 0, 0.2), psnr) == [25.5, 25.25, 26]


def test_claims():
    assert SENTENCES["claims"] is claims_tested
    none = pd.DataFrame([{"claim": "all", "verdict": "not testable here", "reason": "too short"}])
    assert "No claim" in claims_tested(none) and "too short" in claims_tested(none)
    verdicts = ["supported", "not testable here", "not supported", "supported"]
    sentence = claims_tested(pd.DataFrame({"claim": list("wxyz"), "verdict": verdicts, "reason": ""}))
    assert "4 claims" in sentence and "can test 3" in sentence and "; supported: w, z; not supported: y" in sentence
