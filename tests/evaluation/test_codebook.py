import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokencutseg.evaluation.codebook import codebook_summary, codebook_table

K = 7


@given(hnp.array_shapes(min_dims=2, max_dims=3), st.data())
def test_table_and_summary_equal_dense_one_hot(shape, data):
    tokens = torch.from_numpy(data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, K - 1))))
    masks = torch.from_numpy(data.draw(hnp.arrays(np.float64, shape, elements=st.floats(0, 1))))
    one_hot = F.one_hot(tokens, K).double().flatten(0, -2)  # (tokens, K)
    share = one_hot.mean(dim=0)
    lesion = (one_hot * masks.flatten()[:, None]).sum(dim=0) / one_hot.sum(dim=0)  # 0/0 is NaN, as documented
    table = codebook_table(tokens, masks, K)
    assert table["code"].tolist() == list(range(K))
    assert table["count"].tolist() == one_hot.sum(dim=0).tolist()
    np.testing.assert_allclose(table["share"], share)
    np.testing.assert_allclose(table["lesion_share"], lesion)

    entropy = torch.distributions.Categorical(probs=share).entropy().item()
    expected = {"usage": (share > 0).double().mean().item(), "perplexity": np.exp(entropy)}
    assert codebook_summary(tokens, K) == pytest.approx(expected, abs=1e-5)


def test_extremes():
    assert codebook_summary(torch.arange(16).view(2, 8), 16)["perplexity"] == pytest.approx(16)
    assert codebook_summary(torch.zeros(2, 8, dtype=torch.int64), 16)["perplexity"] == 1
    assert codebook_table(torch.zeros(2, 8, dtype=torch.int64), None, 4)["lesion_share"].isna().all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[0, 4\).*1 to 4"):
        codebook_summary(torch.tensor([[1, 4]]), 4)
    with pytest.raises(ValueError, match="token grid"):
        codebook_table(torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, 4, 2), 4)
    with pytest.raises(ValueError, match="no tokens"):
        codebook_summary(torch.zeros(0, 8, dtype=torch.int64), 4)
