"""Every figure of a study: a function from tables and tensors to a matplotlib `Figure`, all in one style."""

from tokencutseg.plots import ablations, charts, evaluation, segmentation, tokenizer, transformer

__all__ = ["ablations", "charts", "evaluation", "segmentation", "tokenizer", "transformer"]
