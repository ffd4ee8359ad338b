"""One training with Lightning: resumable, quiet, with its history in a table."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from tokencutseg.config import ConfigError
from tokencutseg.files import atomic_write, write_csv
from tokencutseg.models.hardware import Hardware
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.modules import StageModule


class History(Callback):
    """One row per epoch, kept in the checkpoint, written to `history.csv`, and printed where `prints`; and the weights
    of the best epoch, where the module names a `monitor`."""

    def __init__(self, folder: Path, prints: bool) -> None:
        self.folder, self.prints = folder, prints
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self._clock = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best = list(state_dict["rows"]), dict(state_dict["best"])

    def on_validation_end(self, trainer: pl.Trainer, module: StageModule) -> None:
        score = float(trainer.callback_metrics[module.monitor]) if module.monitor else None
        if score is not None and (not self.best or score > self.best["score"]):
            state = {name: value.detach().cpu().clone() for name, value in module.eval_model.state_dict().items()}
            self.best = {"score": score, "epoch": trainer.current_epoch + 1, "state": state}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        epoch, loader, before = trainer.current_epoch + 1, trainer.train_dataloader, self._clock
        self._clock = time.perf_counter()
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row = {"epoch": epoch, "images": epoch * loader.images_per_epoch, "steps": epoch * len(loader)}
        self.rows.append(row | {"seconds": round(self._clock - before, 3), "learning_rate": rate} | metrics)
        if trainer.is_global_zero:
            write_csv(pd.DataFrame(self.rows), self.folder / "history.csv")
            if self.prints:
                values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                print(f"{self.folder.name} epoch {epoch}/{trainer.max_epochs}  {values}", flush=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: an interruption leaves the last one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(path) as file:
            super().save_checkpoint(checkpoint, file, storage_options)


def fit(
    module: StageModule, train: TrainLoader, validation: EvalLoader, epochs: int, folder: Path, hardware: Hardware
) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Train `module` for `epochs`, resuming from `folder`/last.ckpt where that exists.

    Where several processes train together, all of them call this and a batch is divided among them. Returns the best
    epoch's weights of `module.eval_model` (None where the module names no `monitor`; then the last ones count) and
    facts about the training: epochs, optimizer steps, images seen, best epoch. Raises ConfigError where a batch is too
    small for the processes, and KeyboardInterrupt when interrupted; a later call resumes after the last whole epoch.
    """
    processes = hardware.devices * hardware.num_nodes
    if (smallest := train.images_per_epoch % train.batch_size or train.batch_size) < processes:
        raise ConfigError(
            f"{folder.name}: an epoch of {train.images_per_epoch} images in batches of {train.batch_size} has one of "
            f"{smallest}, too few for {processes} processes; change batch_size or images_per_epoch of that stage"
        )
    device, precision = hardware.found()
    on_gpu = device.type == "cuda"
    if on_gpu:
        module.to(memory_format=torch.channels_last)  # faster convolutions on GPUs, not on CPUs
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # no greetings
    history, bar = History(folder, hardware.progress_bar), hardware.progress_bar and sys.stdout.isatty()
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else device.type,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy="ddp_find_unused_parameters_true" if processes > 1 else "auto",  # some steps leave parameters out
        precision=precision,
        sync_batchnorm=on_gpu and processes > 1,
        max_epochs=epochs,
        use_distributed_sampler=False,  # the loader divides batches itself
        logger=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[history, last, *([TQDMProgressBar()] if bar else [])],  # an epoch's row goes into its checkpoint
        plugins=[AtomicCheckpointIO()],
    )
    resumed = folder / "last.ckpt" if _readable(folder / "last.ckpt", module, hardware) else None
    torch.manual_seed(module.seed)
    with warnings.catch_warnings():
        for expected in ("Checkpoint directory .* exists", "Found .* in eval mode", ".*LeafSpec"):
            warnings.filterwarnings("ignore", message=expected)
        try:
            trainer.fit(module, train, validation, ckpt_path=resumed, weights_only=True)
        except SystemExit as leave:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from leave
    facts = {
        "epochs": epochs,
        "steps": epochs * len(train),
        "images_seen": epochs * train.images_per_epoch,
        "training_images": len(train.set),
        "device": trainer.strategy.root_device.type,
        "precision": precision,
        "processes": processes,
        "seconds": sum(row["seconds"] for row in history.rows),
    }
    if not history.best:
        return None, facts
    return history.best["state"], facts | {"best_epoch": history.best["epoch"], "best_score": history.best["score"]}


def _readable(checkpoint: Path, module: StageModule, hardware: Hardware) -> bool:
    """Whether there is a checkpoint to resume from; says so where there is one that is broken, or of other networks (as
    where the perceptual loss's weights are there only now)."""
    if not checkpoint.is_file():
        return False
    try:
        state = torch.load(checkpoint, "cpu", weights_only=True)["state_dict"]
        problem = "" if state.keys() == module.state_dict().keys() else "is of other networks"
    except Exception as error:  # of a dozen types, by where the file was cut off
        problem = f"cannot be read ({type(error).__name__})"
    if problem and hardware.leading:
        print(f"{checkpoint} {problem}: this training starts anew", flush=True)
    return not problem
