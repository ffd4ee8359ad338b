import time

import pytest
import torch
from torch import nn

from tokencutseg.evaluation.cost import cost_row, flops, latency, peak_memory


def test_flops_see_through_fused_attention():
    """In eval mode torch runs this layer as one operator, which its own counter takes for free."""
    B, T, C = 1, 10, 32
    layer = nn.TransformerEncoderLayer(C, nhead=4, dim_feedforward=64, batch_first=True)
    linear = 2 * B * T * C * (3 * C + C + 64 + 64)
    attention = 2 * (2 * B * T * T * C)
    assert flops(layer, torch.zeros(B, T, C)) == linear + attention
    assert layer.training and torch.backends.mha.get_fastpath_enabled()


def test_latency_is_a_median():
    calls = []

    def fn():
        calls.append(0)
        time.sleep(0.2 if len(calls) == 5 else 0.005)  # one outlier

    assert 0.005 <= latency(fn, repeats=5) < 0.1
    assert len(calls) == 7


def test_peak_memory_by_hand():
    kept, megabyte = [], 2**18  # floats

    def fn():
        a = torch.zeros(4, megabyte)
        b = a[:2].view(-1)  # shares a's storage
        b.add_(1)
        c = torch.zeros(2, megabyte)
        del a, b
        kept.append(torch.zeros(3, megabyte))
        return c

    assert peak_memory(fn) == 6 * 2**20
    outer = torch.zeros(8, megabyte)
    assert peak_memory(lambda: outer.add_(1)[:1]) == 0, "what was there before is not counted"
    with torch.no_grad():
        layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        # the image (3), held by its caller, and input and output of the ReLU (8 + 8)
        assert peak_memory(lambda: layers(torch.zeros(1, 3, 16, 16))) == 4 * 256 * (3 + 8 + 8)


def test_row_leaves_the_module_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    network[1].eval()
    row = cost_row("small", network, image_size=16)
    assert row.keys() == {"method", "parameters", "flops", "latency_seconds", "peak_memory_bytes"}
    assert row["method"] == "small" and row["parameters"] == 4 * 28 + 8 + 10
    assert row["flops"] == 2 * 256 * (4 * 27 + 2 * 4)
    assert row["latency_seconds"] > 0 and row["peak_memory_bytes"] >= 4 * 256 * 8
    assert [part.training for part in network] == [True, False, True]


def test_a_failing_module_leaves_no_global_mode_behind():
    with pytest.raises(RuntimeError):
        flops(nn.Linear(5, 7), torch.zeros(1, 4))
    assert torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()
