"""docs/results.md and the numbers in prose are those of the committed tables."""

import runpy

import pandas as pd
import pytest

from tokencutseg.files import CHECKOUT

script = runpy.run_path(str(CHECKOUT / "scripts/make_results.py"))
NAME = "main_results/unet/train=isic2017/test=isic2017/per_image/iou/mean"


def test_documents_are_up_to_date():
    for name, text in script["documents"]().items():
        assert (CHECKOUT / name).read_text("utf-8") == text, f"{name}: run scripts/make_results.py"


def test_a_number_is_injected_by_its_name():
    table = pd.read_csv(CHECKOUT / "results/reference/isic/tables/main_results.csv")
    rows = table.query("train == 'isic2017' and test == 'isic2017' and method == 'unet' and measure == 'iou'")
    (mean,) = rows.loc[rows["reduction"] == "per_image", "mean"]
    made = script["inject"](f"U-Net <!--={NAME}-->?<!--/-->, <!--={NAME}:.1%-->0 %<!--/-->.")
    assert made == f"U-Net <!--={NAME}-->{mean:.3f}<!--/-->, <!--={NAME}:.1%-->{mean:.1%}<!--/-->."
    assert script["inject"](made) == made


def test_a_name_must_leave_one_row():
    with pytest.raises(ValueError, match="names 2 rows"):
        script["number"](NAME.replace("/iou", "").replace("per_image", "micro_lesion"))
