"""Stage 3, the graph module: tokens are nodes, neighbours on the grid are edges, a GCN assigns nodes to classes.

Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017; Bianchi, Grattarola,
Alippi, "Spectral Clustering with Graph Neural Networks for Graph Pooling" (MinCutPool), ICML 2020; Aflalo et al.,
"DeepCut: Unsupervised Segmentation using Graph Neural Networks Clustering", ICCVW 2023.

A radius graph on a regular grid is the same few offsets at every cell, a stencil. Everything that needs the graph is
therefore a convolution with a fixed kernel and a border correction, and nothing of size T×T is ever made.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokencutseg.config import SegmentationConfig

Grid = tuple[int, int]
"""Rows H and columns W of tokens."""


@lru_cache(maxsize=64)
def stencil_offsets(H: int, W: int, radius: float, unit: str) -> tuple[tuple[int, int], ...]:
    """The (dy, dx) of every neighbour within `radius`, the cell itself included.

    unit "image": cells lie on [0, 1]² with `linspace` spacing 1/(H−1), 1/(W−1) (released). unit "cells": spacing 1.
    A neighbour exactly at the radius counts.
    """
    step_y, step_x = (1 / max(H - 1, 1), 1 / max(W - 1, 1)) if unit == "image" else (1.0, 1.0)
    reach_y = min(H - 1, math.floor(radius / step_y + 1e-6))
    reach_x = min(W - 1, math.floor(radius / step_x + 1e-6))
    limit = radius**2 * (1 + 1e-6) + 1e-12
    return tuple(
        (dy, dx)
        for dy in range(-reach_y, reach_y + 1)
        for dx in range(-reach_x, reach_x + 1)
        if (dy * step_y) ** 2 + (dx * step_x) ** 2 <= limit
    )


class GridGraph:
    """The symmetrically normalised radius graph Ã = D^-½ A D^-½ of an H×W token grid, self-loops included.

    Without `features` every edge weighs 1 (position only, as released) and Ã is one depthwise convolution. With
    `features` (B, E, H, W) an edge weighs the similarity of its ends, exp((cos − 1)/τ) in (0, 1], and Ã is a weighted
    sum over the stencil's offsets.
    """

    TEMPERATURE = 0.2

    def __init__(
        self, H: int, W: int, radius: float, unit: str, features: Tensor | None = None, like: Tensor | None = None
    ) -> None:
        self.offsets = stencil_offsets(H, W, radius, unit)
        self.reach = tuple(max(steps) for steps in zip(*self.offsets, strict=True))
        self.weights = None if features is None else self._affinities(features)
        reference = features if features is not None else like if like is not None else torch.empty(0)
        self.kernel = reference.new_zeros(1, 1, 2 * self.reach[0] + 1, 2 * self.reach[1] + 1)
        for dy, dx in self.offsets:
            self.kernel[0, 0, dy + self.reach[0], dx + self.reach[1]] = 1
        ones = reference.new_ones(1, 1, H, W)
        weights = self.weights
        self.degree = self._adjacent(ones) if weights is None else weights.sum(1, keepdim=True)  # (1|B, 1, H, W)
        self.scale = self.degree.rsqrt()

    def propagate(self, x: Tensor) -> Tensor:
        """Ã x for node values x (B, C, H, W)."""
        return self.scale * self._adjacent(self.scale * x)

    @cached_property
    def normalised_degree(self) -> Tensor:
        """Ã 1, the row sums of the normalised adjacency: (1 or B, 1, H, W)."""
        return self.propagate(torch.ones_like(self.degree))

    def _adjacent(self, x: Tensor) -> Tensor:
        """A x."""
        if self.weights is None:
            C = x.shape[1]
            return F.conv2d(x, self.kernel.to(x.dtype).expand(C, -1, -1, -1), padding=self.reach, groups=C)
        return sum(w[:, None] * shifted for w, shifted in zip(self.weights.unbind(1), self._shifts(x), strict=True))

    def _shifts(self, x: Tensor) -> list[Tensor]:
        """x seen from each cell at each offset, zero outside the grid."""
        (ry, rx), (H, W) = self.reach, x.shape[-2:]
        padded = F.pad(x, (rx, rx, ry, ry))
        return [padded[..., ry + dy : ry + dy + H, rx + dx : rx + dx + W] for dy, dx in self.offsets]

    def _affinities(self, features: Tensor) -> Tensor:
        """Edge weights (B, offsets, H, W), zero where the edge would leave the grid."""
        unit = F.normalize(features.detach(), dim=1)
        similarity = torch.stack([(unit * other).sum(1) for other in self._shifts(unit)], 1)
        inside = torch.stack(self._shifts(torch.ones_like(unit[:, 0])), 1)
        return torch.exp((similarity - 1) / self.TEMPERATURE) * inside


@lru_cache(maxsize=16)
def position_graph(H: int, W: int, radius: float, unit: str, device: torch.device, dtype: torch.dtype) -> GridGraph:
    """The graph of all images of one size, for edges that depend on position only."""
    with torch.no_grad(), torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        graph = GridGraph(H, W, radius, unit, like=torch.empty(0, device=device, dtype=dtype))
        _ = graph.normalised_degree  # computed here, outside autocast
        return graph


class GCNLayer(nn.Module):
    """Ã X W + b on a grid."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, graph: GridGraph, grid: Grid) -> Tensor:
        """(B, T, inputs) → (B, T, outputs), as Ã(XW) + b: there are fewer outputs than inputs."""
        return to_nodes(graph.propagate(to_grid(self.lin(x), grid))) + self.bias


class GNN(nn.Module):
    """Two residual GCN layers and an MLP: node features ‖ (x, y) → class scores."""

    def __init__(self, n_features: int, n_classes: int, width: int = 64) -> None:
        super().__init__()
        inputs = n_features + 2
        self.convs = nn.ModuleList([GCNLayer(inputs, width), GCNLayer(width, width)])
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.res_proj = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width))
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.ELU(), nn.Dropout(0.25), nn.Linear(width, n_classes)
        )

    def forward(self, x: Tensor, graph: GridGraph, grid: Grid) -> Tensor:
        """(B, T, E) → logits (B, T, C)."""
        x = torch.cat([x, node_positions(grid).to(x).expand(len(x), -1, -1)], -1)
        h = F.elu(self.norms[0](self.convs[0](x, graph, grid))) + self.res_proj(x)
        h = F.elu(self.norms[1](self.convs[1](h, graph, grid))) + h
        return self.mlp(h)


class DeepCut(nn.Module):
    """The graph head and its unsupervised loss: a normalised cut, balance, smoothness, and smooth features."""

    def __init__(self, config: SegmentationConfig, n_features: int, n_classes: int = 2) -> None:
        super().__init__()
        self.config = config
        C = n_classes
        self.gnn = GNN(n_features, C)
        first, second = (nn.Conv2d(C, C, 3, padding=1, groups=C) for _ in range(2))
        self.smoothness_conv = nn.Sequential(first, nn.GroupNorm(C, C), nn.ReLU(), second, nn.GroupNorm(C, C))
        self.edge_conv = nn.Sequential(
            nn.Conv2d(n_features, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 1, 1)
        )

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """Features (B, T, E) → logits (B, T, C)."""
        return self.gnn(features, self.graph(features, grid), grid)

    def graph(self, features: Tensor, grid: Grid) -> GridGraph:
        """The graph whose nodes have these features."""
        c = self.config
        if c.affinity == "position":
            return position_graph(*grid, c.graph_radius, c.radius_unit, features.device, features.dtype)
        return GridGraph(*grid, c.graph_radius, c.radius_unit, to_grid(features, grid))

    def loss(self, assignments: Tensor, features: Tensor, grid: Grid) -> Tensor:
        """Scalar. assignments (B, T, C) are probabilities, features (B, T, E) what they came from."""
        S = to_grid(assignments, grid).contiguous()  # (B, C, H, W); with so few channels, channels-last is slow
        graph = self.graph(features, grid)
        smooth = (self.smoothness_conv(S) - S).square().mean((1, 2, 3))
        cut = normalised_cut(S, graph) + orthogonality(assignments) + 0.01 * smooth
        return cut.mean() + 0.09 * self._feature_smoothness(features, grid)

    def _feature_smoothness(self, features: Tensor, grid: Grid) -> Tensor:
        """Squared differences of neighbouring features (B, T, E), weighted down where the learned map sees an edge."""
        f = to_grid(features, grid)
        e = torch.sigmoid(self.edge_conv(f))
        vertical = ((f[:, :, 1:] - f[:, :, :-1]).square() * e[:, :, 1:]).mean()
        horizontal = ((f[..., 1:] - f[..., :-1]).square() * e[..., 1:]).mean()
        return (vertical + horizontal) / (2 * features.shape[-1])


def normalised_cut(S: Tensor, graph: GridGraph) -> Tensor:
    """−tr(SᵀÃS) / tr(Sᵀ diag(Ã1) S) for soft assignments S (B, C, H, W): (B,), −1 at best (MinCutPool, eq. 8)."""
    within = (S * graph.propagate(S)).sum((1, 2, 3))
    volume = (S.square() * graph.normalised_degree).sum((1, 2, 3))
    return -within / (volume + 1e-6)


def orthogonality(assignments: Tensor) -> Tensor:
    """‖SᵀS/‖SᵀS‖ − I/‖I‖‖_F for assignments (B, T, C): (B,), zero for equal hard clusters (MinCutPool, eq. 9)."""
    gram = assignments.mT @ assignments  # (B, C, C)
    identity = torch.eye(gram.shape[-1]).to(gram)
    gram = gram / (gram.norm(dim=(1, 2), keepdim=True) + 1e-6)
    return (gram - identity / (identity.norm() + 1e-6)).norm(dim=(1, 2))


def node_positions(grid: Grid) -> Tensor:
    """(x, y) in [0, 1]² of every node, row by row: (T, 2)."""
    H, W = grid
    y, x = torch.meshgrid(torch.linspace(0, 1, H), torch.linspace(0, 1, W), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def to_grid(x: Tensor, grid: Grid) -> Tensor:
    """Nodes (B, T, C) → map (B, C, H, W); `to_nodes` is its inverse."""
    return x.transpose(1, 2).reshape(len(x), x.shape[-1], *grid)


def to_nodes(x: Tensor) -> Tensor:
    """Map (B, C, H, W) → nodes (B, T, C), row by row."""
    return x.flatten(2).transpose(1, 2)
