"""One batch, several processes: what a loss, a codebook or a normalisation needs to know of the other parts.

Every process draws and augments the same batch and computes on its part of it (`own_rows`). Inside `shared_batch` the
means and sums below run over the whole batch, wherever it lies, so that the losses, and with them gradients, codebook
and running statistics, are those of a single process. Outside, and with one process, they are the plain ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_shared = False


@contextmanager
def shared_batch() -> Iterator[None]:
    """Where every process computes on its part of the same batch. Every process must go through the same calls."""
    global _shared
    before, _shared = _shared, dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    try:
        yield
    finally:
        _shared = before


def batch_sum(x: Tensor) -> Tensor:
    """The sum of `x` over the processes, with gradients: what `x` is to the whole batch if it is a sum over a part."""
    return _AllSum.apply(x) if _shared else x


def batch_mean(x: Tensor) -> Tensor:
    """The mean of all elements of the whole batch; a scalar."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision can neither count nor sum so far
    if not _shared:
        return x.mean()
    return batch_sum(x.sum()) / batch_sum(x.new_tensor(float(x.numel())))


def part() -> int:
    """The number of this process's part of the batch, from 0."""
    return dist.get_rank() if _shared else 0


def own_rows(x: Tensor) -> Tensor:
    """This process's rows of a whole batch (N, …)."""
    return x.tensor_split(dist.get_world_size())[dist.get_rank()] if _shared else x


def batch_rows(x: Tensor) -> tuple[int, int]:
    """How many rows (N, …) lie with the processes before this one, and how many there are in all."""
    if not _shared:
        return 0, len(x)
    counts = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(x), device=x.device))
    lengths = [int(count) for count in counts]
    return sum(lengths[: dist.get_rank()]), sum(lengths)


@torch.no_grad()
def all_rows(x: Tensor) -> Tensor:
    """The whole batch's rows (N, D), in order."""
    return take_rows(x, torch.arange(batch_rows(x)[1], device=x.device))


@torch.no_grad()
def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """The rows of the whole batch's (N, D) at `indices` (K,), which the first process decides: (K, D) everywhere."""
    if not _shared:
        return x[indices]
    start, _ = batch_rows(x)
    dist.broadcast(indices, 0)
    own = (indices >= start) & (indices < start + len(x))
    return batch_sum(torch.where(own[:, None], x[(indices - start).clamp(0, len(x) - 1)], 0))


class _AllSum(torch.autograd.Function):
    """Every process has the same loss, a function of the sum: the gradient is the sum of what each says of it.

    That is the number of processes times the single process's gradient, and DistributedDataParallel takes the mean.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class Dropout(nn.Dropout):
    """Dropout that draws for the whole batch and uses its own part: the same as in a single process."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_shared and self.training and self.p):
            return super().forward(x)
        start, total = batch_rows(x)
        return x * F.dropout(x.new_ones(total, *x.shape[1:]), self.p)[start : start + len(x)]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the whole batch, on CPUs too (torch's SyncBatchNorm needs GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_shared and self.training):
            return super().forward(x)
        dims, dtype = (0, 2, 3), x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        n, total = batch_sum(torch.cat([x.new_tensor([x[:, 0].numel()]), x.sum(dims)])).split([1, x.shape[1]])
        mean = total / n
        centred = x - mean[:, None, None]
        variance = batch_sum(centred.square().sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """`module`, with every plain `nn.BatchNorm2d` inside replaced by the shared one that has its parameters."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_batch_norm(child)
    return module
