"""Blocked attention with dropout against the dense formula with the same mask."""

import pytest
import torch

from tokencutseg.models import attention as module
from tokencutseg.models.attention import attention, draw_kept


def inputs(T=13, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, T, 4, dtype=dtype, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("cells", [1, 4 * 13**2, 10_000])
def test_values_and_gradients_equal_the_dense_formula(monkeypatch, cells):
    q, k, v = inputs()
    monkeypatch.setattr(module, "BLOCK_CELLS", cells)
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(5))
    ours = attention(q, k, v, 0.3)
    blocks = torch.arange(6).split(max(1, min(6, cells // 13**2)))
    keep = torch.cat([draw_kept((len(block), 13, 13), 0.3, 5, i) for i, block in enumerate(blocks)]).double()
    assert set(keep.unique().tolist()) == {0, 1}
    dense = ((q @ k.transpose(-2, -1) / 2).softmax(-1) * keep.view(2, 3, 13, 13) / 0.7) @ v
    torch.testing.assert_close(ours, dense, atol=1e-12, rtol=1e-12)
    target = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), target), torch.autograd.grad(dense, (q, k, v), target), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_dropped_share_and_seed():
    mask = draw_kept((50, 60, 70), 0.1, 1, 0).double()
    assert mask.mean().item() == pytest.approx(0.9, abs=0.003)
    assert torch.equal(mask, draw_kept((50, 60, 70), 0.1, 1, 0))
    for other in (draw_kept((50, 60, 70), 0.1, 2, 0), draw_kept((50, 60, 70), 0.1, 1, 1)):
        both = ((1 - mask) * (1 - other)).mean().item()
        assert both == pytest.approx(0.01, abs=0.001), "independent of other seeds and blocks"


def test_torchs_seed_decides_what_is_dropped():
    q, k, v = inputs(T=5)
    torch.manual_seed(3)
    a = attention(q, k, v, 0.2)
    torch.manual_seed(3)
    assert torch.equal(a, attention(q, k, v, 0.2))


def test_under_autocast_it_computes_in_single_precision():
    q, k, v = inputs(T=64, dtype=torch.float32)
    torch.manual_seed(0)
    ours = torch.autograd.grad(attention(q, k, v, 0.2).square().sum(), (q, k, v))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(attention(q, k, v, 0.2).square().sum(), (q, k, v))
    for a, b in zip(found, ours, strict=True):
        torch.testing.assert_close(a, b)
