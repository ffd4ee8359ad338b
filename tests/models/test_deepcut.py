"""The stencil against the dense formula, in double precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencutseg.models.deepcut import (
    GridGraph,
    normalised_cut,
    orthogonality,
    position_graph,
    stencil_offsets,
    to_grid,
    to_nodes,
)

GRIDS = [(8, 8), (5, 9), (1, 6), (12, 7)]


def dense_adjacency(H, W, radius, unit):
    """A (T, T) from the reduction: distance of node positions, self-loops included."""
    y, x = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    scale = (max(H - 1, 1), max(W - 1, 1)) if unit == "image" else (1, 1)
    p = np.stack([y.ravel() / scale[0], x.ravel() / scale[1]], 1)
    distance = np.sqrt(((p[:, None] - p[None]) ** 2).sum(-1))
    return torch.from_numpy((distance <= radius * (1 + 1e-7) + 1e-9).astype(np.float64))


def dense_normalised(A):
    d = A.sum(1).rsqrt()
    return d[:, None] * A * d[None]


def test_cached_graph_is_in_single_precision():
    where = (7, 5, 2.6, "cells", torch.device("cpu"), torch.float32)
    position_graph.cache_clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = position_graph(*where)
    position_graph.cache_clear()
    single = position_graph(*where)
    for name in ("degree", "scale", "normalised_degree"):
        assert torch.equal(getattr(mixed, name), getattr(single, name)), name


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 2.6, 5.0])
def test_propagation_cut_and_gradients_equal_the_dense_formula(grid, radius):
    H, W = grid
    A = dense_normalised(dense_adjacency(H, W, radius, "cells"))
    graph = GridGraph(H, W, radius, "cells", like=torch.zeros(1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, H * W, 3, dtype=torch.float64, generator=generator, requires_grad=True)

    ours, dense = to_nodes(graph.propagate(to_grid(x, grid))), A @ x
    torch.testing.assert_close(ours, dense, atol=1e-12, rtol=1e-12)

    S = x.softmax(-1)
    dense_cut = -torch.einsum("btc,ts,bsc->b", S, A, S) / (torch.einsum("btc,t,btc->b", S, A.sum(1), S) + 1e-6)
    cut = normalised_cut(to_grid(S, grid), graph)
    torch.testing.assert_close(cut, dense_cut, atol=1e-9, rtol=1e-9)
    (g_ours,) = torch.autograd.grad((cut + orthogonality(S)).sum() + ours.square().sum(), x, retain_graph=True)
    (g_dense,) = torch.autograd.grad((dense_cut + orthogonality(S)).sum() + dense.square().sum(), x)
    torch.testing.assert_close(g_ours, g_dense, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("grid", [(7, 7), (4, 6)])
def test_feature_affinity_equals_the_dense_formula(grid):
    H, W = grid
    f = torch.randn(2, 5, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, H * W, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    unit = torch.nn.functional.normalize(to_nodes(f), dim=-1)
    weights = torch.exp((unit @ unit.transpose(1, 2) - 1) / GridGraph.TEMPERATURE)
    A = dense_adjacency(H, W, 1.5, "cells") * weights
    d = A.sum(-1).rsqrt()
    dense = (d[:, :, None] * A * d[:, None]) @ x
    ours = GridGraph(H, W, 1.5, "cells", features=f).propagate(to_grid(x, grid))
    torch.testing.assert_close(to_nodes(ours), dense, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("side", "neighbours"), [(56, 20), (24, 4), (12, 0)])
def test_released_radius(side, neighbours):
    assert len(stencil_offsets(side, side, math.sqrt(2) / 30, "image")) - 1 == neighbours


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 6), st.sampled_from(["image", "cells"]))
@settings(max_examples=60, deadline=None)
def test_offsets_and_degrees_equal_the_dense_graph(H, W, radius, unit):
    A = dense_adjacency(H, W, radius, unit)
    graph = GridGraph(H, W, radius, unit)
    assert torch.equal(graph.degree.flatten().double(), A.sum(1))
    assert {(-dy, -dx) for dy, dx in graph.offsets} == set(graph.offsets)
