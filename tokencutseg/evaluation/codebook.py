"""How the codebook is used: how many of the K codes have tokens, how evenly, and which of them lie on lesions.

Statistics are taken over a whole set: over a batch, perplexity is bounded by the batch's own few tokens and misleads.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import Tensor


def codebook_table(tokens: Tensor, masks: Tensor | None, codebook_size: int) -> pd.DataFrame:
    """One row per code: `code`, `count` (tokens that it is assigned to), `share` (of all tokens), and `lesion_share`
    (of its tokens' area that is lesion; NaN for a code without tokens and where there are no masks).

    tokens: (N, T) or (N, H, W) int64 in [0, K), K = codebook_size. masks: how much of each token's area is lesion, in
    the shape of `tokens`. Raises ValueError for a token outside the codebook, or masks of another shape.
    """
    count, lesion = _counts(tokens, codebook_size), np.full(codebook_size, np.nan)
    if masks is not None:
        if masks.shape != tokens.shape:
            raise ValueError(f"masks {tuple(masks.shape)} must be given at the token grid {tuple(tokens.shape)}")
        lesion = np.bincount(tokens.flatten(), masks.double().flatten(), codebook_size)
    table = pd.DataFrame({"code": np.arange(codebook_size), "count": count, "share": count / count.sum()})
    return table.assign(lesion_share=lesion / table["count"])


def codebook_summary(tokens: Tensor, codebook_size: int) -> dict[str, float]:
    """`usage`, the share of the codes that have tokens, and `perplexity`, the exponential of the entropy of the codes'
    shares: the size of an evenly used codebook of the same entropy. Arguments and errors as for `codebook_table`."""
    count = _counts(tokens, codebook_size)
    share = count[count > 0] / count.sum()
    return {"usage": float((count > 0).mean()), "perplexity": float(np.exp(-(share * np.log(share)).sum()))}


def _counts(tokens: Tensor, codebook_size: int) -> np.ndarray:
    if tokens.numel() == 0:
        raise ValueError("there are no tokens to count")
    if tokens.min() < 0 or tokens.max() >= codebook_size:
        raise ValueError(f"tokens must lie in [0, {codebook_size}), but span {tokens.min()} to {tokens.max()}")
    return np.bincount(tokens.flatten(), minlength=codebook_size)
