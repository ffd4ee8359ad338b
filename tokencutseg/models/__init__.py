"""The three stages as plain `torch` modules, and the segmenter that joins them."""
