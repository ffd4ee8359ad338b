"""One training with Lightning: resumable, quiet, with its history in a table."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor

from tokencutseg.training.batches import Batches, InOrder
from tokencutseg.training.modules import StageModule
from tokencutseg.training.progress import report_epoch


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely a training computes; it is not part of a run's identity."""

    accelerator: str = "auto"
    """auto, cpu or gpu."""
    precision: str = "32-true"
    """Lightning's name: 32-true, 16-mixed or bf16-mixed."""
    progress_bar: bool = False
    """A bar per epoch on the terminal, and a line when it is over."""


class History(Callback):
    """One row per epoch, kept in the checkpoint and written to `history.csv` after each epoch.

    Where the module names a `monitor`, the weights of its best epoch are remembered too.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder, self.stage = folder, stage
        self.rows: list[dict[str, float]] = []
        self._clock = time.perf_counter()
        self.best: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best = list(state_dict["rows"]), dict(state_dict["best"])

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        monitor = getattr(module, "monitor", None)
        if monitor is None:
            return
        score = float(trainer.callback_metrics[monitor])
        if not self.best or score > self.best["score"]:
            state = {name: value.detach().cpu().clone() for name, value in module.scored.state_dict().items()}
            self.best = {"score": score, "epoch": trainer.current_epoch + 1, "state": state}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        epoch = trainer.current_epoch + 1
        self.rows.append({"epoch": epoch, "images": epoch * trainer.train_dataloader.images_per_epoch,
                          "steps": epoch * len(trainer.train_dataloader),
                          "seconds": round(seconds, 3), "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                          **metrics})
        write_csv(pd.DataFrame(self.rows), self.folder / "history.csv")
        report_epoch(self.stage, self.folder.name, epoch, trainer.max_epochs, metrics)


class EpochLines(Callback):
    """One line per epoch on standard output, for somebody who watches a training or reads its log."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = "  ".join(f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        print(f"{self.stage} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}", flush=True)


def fit(module: StageModule, train: Batches, validation: InOrder, epochs: int, folder: Path, stage: str,
        hardware: Hardware = Hardware()) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Train `module` for `epochs`, going on from `folder`/last.ckpt when that is there.

    Returns the best epoch's weights of `module.scored` (None where the module names no `monitor`; then the last ones
    count) and what there is to say of the training: epochs, optimizer steps, images seen, best epoch. Raises
    KeyboardInterrupt when it is interrupted; a later call goes on after the last whole epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module.steps_per_epoch = len(train)
    history = History(folder, stage)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its greetings; warnings come through `warnings`
    # the history first: its rows of an epoch are then in that epoch's checkpoint
    callbacks: list[Callback] = [history, ModelCheckpoint(folder, filename="last", save_top_k=1, every_n_epochs=1,
                                                          enable_version_counter=False, save_on_train_epoch_end=True)]
    if hardware.progress_bar:
        callbacks.append(EpochLines(stage))
    bar = hardware.progress_bar and sys.stdout.isatty()
    if bar:
        callbacks.append(TQDMProgressBar())
    trainer = pl.Trainer(
        accelerator=hardware.accelerator, devices=1, precision=hardware.precision, max_epochs=epochs,
        logger=False, enable_progress_bar=bar, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, callbacks=callbacks,
    )
    last = folder / "last.ckpt"
    torch.manual_seed(module.seed)
    with warnings.catch_warnings():
        for expected in ("Checkpoint directory .* exists", "Found .* in eval mode", ".*LeafSpec"):
            warnings.filterwarnings("ignore", message=expected)
        try:
            trainer.fit(module, train, validation, ckpt_path=last if last.is_file() else None, weights_only=True)
        except SystemExit as leave:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from leave
    facts = {"epochs": epochs, "steps": epochs * len(train), "images_seen": epochs * train.images_per_epoch,
             "training_images": len(train.set), "device": trainer.strategy.root_device.type,
             "precision": hardware.precision, "seconds": sum(row["seconds"] for row in history.rows)}
    if not history.best:
        return None, facts
    return history.best["state"], facts | {"best_epoch": history.best["epoch"], "best_score": history.best["score"]}


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table so that nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.partial")
    table.to_csv(temporary, index=False)
    temporary.replace(path)
