"""Per-image records first, means second: scores, their intervals, codebook statistics, image quality and cost."""
