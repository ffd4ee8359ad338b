"""Batches of images in memory; an epoch's order depends on the seed and the epoch's number alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor

from tokencutseg.data.image_set import ImageSet


class TrainLoader:
    """Shuffled batches of one epoch: dicts of `images` float32 (B, 3, S, S) in [0, 1], `masks` int64 (B, S, S) if any.

    An epoch is `images_per_epoch` images (None: each once), the next ones of an endless sequence of permutations. The
    sequence is a function of the seed, so a training that resumes at epoch e continues as if uninterrupted. Where
    several processes train together, each gets its share of every batch.
    """

    def __init__(self, images: ImageSet, batch_size: int, images_per_epoch: int | None, seed: int) -> None:
        self.set, self.batch_size, self.seed = images, batch_size, seed
        self.images_per_epoch = images_per_epoch or len(images)
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.images_per_epoch // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        parts = self.order(self.epoch).split(self.batch_size)
        if dist.is_available() and dist.is_initialized():
            parts = [part.tensor_split(dist.get_world_size())[dist.get_rank()] for part in parts]
        yield from _load_ahead(self.set, parts)

    def order(self, epoch: int) -> Tensor:
        """The indices of one epoch (images_per_epoch,) int64."""
        n, start = len(self.set), epoch * self.images_per_epoch
        stop = start + self.images_per_epoch
        rounds = [
            torch.randperm(n, generator=torch.Generator().manual_seed(combine_seeds(self.seed, r)))
            for r in range(start // n, -(-stop // n))
        ]
        return torch.cat(rounds)[start % n : start % n + self.images_per_epoch]


class EvalLoader:
    """All images of a set in batches, in their order, in every process."""

    def __init__(self, images: ImageSet, batch_size: int) -> None:
        self.set, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return -(-len(self.set) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from _load_ahead(self.set, torch.arange(len(self.set)).split(self.batch_size))


def _load_ahead(images: ImageSet, parts: list[Tensor] | tuple[Tensor, ...]) -> Iterator[dict[str, Tensor]]:
    """The batches of `parts`, each loaded while the one before it is computed on."""
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(load_batch, images, parts[0])
        for following in parts[1:]:
            batch, coming = coming.result(), loader.submit(load_batch, images, following)
            yield batch
        yield coming.result()


def load_batch(images: ImageSet, indices: Tensor) -> dict[str, Tensor]:
    """The chosen images as floats in [0, 1], and their masks as classes."""
    batch = {"images": images.images[indices].float() / 255}
    if images.masks is not None:
        batch["masks"] = images.masks[indices].long()
    return batch


def combine_seeds(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    value = 0
    for number in numbers:
        value = (value * 6364136223846793005 + number * 2 + 1) % 2**63
    return value
