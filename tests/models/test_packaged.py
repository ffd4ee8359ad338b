"""The packaged model against its card: on a few committed images it scores what the study's records say."""

import runpy

import numpy as np
import pandas as pd

import tokencutseg
from tokencutseg.evaluation.per_image import score
from tokencutseg.experiments.runs import read_records
from tokencutseg.files import CHECKOUT

examples = runpy.run_path(str(CHECKOUT / "scripts/make_examples.py"))["examples"]
STUDY = CHECKOUT / "results/reference/isic"


def test_scores_are_those_of_the_records():
    ids, images, masks = examples()
    predicted = tokencutseg.load().predict_probabilities(images.float() / 255).argmax(1)
    found = score(predicted, masks, ids).set_index("id")
    results = pd.read_csv(STUDY / "tables/main_results.csv")
    own = results[(results["method"] == "tokencutseg") & (results["train"] == "isic2017")]
    (run,) = own["runs"].str.split().str[0].unique()  # of the first seed
    (path,) = (STUDY / "runs" / run).glob("per_image-*.csv")
    records = read_records(path).query("dataset == 'isic2017' and split == 'test'").set_index("id").loc[ids]
    for measure in ("iou", "dice", "nsd"):  # the records are those of the weights in single precision
        np.testing.assert_allclose(found[measure], records[measure], atol=0.01)
