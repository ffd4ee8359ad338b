"""The trainings behind all tables, by the ids of their runs."""

from tokencutseg.experiments.registry import TABLES, trainings
from tokencutseg.experiments.study import Study


def test_trainings_are_those_of_the_main_results_and_of_the_ablations(tmp_path):
    study = Study.open("tiny", results=tmp_path)
    found = trainings(study)
    assert {(one.train_set, one.baseline) for one in found} >= {("site_a", None), ("site_b", None), ("site_a", "unet")}
    sizes = {one.config.vqgan.codebook_size for one in found}
    assert sizes >= set(study.config.ablation.codebook_sizes)
    assert all(study.spec(one).id for one in found) and not list(tmp_path.glob("runs/*/metrics.json"))
    assert {"main_results", "label_efficiency", "feature_quality", "claims"} <= set(TABLES)
