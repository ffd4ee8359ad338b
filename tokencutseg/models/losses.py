"""The training losses of all three stages, each with the released variant and the corrected one side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokencutseg.config import SegmentationConfig
from tokencutseg.models.decoder import upsample
from tokencutseg.models.perceptual import load_lpips


def reconstruction_loss(x: Tensor, reconstruction: Tensor, clamped: bool, edge_weighted: bool) -> Tensor:
    """Mean absolute error of network values (B, 3, S, S); the released code clamps it at 1 and weights flat areas."""
    error = (x - reconstruction).abs()
    if clamped:
        error = error.clamp(0, 1)
    if edge_weighted:
        error = error * (1 + flatness(x))
    return _mean(error)


def flatness(x: Tensor) -> Tensor:
    """exp(−5·gradient) in [0.2, 1]: (B, 1, S, S), large where the input (B, 3, S, S) is flat (released)."""
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 4
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 4
    gradient = (dx.clamp(-1, 1).abs() + dy.clamp(-1, 1).abs()).mean(1, keepdim=True)
    return torch.exp(-5 * gradient.clamp(0, 1)).clamp(0.2, 1)


class PerceptualLoss(nn.Module):
    """How different two images look to a network that classifies ImageNet. The weights never train.

    lpips: distance of normalised features (Zhang et al. 2018). vgg_l1 (released): L1 between the activations of five
    slices, each clamped at 10, and their sum again. `perceptual.load_lpips` says which network it is.
    """

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind, self.size, self.lpips = kind, size, load_lpips()

    def forward(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """Scalar distance of two batches of values in [−1, 1] (clamped there), (B, 3, S, S)."""
        a, b = (upsample(v.clamp(-1, 1), (self.size, self.size)) for v in (x, reconstruction))
        if self.kind == "lpips":
            return _mean(self.lpips(a, b))
        pairs = zip(self.lpips.features(a), self.lpips.features(b), strict=True)
        distances = (_mean((p.float() - q.float()).abs()) for p, q in pairs)
        return sum(distance.clamp(max=10) for distance in distances).clamp(0, 10)


def generator_loss(fake: Tensor, clamped: bool) -> Tensor:
    """−mean D(x̂); the released code clamps it at ±1."""
    loss = -_mean(fake)
    return loss.clamp(-1, 1) if clamped else loss


def discriminator_loss(real: Tensor, fake: Tensor, clamped: bool, steps_since_start: int = 0) -> Tensor:
    """Logits on real and reconstructed images → scalar.

    Corrected: the hinge loss. Released: softplus, clamped at ±1 and ramped up from 1 %. The un-clamped value starts
    near 2·log 2 ≈ 1.4 or above, so that the clamp leaves no gradient at the start.
    """
    if not clamped:
        return 0.5 * (_mean(F.relu(1 - real)) + _mean(F.relu(1 + fake)))
    loss = (_mean(F.softplus(-real)) + _mean(F.softplus(fake))).clamp(-1, 1)
    return loss * min(1.0, 0.01 * (1 + steps_since_start // 1000))


def dice_loss(probabilities: Tensor, target: Tensor, class_weighted: bool) -> Tensor:
    """Mean over images and classes of 1 − Dice, for probabilities (B, C, S, S) and target (B, S, S) int64.

    class_weighted (released): each class times its inverse frequency in the batch, clamped to [0.5, 2].
    """
    C = probabilities.shape[1]
    onehot = F.one_hot(target, C).movedim(-1, 1).to(probabilities.dtype)  # (B, C, S, S)
    overlap = (probabilities * onehot).sum((2, 3))
    loss = 1 - (2 * overlap + 1e-8) / (probabilities.sum((2, 3)) + onehot.sum((2, 3)) + 1e-8)  # (B, C)
    if class_weighted:
        counts = onehot.sum((0, 2, 3))
        loss = loss * (counts.sum() / (counts * C)).clamp(0.5, 2)
    return loss.mean()


def segmentation_loss(
    scores: Tensor, probabilities: Tensor, target: Tensor, config: SegmentationConfig
) -> dict[str, Tensor]:
    """The weighted terms `cross_entropy` and `dice`, for scores (B, C, S, S) and classes (B, S, S) int64.

    The scores are logits, or (released) the probabilities, to which cross-entropy applies softmax once more.
    """
    cross_entropy = config.cross_entropy_weight * F.cross_entropy(scores, target)
    return {"cross_entropy": cross_entropy, "dice": dice_loss(probabilities, target, config.class_weighted_dice)}


def masked_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy on the masked tokens: logits (B, T, V), tokens (B, T), mask (B, T) True where masked."""
    return F.cross_entropy(logits[mask], tokens[mask])


def _mean(x: Tensor) -> Tensor:
    """The mean in single precision at least, since half precision cannot sum many values."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).mean()
