"""Every table that rests on trainings, by name, and the trainings behind those of the notebooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from tokencutseg.experiments import tables
from tokencutseg.experiments.ablations import ABLATIONS, efficiency, run_ablation
from tokencutseg.experiments.claims import claims
from tokencutseg.experiments.features import feature_quality, feature_quality_tokens
from tokencutseg.experiments.pipeline import Training
from tokencutseg.experiments.study import Study

TABLES: dict[str, Callable[[Study], pd.DataFrame]] = {
    "reconstruction": tables.reconstruction,
    "codebook_usage": tables.codebook_usage,
    "masked_prediction": tables.masked_prediction,
    "linear_probe": tables.linear_probes,
    "segmentation_history": tables.segmentation_history,
    "main_results": tables.main_results,
    "budgets": tables.budgets,
    "cross_dataset": lambda study: tables.cross_dataset(tables.main_results(study)),
    "score_by_group": tables.score_by_group,
    "leakage": tables.leakage,
    **{name: partial(run_ablation, name=name) for name in ABLATIONS},
    "feature_quality_tokens": feature_quality_tokens,
    "feature_quality": feature_quality,
    "efficiency": efficiency,
    "claims": claims,
}
"""Each is made alone from a study; `claims` reads those that are written."""


def trainings(study: Study) -> list[Training]:
    """The trainings behind the tables of notebooks 01 to 04; the engine trains what these build on, too."""
    return list(tables.main_trainings(study).values())
