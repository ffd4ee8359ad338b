"""Time and memory of each part of the method against its plain formulation.

    .venv/bin/python benchmarks/bench.py                       # two CPU cores: three to ten minutes
    .venv/bin/python benchmarks/bench.py --device cuda --out bench-gpu.csv

Sizes are the paper's: preset `full`, recipe `released`, 224 px, 3136 tokens, width 256, 12 layers, 1024 codes, batch 1.
Both formulations share their weights and take turns within one process, so that a ratio depends little on what else the
machine does. The plain ones are in tests/oracles.py. docs/benchmark.md says what was found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import oracles

from tokencutseg.config import Config, configure
from tokencutseg.data import synthetic
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.transforms import Augmentation
from tokencutseg.evaluation.cost import clock, peak_memory
from tokencutseg.evaluation.per_image import score
from tokencutseg.models.decoder import upsample
from tokencutseg.models.deepcut import to_grid
from tokencutseg.models.losses import masked_token_loss, segmentation_loss
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import EMAQuantizer
from tokencutseg.training.batches import TrainLoader

Call = Callable[[], Any]


class Comparison(NamedTuple):
    part: str
    against: str
    ours: Call
    plain: Call


def comparisons(config: Config, device: str) -> Iterator[Comparison]:
    """Each is built when it is its turn, so that only one is in memory."""
    for make in (graph, transformer, quantizer, segmenter):
        yield from make(config, device)
    if device == "cpu":
        yield from data_and_scores(config)


def graph(config: Config, device: str) -> Iterator[Comparison]:
    """The graph module with its loss, on random features."""
    head, side = build(config, device).head.eval(), config.grid_size
    x = random(1, side**2, config.masked_gpt.d_model).to(device).requires_grad_()

    def ours() -> Tensor:
        S = head(x, (side, side)).softmax(-1)
        return head.loss(S, x, (side, side)) + S.sum()

    def dense() -> Tensor:
        S, loss = oracles.deepcut(head, x, (side, side))
        return loss + S.sum()

    against = "dense T×T adjacency"
    yield Comparison("graph module, forward", against, without_gradients(ours), without_gradients(dense))
    yield Comparison("graph module, forward + backward", against, backward(head, ours), backward(head, dense))


def transformer(config: Config, device: str) -> Iterator[Comparison]:
    """The transformer alone, then a training step together with the graph module."""
    model, side, S = build(config, device).eval(), config.grid_size, config.data.image_size
    gpt, grid = model.masked_gpt, (side, side)
    tokens = (random(1, side**2) * config.vqgan.codebook_size).long().to(device)
    plain = without_gradients(lambda: oracles.transformer(gpt, tokens))
    yield Comparison("transformer, forward", "attention as matrices", without_gradients(lambda: gpt(tokens)), plain)

    model.train()
    mask, target = random(1, side**2).to(device) < 0.15, (random(1, S, S) < 0.5).long().to(device)

    def loss(features: Tensor, assignments: Tensor, cut: Tensor) -> Tensor:
        p = upsample(to_grid(assignments, grid), (S, S))
        supervised = sum(segmentation_loss(p, p, target, config.segmentation).values())
        return supervised + masked_token_loss(gpt.lm_head(features), tokens, mask) + 0.2 * cut

    def ours() -> Tensor:
        features = gpt(tokens, mask=mask)
        assignments = model.head(features, grid).softmax(-1)
        return loss(features, assignments, model.head.loss(assignments, features, grid))

    def dense() -> Tensor:
        features = oracles.transformer(gpt, tokens.masked_fill(mask, gpt.mask_id))
        return loss(features, *oracles.deepcut(model.head, features, grid))

    steps = training_step(model, ours), training_step(model, dense)
    yield Comparison("transformer + graph, training step", "attention as matrices, dense adjacency", *steps)


def quantizer(config: Config, device: str) -> Iterator[Comparison]:
    """A training step of the codebook on the latents of four images."""
    K, D, side = config.vqgan.codebook_size, config.vqgan.code_dim, config.grid_size
    z = random(4, D, side, side).to(device)
    ours = EMAQuantizer(config.vqgan).to(device).train()
    yield Comparison("quantizer, training step", "one-hot matrices", lambda: ours(z), lambda: oracles.quantize(ours, z))
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:  # a development dependency
        return
    settings = dict(decay=0.99, commitment_weight=0.25, rotation_trick=False, threshold_ema_dead_code=0)
    library = VectorQuantize(dim=D, codebook_size=K, **settings).to(device).train()
    flat = z.flatten(2).transpose(1, 2).contiguous()
    yield Comparison("quantizer, training step", "vector-quantize-pytorch", lambda: ours(z), lambda: library(flat))


def segmenter(config: Config, device: str) -> Iterator[Comparison]:
    """Image to mask."""
    model, S = build(config, device).eval(), config.data.image_size
    images = torch.rand(1, 3, S, S, generator=torch.Generator().manual_seed(0)).to(device)
    calls = without_gradients(lambda: model(images).mask), without_gradients(lambda: oracles.predict(model, images))
    yield Comparison("image → mask", "attention as matrices, dense adjacency", *calls)


def data_and_scores(config: Config) -> Iterator[Comparison]:
    """Augmented batches from pixels in memory, and scores from masks."""
    images = lesions(64, config.data.image_size)
    augment, generator = Augmentation("released"), torch.Generator().manual_seed(0)

    def epoch(batch_size: int) -> None:
        for batch in TrainLoader(images, batch_size, None, 0):
            augment(batch["images"], batch["masks"], generator)

    yield Comparison("loading with augmentation", "image by image", lambda: epoch(16), lambda: epoch(1))
    target = np.repeat(synthetic.generate("site_a", 64, config.data.image_size, 0)[1], 4, 0)
    prediction, ids = target ^ (np.random.default_rng(0).random(target.shape) < 0.05), list(map(str, range(256)))
    ours = lambda: score(prediction, target, ids, boundary=False)["iou"].mean()  # noqa: E731
    yield Comparison("scoring", "torchmetrics, image by image", ours, lambda: oracles.mean_iou(prediction, target))


def measure(comparison: Comparison, device: str, budget: float) -> dict[str, Any]:
    """Median seconds and peak bytes of both. One round warms up; then they take turns, three rounds at least."""
    calls = comparison.ours, comparison.plain
    seconds: tuple[list[float], list[float]] = ([], [])
    for call in calls:
        call()
    started = time.perf_counter()
    while len(seconds[0]) < (3 if budget else 1) or (len(seconds[0]) < 25 and time.perf_counter() - started < budget):
        for own, call in zip(seconds, calls, strict=True):
            own.append(timeit.timeit(call, timer=clock, number=1))
    (ours, plain), (low, high) = map(statistics.median, seconds), (peak_bytes(call, device) for call in calls)
    row = {"part": comparison.part, "against": comparison.against, "seconds": ours, "plain_seconds": plain}
    return row | {"faster": plain / ours, "bytes": low, "plain_bytes": high, "smaller": high / low if low else None}


def peak_bytes(call: Call, device: str) -> int:
    """Bytes at the peak of a call: the allocator's count on a GPU, those of live tensors on a CPU."""
    if device == "cpu":
        return peak_memory(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


# helpers ------------------------------------------------------------------------------------------------------------


def build(config: Config, device: str) -> TokenCutSeg:
    torch.manual_seed(0)
    return TokenCutSeg(config).to(device)


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def lesions(count: int, size: int) -> ImageSet:
    """Synthetic lesions with their masks, in memory."""
    pixels, masks = map(torch.from_numpy, synthetic.generate("site_a", count, size, 0))
    return ImageSet("bench", "train", list(map(str, range(count))), pixels, masks, None, [(size, size)] * count)


def without_gradients(call: Call) -> Call:
    return torch.no_grad()(call)


def backward(module: nn.Module, loss: Call) -> Call:
    def call() -> None:
        module.zero_grad(set_to_none=True)
        loss().backward()

    return call


def training_step(module: nn.Module, loss: Call) -> Call:
    """Gradients and an optimizer step; the tokenizer is frozen."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-6)
    gradients = backward(module, loss)
    return lambda: (gradients(), optimizer.step())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=10, help="time for each comparison (default: 10)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other sizes")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; use --device cpu")
    overrides = dict(setting.split("=", 1) for setting in chosen.set)
    rows = []
    for comparison in comparisons(configure("full", "released", overrides=overrides), chosen.device):
        rows.append(row := measure(comparison, chosen.device, chosen.seconds))
        print(f"{row['part']:38s} {row['faster']:8.3g}× faster than {row['against']}", flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    if chosen.out:
        table.to_csv(chosen.out, index=False)


if __name__ == "__main__":
    main()
