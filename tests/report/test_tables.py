"""Tables as text."""

import numpy as np
import pandas as pd

from tokencutseg.report.tables import in_words, readable


def test_readable_shows_a_sentence_whole():
    reason = " ".join(3 * ["not significantly better: iou +0.000214 [-0.0078, 0.00789] against unet;"])
    assert reason in readable(pd.DataFrame({"reason": [reason]}))._repr_html_()


def test_readable_joins_an_estimate_and_its_interval():
    table = pd.DataFrame(
        {
            "n": [600, 7],
            "large": [1234567.8, -0.00012345],
            "complete": [True, False],
            "mean": [0.73712, np.nan],
            "difference": [-0.01, 0.5],
            "low": [-0.02, np.nan],
            "high": [0.004, np.nan],
            "diff": [0.1, 0.2],
            "diff_low": [0.05, 0.0001],
            "diff_high": [0.15, 0.3],
            "seed_low": [0.7, 0.8],
            "p": [0.0048378, np.nan],
            "x_without": [0.5, 0.5],
            "low_without": [0.4, 0.4],
            "high_without": [0.6, 0.7],
        },
        index=[4, 2],
    )
    expected = pd.DataFrame(
        {
            "n": ["600", "7"],
            "large": ["1,234,568", "−0.0001234"],
            "complete": ["yes", "no"],
            "mean": ["0.7371", "–"],
            "difference": ["−0.010 [−0.020, +0.004]", "0.5"],
            "diff": ["+0.100 [+0.050, +0.150]", "+0.2000 [+0.0001, +0.3000]"],
            "seed_low": ["0.7", "0.8"],
            "p": ["0.004838", "–"],
            "x_without": ["0.500 [0.400, 0.600]", "0.500 [0.400, 0.700]"],
        },
        index=[4, 2],
    )
    pd.testing.assert_frame_equal(readable(table), expected)


def test_in_words():
    table = pd.DataFrame({"method": ["tokencutseg", "unet"], "measure": "hd95", "empty": np.nan, "mean": [3.0, 4.0]})
    shown, said = in_words(table.assign(diff=[np.nan, -1.0], p_holm=[np.nan, 1e-9], runs="a"), "baselines")
    expected = pd.DataFrame({"method": ["TokenCutSeg", "U-Net"], "mean": ["3", "4"]})
    expected = expected.assign(**{"TokenCutSeg − method": ["–", "−1"], "p (Holm)": ["–", "< 0.0001"]})
    pd.testing.assert_frame_equal(shown, expected)
    assert said == "measure Hausdorff 95 %"
