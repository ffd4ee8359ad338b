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
        ("segmentation_history",), ("graph_stencil", "segmentation_curves", "predictions", "best_median_worst")
    ),
    "04_eval_cross_dataset": Outputs(
        ("main_results", "budgets", "cross_dataset", "score_by_group", "leakage", "claims", "published_consistency"),
        ("per_image_scores", "cross_dataset", "score_by_lesion_size", "score_by_group", "failures"),
    ),
    "05_ablations": Outputs(
        (
            "codebook_size",
            "stages",
            "graph_radius",
            "feature_quality",
            "feature_quality_tokens",
            "label_efficiency",
            "deviations",
            "revised_steps",
            "efficiency",
            "baselines",
            "claims",
        ),
        (
            "codebook_size",
            "stages",
            "graph_radius",
            "feature_quality",
            "label_efficiency",
            "deviations",
            "revised_steps",
            "efficiency",
            "baselines",
            "pipeline",
        ),
    ),
}

SHOW_IMAGES = frozenset(
    (
        "dataset_preview",
        "reconstructions",
        "token_maps",
        "codebook_embedding",
        "masking",
        "token_inpainting",
        "attention_maps",
        "predictions",
        "best_median_worst",
        "failures",
        "pipeline",
    )
)
"""Figures that show images of the data, or patches painted after them: not to be passed on where the images are not."""

CAPTIONS = {
    "dataset_preview": "What the stages learn from, one row per set, with the border of the mask where there is one. Look "
    "for hair, rulers, ink and dark corners: each method will meet them again.",
    "vqgan_curves": "The tokenizer's training: its loss terms, its error on validation images, and how many codes are in "
    "use. A codebook in good health keeps most of its codes.",
    "reconstructions": "Images, what the decoder makes of their words, and the difference. What the words cannot say, no "
    "later stage can read from them.",
    "codebook_usage": "How often each code fires on test images, most frequent first, and how lesion-bound the codes are. "
    "Codes at either end speak of lesion or of skin; those in between of neither.",
    "token_maps": "Image, its words, what they decode to, and how lesion-bound each word is. The colour of a word is "
    "only its name.",
    "codebook_embedding": "The codes in the plane of their two largest principal components, each with the patch that it "
    "paints.",
    "masking": "One image with growing shares of its words hidden, one row per pattern. Scattered holes can be "
    "guessed from their neighbours; blocks cannot.",
    "masked_gpt_curves": "The transformer's training, and how often it guesses a hidden word, by the share that is hidden.",
    "token_inpainting": "TokenizedSet hidden and filled in by the transformer, with its uncertainty.",
    "attention_maps": "Where a word of the lesion and one of the skin look, block by block.",
    "linear_probe": "How well a straight cut through each layer's features tells lesion from skin, without any mask in "
    "their training.",
    "graph_stencil": "The neighbourhood of one token, and how many neighbours each token has: fewer at the border.",
    "segmentation_curves": "The supervised training: its losses, and the score on validation images that chooses the epoch.",
    "predictions": "From image to mask: words, the graph's assignments, probability, and the outlines of reference and "
    "prediction.",
    "best_median_worst": "Test images of the highest, the middle and the lowest score, with both outlines.",
    "per_image_scores": "The share of test images whose lesion IoU is at most x. The lower a curve runs, the better; the left"
    " end shows failures that a mean hides.",
    "cross_dataset": "The same predictions under every reduction of the score, with 95 % intervals. What is called mIoU "
    "depends on the reduction as much as on the method.",
    "score_by_lesion_size": "Lesion IoU over the lesion's share of the image: small lesions are hardest.",
    "score_by_group": "Lesion IoU by size, contrast and site, with 95 % intervals.",
    "failures": "The worst test images from worst up, with both outlines. Some are the method's fault, some the "
    "reference's.",
    "codebook_size": "Usage, perplexity, reconstruction and segmentation over the number of codes.",
    "stages": "What each stage adds under one budget: the score on validation, and the paired change to the row above.",
    "graph_radius": "Lesion IoU over the reach of the graph's edges, and the paired change; at zero there is no graph.",
    "feature_quality": "Two heads on the same frozen features, from raw colour to a supervised network's.",
    "label_efficiency": "Lesion IoU over the share of labels. Bands are 95 % intervals over images, bars the range of seeds; "
    "unet_plain is the U-Net trained the plain way: flips and brightness, batches of 16, no averaged weights.",
    "deviations": "What one switch does to the score, in both recipes. Where an interval crosses zero, it may do "
    "nothing.",
    "revised_steps": "The way from the described method to the revised one, a switch at a time, kept where validation says"
    " so.",
    "efficiency": "Parameters, operations, time and memory of one prediction.",
    "baselines": "Every method under every reduction of the score, on the same images, budget and augmentation.",
    "pipeline": "One pass of the model, from pixels to mask, with the shapes on the way.",
}
"""What to see in each figure."""
