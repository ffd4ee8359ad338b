"""The fixed list of what each notebook leaves under `results/<study>/`."""

from __future__ import annotations

from typing import NamedTuple


class Outputs(NamedTuple):
    tables: tuple[str, ...]
    figures: tuple[str, ...]


OUTPUTS = {
    "01_vqgan_pretrain": Outputs(
        ("reconstruction", "codebook_usage"),
        ("dataset_preview", "vqgan_curves", "reconstructions", "codebook_usage", "token_maps", "codebook_embedding"),
    ),
    "02_masked_gpt": Outputs(
        ("masked_prediction", "linear_probe"),
        ("masking", "masked_gpt_curves", "token_inpainting", "attention_maps", "linear_probe"),
    ),
    "03_deepcut_seg": Outputs(
        ("segmentation_history",),
        ("graph_stencil", "segmentation_curves", "predictions", "best_median_worst"),
    ),
    "04_eval_cross_dataset": Outputs(
        ("main_results", "budgets", "cross_dataset", "score_by_group", "leakage", "claims", "published_consistency"),
        ("per_image_scores", "cross_dataset", "score_by_lesion_size", "score_by_group", "failures"),
    ),
    "05_ablations": Outputs(
        ("codebook_size", "stages", "graph_radius", "feature_quality", "label_efficiency", "deviations",
         "revised_steps", "efficiency", "baselines"),
        ("codebook_size", "stages", "graph_radius", "feature_quality", "label_efficiency", "deviations",
         "revised_steps", "efficiency", "baselines", "pipeline"),
    ),
}
