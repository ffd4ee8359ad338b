"""Every table that rests on trainings, by name, and the trainings behind those of the notebooks."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from tokencutseg.experiments import ablations, tables
from tokencutseg.experiments.claims import claims
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
    "codebook_size": ablations.codebook_size,
    "stages": ablations.stages,
    "graph_radius": ablations.graph_radius,
    "feature_quality": ablations.feature_quality,
    "label_efficiency": ablations.label_efficiency,
    "deviations": ablations.deviations,
    "revised_steps": ablations.revised_steps,
    "efficiency": ablations.efficiency,
    "baselines": ablations.baselines,
    "claims": claims,
}
"""Each is made alone from a study; `claims` reads those that are written."""


def trainings(study: Study) -> list[Training]:
    """The trainings behind the tables of the notebooks, in an order that the engine can take."""
    return [study.training("vqgan"), study.training("masked_gpt"), *tables.main_trainings(study).values()]
