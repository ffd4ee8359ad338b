"""What Lightning adds to a training step: its loop, progress and logging against a bare loop of the same steps."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from tokencutseg.bench.lines import synthetic_images
from tokencutseg.bench.measure import Timing

from tokencutseg.config import configure
from tokencutseg.evaluation.cost import synchronize
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.fit import Hardware, fit
from tokencutseg.training.modules import TokenCutSegModule


def training_loop(device: str, epochs: int, steps: int) -> dict[str, Any]:
    """The row of a step of stage 3 at preset quick inside Lightning, against the same steps in a bare loop."""
    config = configure("quick").override({"segmentation.images_per_epoch": steps * 8, "segmentation.batch_size": 8})
    images = synthetic_images(64, config.data.image_size)
    batches = TrainLoader(images, 8, steps * 8, 0)
    inside, bare = [], []
    for _ in range(epochs):
        torch.manual_seed(0)
        module = TokenCutSegModule(config, TokenCutSeg(config))
        clock = StepClock()
        with tempfile.TemporaryDirectory() as folder:
            fit(
                module,
                batches,
                EvalLoader(images.subset(range(8)), 8),
                1,
                Path(folder),
                "segmentation",
                Hardware("gpu" if device == "cuda" else "cpu", "32-true"),
                [clock],
            )
        inside += clock.seconds
        bare += bare_steps(TokenCutSegModule(config, TokenCutSeg(config)).to(device), batches, device)
    ours, plain = (Timing(tuple(seconds), 0) for seconds in (inside, bare))
    return {
        "line": "training loop of stage 3, preset quick",
        "against": "the same steps without Lightning",
        "seconds": ours.median,
        "spread": ours.spread,
        "rounds": len(inside),
        "peak_bytes": None,
        "plain_seconds": plain.median,
        "plain_spread": plain.spread,
        "plain_peak_bytes": None,
        "ratio": plain.median / ours.median,
        "memory_ratio": None,
        "images_per_second": 8 / ours.median,
        "share_of_matmul_rate": None,
    }


class StepClock(Callback):
    """Seconds from the end of one training batch to the end of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._before: float | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        synchronize()
        now = time.perf_counter()
        if self._before is not None:
            self.seconds.append(now - self._before)
        self._before = now


def bare_steps(module: TokenCutSegModule, batches: TrainLoader, device: str) -> list[float]:
    """Seconds of each step of an epoch: load, augment, loss, gradients, optimizer, mean of the weights."""
    module.train()
    optimizer = torch.optim.AdamW(module.model.parameters(), 1e-3, fused=True)
    seconds, before = [], None
    for index, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(index)
        batch = {key: value.to(device) for key, value in batch.items()}
        images, masks = module.augment(batch["images"], batch["masks"], generator)
        loss = sum(module.losses(images, masks, generator).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.averaged.update_parameters(module.model)
        synchronize()
        now = time.perf_counter()
        if before is not None:
            seconds.append(now - before)
        before = now
    return seconds
