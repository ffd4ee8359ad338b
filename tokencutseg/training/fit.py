"""One training with Lightning: resumable, quiet, with its history in a table."""

from __future__ import annotations

import logging
import os
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
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from tokencutseg.config import ConfigError
from tokencutseg.files import atomic_write, write_csv
from tokencutseg.models.masked_transformer import Block
from tokencutseg.models.vqgan import Decoder, Discriminator, Encoder
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.modules import StageModule


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely a training computes; it is not part of a run's identity."""

    accelerator: str = "auto"  # auto, cpu or gpu
    precision: str = "auto"  # Lightning's name: 32-true, 16-mixed or bf16-mixed
    devices: int = 1  # processes on each machine, one for each GPU (or, on CPUs, any number)
    num_nodes: int = 1  # machines
    strategy: str = "auto"  # Lightning's name
    compile: bool = False  # torch.compile, where it works
    progress_bar: bool = False  # print a line per epoch, and on a terminal show a bar within it

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.num_nodes

    @property
    def leading(self) -> bool:
        """Whether this process is the only one or the first, which writes and prints."""
        ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # set by launchers
        return self.processes == 1 or all(os.environ.get(name, "0") == "0" for name in ranks)

    @property
    def on_gpu(self) -> bool:
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def resolved_precision(self) -> str:
        """Lightning's name of the precision, where auto is bf16-mixed on a GPU that has it and 32-true elsewhere."""
        if self.precision != "auto":
            return self.precision
        has_bf16 = self.on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if has_bf16 else "32-true"

    @property
    def resolved_strategy(self) -> str:
        """Lightning's name of the strategy, where auto is DDP for several processes."""
        ddp = self.processes > 1 and self.strategy in ("auto", "ddp")
        return "ddp_find_unused_parameters_true" if ddp else self.strategy  # some steps leave parameters out


class History(Callback):
    """One row per epoch, kept in the checkpoint, written to `history.csv`, and printed where `prints`.

    Where the module names a `monitor`, the weights of its best epoch are kept too.
    """

    def __init__(self, folder: Path, prints: bool) -> None:
        self.folder, self.prints = folder, prints
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self._clock = time.perf_counter()

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
            state = {name: value.detach().cpu().clone() for name, value in module.eval_model.state_dict().items()}
            self.best = {"score": score, "epoch": trainer.current_epoch + 1, "state": state}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        epoch, loader, now = trainer.current_epoch + 1, trainer.train_dataloader, time.perf_counter()
        row = {
            "epoch": epoch,
            "images": epoch * loader.images_per_epoch,
            "steps": epoch * len(loader),
            "seconds": round(now - self._clock, 3),
            "learning_rate": max(group["lr"] for group in trainer.optimizers[0].param_groups),
        }
        self.rows.append(row | metrics)
        self._clock = now
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
    module: StageModule,
    train: TrainLoader,
    validation: EvalLoader,
    epochs: int,
    folder: Path,
    stage: str,
    hardware: Hardware = Hardware(),
) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Train `module` for `epochs`, resuming from `folder`/last.ckpt where that exists.

    Where several processes train together, all of them call this and a batch is divided among them. Returns the best
    epoch's weights of `module.eval_model` (None where the module names no `monitor`; then the last ones count) and
    facts about the training: epochs, optimizer steps, images seen, best epoch. Raises ConfigError where a batch is too
    small for the processes, and KeyboardInterrupt when interrupted; a later call resumes after the last whole epoch.
    """
    smallest = train.images_per_epoch % train.batch_size or train.batch_size
    if smallest < hardware.processes:
        raise ConfigError(
            f"an epoch of {train.images_per_epoch} images in batches of {train.batch_size} has one of {smallest}, too "
            f"few for {hardware.processes} processes; change {stage}.batch_size or {stage}.images_per_epoch"
        )
    if hardware.on_gpu:
        module.to(memory_format=torch.channels_last)  # faster convolutions on GPUs, not on CPUs
    if hardware.compile:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is, with torch's warning
        for part in module.modules():
            if isinstance(part, Encoder | Decoder | Discriminator | Block):
                part.compile()
    folder.mkdir(parents=True, exist_ok=True)
    module.steps_per_epoch = len(train)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # no greetings
    history, bar = History(folder, hardware.progress_bar), hardware.progress_bar and sys.stdout.isatty()
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.resolved_strategy,
        precision=hardware.resolved_precision,
        sync_batchnorm=hardware.on_gpu and hardware.processes > 1,
        max_epochs=epochs,
        use_distributed_sampler=False,  # the loader divides batches itself
        logger=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[history, last, *([TQDMProgressBar()] if bar else [])],  # an epoch's row goes into its checkpoint
        plugins=[AtomicCheckpointIO()],
    )
    torch.manual_seed(module.seed)
    with warnings.catch_warnings():
        for expected in ("Checkpoint directory .* exists", "Found .* in eval mode", ".*LeafSpec"):
            warnings.filterwarnings("ignore", message=expected)
        try:
            resumed = folder / "last.ckpt" if _readable(folder / "last.ckpt", hardware) else None
            trainer.fit(module, train, validation, ckpt_path=resumed, weights_only=True)
        except SystemExit as leave:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from leave
    facts = {
        "epochs": epochs,
        "steps": epochs * len(train),
        "images_seen": epochs * train.images_per_epoch,
        "training_images": len(train.set),
        "device": trainer.strategy.root_device.type,
        "precision": hardware.resolved_precision,
        "processes": hardware.processes,
        "seconds": sum(row["seconds"] for row in history.rows),
    }
    if not history.best:
        return None, facts
    return history.best["state"], facts | {"best_epoch": history.best["epoch"], "best_score": history.best["score"]}


def _readable(checkpoint: Path, hardware: Hardware) -> bool:
    """Whether there is a checkpoint to resume from; says so where there is one that is broken."""
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, "cpu", weights_only=True)
    except Exception as error:  # of a dozen types, by where the file was cut off
        if hardware.leading:
            print(f"{checkpoint} cannot be read ({type(error).__name__}): this training starts anew", flush=True)
        return False
    return True
