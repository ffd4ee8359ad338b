"""One training with Lightning: resumable, quiet, with its history in a table."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Sequence
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
from tokencutseg.models.parallel import share_batch_norm
from tokencutseg.models.vqgan import Decoder, Discriminator, Encoder
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.modules import StageModule
from tokencutseg.training.progress import report_epoch


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely a training computes; it is not part of a run's identity."""

    accelerator: str = "auto"
    """auto, cpu or gpu."""
    precision: str = "auto"
    """Lightning's name, 32-true, 16-mixed or bf16-mixed; auto is bf16-mixed on a GPU that has it, else 32-true."""
    devices: int = 1
    """Processes on each machine, one for each GPU (or, on CPUs, as many as you like)."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's name; auto is DistributedDataParallel where there are several processes."""
    compile: bool = False
    """Compile the networks, where that is possible."""
    progress_bar: bool = False
    """A bar per epoch on the terminal, and a line when it is over."""

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.num_nodes


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
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self.rows.append(
            {
                "epoch": epoch,
                "images": epoch * trainer.train_dataloader.images_per_epoch,
                "steps": epoch * len(trainer.train_dataloader),
                "seconds": round(seconds, 3),
                "learning_rate": rate,
                **metrics,
            }
        )
        if not trainer.is_global_zero:
            return
        write_csv(pd.DataFrame(self.rows), self.folder / "history.csv")
        report_epoch(self.stage, self.folder.name, epoch, trainer.max_epochs, metrics)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then moves it there: a kill meanwhile leaves the last one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(path) as file:
            super().save_checkpoint(checkpoint, file, storage_options)


class EpochLines(Callback):
    """One line per epoch on standard output, for somebody who watches a training or reads its log."""

    def __init__(self, run: str) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = "  ".join(f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        print(f"{self.run} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}", flush=True)


def fit(
    module: StageModule,
    train: TrainLoader,
    validation: EvalLoader,
    epochs: int,
    folder: Path,
    stage: str,
    hardware: Hardware = Hardware(),
    watching: Sequence[Callback] = (),
) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Train `module` for `epochs`, going on from `folder`/last.ckpt when that is there.

    Returns the best epoch's weights of `module.scored` (None where the module names no `monitor`; then the last ones
    count) and what there is to say of the training: epochs, optimizer steps, images seen, best epoch. Raises
    KeyboardInterrupt when it is interrupted; a later call goes on after the last whole epoch.
    """
    processes = hardware.processes
    smallest = train.images_per_epoch % train.batch_size or train.batch_size
    if smallest < processes:
        raise ConfigError(
            f"an epoch of {train.images_per_epoch} images in batches of {train.batch_size} has one of "
            f"{smallest}, too few for {processes} processes; change {stage}.batch_size or "
            f"{stage}.images_per_epoch"
        )
    if processes > 1:
        share_batch_norm(module)
    if hardware.accelerator != "cpu" and torch.cuda.is_available():
        module.to(memory_format=torch.channels_last)  # which GPUs convolve faster, and CPUs do not
    if hardware.compile:
        compile_networks(module)
    folder.mkdir(parents=True, exist_ok=True)
    module.steps_per_epoch = len(train)
    history = History(folder, stage)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its greetings; warnings come through `warnings`
    # the history first: its rows of an epoch are then in that epoch's checkpoint
    callbacks: list[Callback] = [
        history,
        ModelCheckpoint(
            folder,
            filename="last",
            save_top_k=1,
            every_n_epochs=1,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
    ]
    callbacks += watching
    if hardware.progress_bar:
        callbacks.append(EpochLines(folder.name))
    bar = hardware.progress_bar and sys.stdout.isatty()
    if bar:
        callbacks.append(TQDMProgressBar())
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=strategy(hardware),
        precision=precision(hardware),
        max_epochs=epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
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
    facts = {
        "epochs": epochs,
        "steps": epochs * len(train),
        "images_seen": epochs * train.images_per_epoch,
        "training_images": len(train.set),
        "device": trainer.strategy.root_device.type,
        "precision": precision(hardware),
        "processes": processes,
        "seconds": sum(row["seconds"] for row in history.rows),
    }
    if not history.best:
        return None, facts
    return history.best["state"], facts | {"best_epoch": history.best["epoch"], "best_score": history.best["score"]}


def compile_networks(module: StageModule) -> None:
    """Compile the parts that most of the time goes to, unless torch.compile does not work here; then a note says why.

    Parameter names stay as they are. Whatever cannot be compiled later on is run as it is, with torch's own warning.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: (x + 1).cos())(torch.ones(8, device=device))
    except Exception as error:  # of any kind: a missing compiler, an unknown GPU, an unsupported Python
        print(
            f"note: torch.compile does not work here ({str(error).splitlines()[0]}): going on without",
            file=sys.stderr,
            flush=True,
        )
        return
    torch._dynamo.config.suppress_errors = True
    for part in module.modules():
        if isinstance(part, Encoder | Decoder | Discriminator | Block):
            part.compile()


def precision(hardware: Hardware) -> str:
    """Lightning's name of the precision that `hardware` means."""
    if hardware.precision != "auto":
        return hardware.precision
    gpu = hardware.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def strategy(hardware: Hardware) -> str:
    """Lightning's name of the strategy that `hardware` means. Some parameters get no gradient in some steps."""
    if hardware.strategy in ("auto", "ddp") and hardware.processes > 1:
        return "ddp_find_unused_parameters_true"
    return hardware.strategy
