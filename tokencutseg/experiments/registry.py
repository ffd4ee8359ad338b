"""Every table that rests on trainings, by name, and the trainings behind those of the notebooks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pandas as pd

from tokencutseg.experiments import tables
from tokencutseg.experiments.ablations import ABLATIONS, Row, declared_rows, efficiency, run_ablation
from tokencutseg.experiments.claims import claims
from tokencutseg.experiments.features import feature_quality, feature_quality_tokens
from tokencutseg.experiments.pipeline import OURS, Training
from tokencutseg.experiments.study import Study

TABLES: dict[str, Callable[[Study], pd.DataFrame]] = {
    "reconstruction": tables.reconstruction,
    "codebook_usage": tables.codebook_usage,
    "masked_prediction": tables.masked_prediction,
    "linear_probe": tables.linear_probes,
    "segmentation_history": tables.segmentation_history,
    "main_results": tables.main_results,
    "pairwise": tables.pairwise,
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
    """The trainings behind the tables of the notebooks; the engine trains what these build on, too.

    Those of `revised_steps` are not among them, apart from its first and last: each depends on the scores before it.
    """
    found = [study.method(OURS), *tables.main_trainings(study).values()]
    for name, ablation in ABLATIONS.items():
        rows = [row for row in declared_rows(study, name) if isinstance(row, Row)]
        found += itertools.chain.from_iterable(ablation.trainings(study, row) for row in rows)
    return found
