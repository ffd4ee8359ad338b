# ruff: noqa: F401 -- what notebooks draw: `from tokencutseg import plots`
"""Every figure of a study: a function from tables and tensors to a matplotlib `Figure`, all in one style."""

from tokencutseg.plots.ablations import (
    baselines,
    codebook_size,
    deviations,
    efficiency,
    feature_quality,
    graph_radius,
    label_efficiency,
    revised_steps,
    stages,
)
from tokencutseg.plots.charts import dot_interval
from tokencutseg.plots.evaluation import (
    contact_sheet,
    cross_dataset,
    per_image_scores,
    score_by_group,
    score_by_lesion_size,
)
from tokencutseg.plots.segmentation import (
    best_median_worst,
    by_rank,
    failures,
    graph_stencil,
    pipeline,
    predictions,
    segmentation_curves,
)
from tokencutseg.plots.tokenizer import (
    code_explorer,
    codebook_embedding,
    codebook_usage,
    dataset_preview,
    reconstructions,
    token_maps,
    vqgan_curves,
)
from tokencutseg.plots.transformer import attention_maps, linear_probe, masked_gpt_curves, masking, token_inpainting
