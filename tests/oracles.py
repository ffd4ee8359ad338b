"""Plain formulations of what `tokencutseg.models` computes, with every T×T and one-hot matrix written out.

They take the package's modules with their weights. The tests hold both equal; `benchmarks/bench.py` times both. The
dense graph is built anew for each image and normalised by two dense matrix products, as the original implementation
does, and attention is the matrix of its weights.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokencutseg.models.decoder import upsample
from tokencutseg.models.deepcut import DeepCut, node_positions, to_grid
from tokencutseg.models.masked_transformer import Block, MaskedTransformer
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import EMAQuantizer, Quantized


def dense_graph(grid: tuple[int, int], radius: float, like: Tensor) -> Tensor:
    """Ã = D^-½ A D^-½ of the radius graph on [0, 1]², self-loops included: (T, T)."""
    positions = node_positions(grid).to(like)
    A = (torch.cdist(positions, positions) <= radius * (1 + 1e-6)).to(like.dtype)
    D = torch.diag(A.sum(1).rsqrt())
    return D @ A @ D


def deepcut(head: DeepCut, features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Features (B, T, E) → assignments (B, T, C) and the scalar graph loss, image by image."""
    gnn, assignments, losses = head.gnn, [], []
    for image in features:  # (T, E)
        A = dense_graph(grid, head.config.graph_radius, image)
        x = torch.cat([image, node_positions(grid).to(image)], -1)
        h = F.elu(gnn.norms[0](A @ gnn.convs[0].lin(x) + gnn.convs[0].bias)) + gnn.res_proj(x)
        h = F.elu(gnn.norms[1](A @ gnn.convs[1].lin(h) + gnn.convs[1].bias)) + h
        S = gnn.mlp(h).softmax(-1)  # (T, C)
        volume = torch.trace(S.T @ torch.diag(A.sum(1)) @ S)
        cut = -torch.trace(S.T @ A @ S) / (volume + 1e-6)
        gram, eye = (part / (torch.linalg.norm(part) + 1e-6) for part in (S.T @ S, torch.eye(S.shape[1]).to(S)))
        image_of_S = to_grid(S[None], grid)
        smooth = F.mse_loss(head.smoothness_conv(image_of_S), image_of_S)
        losses.append(cut + torch.linalg.norm(gram - eye) + 0.01 * smooth)
        assignments.append(S)
    loss = torch.stack(losses).mean() + 0.09 * feature_smoothness(head, to_grid(features, grid))
    return torch.stack(assignments), loss


def feature_smoothness(head: DeepCut, f: Tensor) -> Tensor:
    """Squared differences of neighbouring features (B, E, H, W), weighted by the learned edge map."""
    e = torch.sigmoid(head.edge_conv(f))
    vertical = ((f[:, :, 1:] - f[:, :, :-1]).square() * e[:, :, 1:]).mean()
    horizontal = ((f[..., 1:] - f[..., :-1]).square() * e[..., 1:]).mean()
    return (vertical + horizontal) / (2 * f.shape[1])


def block(module: Block, x: Tensor) -> Tensor:
    """One post-norm layer (B, T, C) → (B, T, C), with the attention weights as matrices."""
    xt = x.transpose(0, 1)
    dropout = module.dropout if module.training else 0.0
    projections = (module.qkv.weight, module.qkv.bias, None, None, False, dropout, module.out.weight, module.out.bias)
    attended, _ = F.multi_head_attention_forward(
        xt, xt, xt, x.shape[-1], module.n_head, *projections, training=module.training, need_weights=True
    )
    x = module.norm1(x + module.drop(attended.transpose(0, 1)))
    return module.norm2(x + module.drop(module.fc2(F.gelu(module.fc1(x)))))


def transformer(gpt: MaskedTransformer, tokens: Tensor) -> Tensor:
    """Tokens (B, T) → features (B, T, C)."""
    x = gpt.embed(tokens)
    for module in gpt.blocks:
        x = block(module, x)
    return x


def predict(model: TokenCutSeg, images: Tensor) -> Tensor:
    """RGB in [0, 1] (B, 3, S, S) → mask (B, S, S)."""
    tokens, _ = model.encode_to_tokens(images)
    grid = tuple(tokens.shape[1:])
    assignments, _ = deepcut(model.head, transformer(model.masked_gpt, tokens.flatten(1)), grid)
    return upsample(to_grid(assignments, grid), images.shape[-2:]).argmax(1)


def quantize(quantizer: EMAQuantizer, z: Tensor) -> Quantized:
    """A training step of the codebook with all distances and a one-hot matrix written out."""
    B, D, H, W = z.shape
    flat, codes = z.permute(0, 2, 3, 1).reshape(-1, D), quantizer.embedding.weight
    distances = flat.square().sum(1, keepdim=True) - 2 * flat @ codes.T + codes.square().sum(1)  # (BHW, K)
    tokens = distances.argmin(1)
    onehot = F.one_hot(tokens, quantizer.codebook_size).to(z.dtype)
    vectors = (onehot @ codes).view(B, H, W, D).permute(0, 3, 1, 2)
    if quantizer.training:
        with torch.no_grad():
            quantizer.cluster_size.lerp_(onehot.sum(0), 1 - quantizer.DECAY)
            quantizer.embedding_avg.lerp_(onehot.T @ flat, 1 - quantizer.DECAY)
            n = quantizer.cluster_size.sum()
            smoothed = (quantizer.cluster_size + quantizer.EPS) / (n + quantizer.codebook_size * quantizer.EPS) * n
            codes.copy_(quantizer.embedding_avg / smoothed[:, None])
    loss = quantizer.config.commitment * F.mse_loss(vectors.detach(), z)
    return Quantized(z + (vectors - z).detach(), tokens.view(B, H, W), loss)


def mean_iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean lesion IoU of masks (N, S, S), image by image through torchmetrics."""
    from torchmetrics.classification import BinaryJaccardIndex

    metric, scores = BinaryJaccardIndex(zero_division=1.0), []
    for p, t in zip(torch.from_numpy(prediction), torch.from_numpy(target), strict=True):
        scores.append(metric(p, t))
        metric.reset()
    return float(torch.stack(scores).mean())
