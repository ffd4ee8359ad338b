"""The commands of the authors' README with their flags and defaults, `train-vq`, `train-seg`, `test-seg`; and `export`.

They train the recipe `released` on folders of images and masks and write ordinary runs. A flag that is a setting of
ours has its name as destination, such as `vqgan.code_dim`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencutseg.config import Config, ConfigError, configure, options
from tokencutseg.files import note, resolve
from tokencutseg.options import LARGEST

if TYPE_CHECKING:
    from tokencutseg.experiments.study import Study
    from tokencutseg.models.hardware import Hardware

PRECISIONS = {"16": "16-mixed", "32": "32-true", "bf16": "bf16-mixed", "auto": "auto"}
_OURS = {"max_epochs": "epochs", "embed_dim": "code_dim", "n_embed": "codebook_size", "n_embd": "d_model"}
"""Our names of settings that the authors call otherwise."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this module's commands; `command(name, handler)` makes one parser."""
    vq = command("train-vq", _train_vq)
    _add_folders(vq, "train", "val", masks=False)
    _add_settings(vq, "vqgan", batch_size=4, learning_rate=1e-4, max_epochs=100)
    _add_settings(vq, "vqgan", disc_start=10_000, disc_weight=0.5, perceptual_weight=0.8, codebook_weight=1.0)
    _add_sizes(vq, 64)
    _add_training(vq, "32", "vqgan_pretrain_full", "vqgan_pretrain_isic_full")

    seg = command("train-seg", _train_seg)
    _add_folders(seg, "train", "val")
    _add_settings(seg, "segmentation", batch_size=1, learning_rate=1e-4, max_epochs=200, deepcut_loss_weight=0.2)
    graph: dict[str, Any] = {"dest": "segmentation.use_deepcut", "choices": ("True", "False"), "default": "True"}
    seg.add_argument("--use-deepcut", help="False: a linear layer instead of the graph (default: True)", **graph)
    _add_file(seg, "--vqgan-checkpoint", "model_trained_in_step1.ckpt", "what train-vq wrote, or the authors' .ckpt")
    _add_sizes(seg, 512)
    _add_settings(seg, "masked_gpt", "gpt-", n_layer=12, n_head=4, n_embd=256)
    _add_training(seg, "16", "segmentation_training_2018_codebook_full", "segmentation_isic2018_codebook_full")

    test = command("test-seg", _test_seg)
    _add_folders(test, "test")
    _add_file(test, "--checkpoint-path", "model_trained_in_step2.ckpt", "the authors' .ckpt, or one of our runs")
    test.add_argument("--batch-size", type=whole(1), default=1, metavar="N", help="(default: %(default)s)")
    _add_sizes(test, 1024)
    _add_settings(test, "masked_gpt", "gpt-", n_layer=12, n_head=4, n_embd=256)
    add_device(test)
    test.add_argument("--records", type=Path, metavar="FILE.csv", help="write one row of scores per image")

    export = command("export", _export)
    export.add_argument("run", type=resolve, metavar="RUN", help="a run's folder: a tokenizer's or a segmenter's")
    kind = export.add_mutually_exclusive_group(required=True)
    kind.add_argument("--released", type=Path, metavar="FILE.ckpt", help="the authors' checkpoint to write")
    kind.add_argument("--half", type=Path, metavar="DIR", help="where to write the model in half precision")


def add_seed_and_set(parser: argparse.ArgumentParser) -> None:
    """The options `--seed` and `--set`; `read_overrides` reads the latter."""
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="of every draw (default: %(default)s)"
    )
    pairs: dict[str, Any] = {"dest": "overrides", "action": "extend", "nargs": "+", "default": []}
    parser.add_argument("--set", metavar="stage.key=value", help="settings, such as vqgan.codebook_size=128", **pairs)


def read_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """``stage.key=value`` pairs as a dict. Raises ConfigError for one without an equals sign."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ConfigError(f"--set takes stage.key=value, not {wrong[0]!r}")
    return {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option `--device`, the same for every command that computes."""
    text = "where to compute (default: TOKENCUTSEG_DEVICE, else a GPU that works, else the CPU)"
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "mps"), default="auto", help=text)


def add_hardware(parser: argparse.ArgumentParser, precision: str) -> None:
    """The options that `hardware` reads."""
    add_device(parser)
    parser.add_argument("--gpus", type=whole(0), metavar="N", help="GPUs per training, 0 for the CPU (default: 1)")
    text = "16 and bf16 are mixed; auto is bf16 on a GPU that has it, else 32 (default: %(default)s)"
    parser.add_argument("--precision", choices=PRECISIONS, default=precision, help=text)
    parser.add_argument("--num-nodes", type=whole(1), default=1, metavar="N", help="machines per training (default: 1)")


def hardware(arguments: argparse.Namespace) -> Hardware:
    """What the options mean here. Raises ConfigError for a device or for more GPUs than there are."""
    import torch

    from tokencutseg.models.hardware import Hardware, choose_device

    device, gpus = "cpu" if arguments.gpus == 0 else arguments.device, arguments.gpus or 1
    there = torch.cuda.device_count() if choose_device(device).type == "cuda" else 0
    if arguments.gpus and not there:
        note(f"--gpus {gpus} is without effect: no GPU is used here")
    elif there and not 0 < gpus <= there:
        raise ConfigError(f"--gpus {gpus}, but there are {there} here")
    gpus, precision = gpus if there else 1, PRECISIONS[arguments.precision]
    found = Hardware(device, precision, gpus, num_nodes=arguments.num_nodes, progress_bar=True)
    if not found.leading:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends; errors are still printed)
    return found


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """A type of `add_argument`: whole numbers in `least` … `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r:.40}") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must lie in {least} … {most}, not {text}")
        return number

    return read


def _add_folders(parser: argparse.ArgumentParser, *splits: str, masks: bool = True) -> None:
    for split in splits:
        parser.add_argument(f"--{split}-data-dir", type=Path, required=True, metavar="DIR", help="images")
        text = "their masks" if masks else "accepted and not needed"
        parser.add_argument(f"--{split}-mask-dir", type=Path, required=masks, metavar="DIR", help=text)


def _add_settings(parser: argparse.ArgumentParser, section: str, prefix: str = "", **defaults: Any) -> None:
    for name, default in defaults.items():
        flag, ours = f"--{prefix}{name.replace('_', '-')}", f"{section}.{_OURS.get(name, name)}"
        bounds = options()[ours].metadata
        kind = whole(1 if bounds.get("above") == 0 else bounds.get("least", 0)) if isinstance(default, int) else float
        about: dict[str, Any] = {"type": kind, "default": default, "help": "(default: %(default)s)"}
        parser.add_argument(flag, dest=ours, metavar="N", **about)


def _add_sizes(parser: argparse.ArgumentParser, codebook_size: int) -> None:
    _add_settings(parser, "data", image_size=224)
    _add_settings(parser, "vqgan", "vq-", embed_dim=256, n_embed=codebook_size, hidden_channels=128, n_res_blocks=2)
    parser.add_argument("--num-workers", type=int, default=4, metavar="N", help="accepted and not needed")


def _add_file(parser: argparse.ArgumentParser, flag: str, default: str, text: str) -> None:
    parser.add_argument(flag, type=Path, default=Path(default), metavar="FILE", help=f"{text} (default: %(default)s)")


def _add_training(parser: argparse.ArgumentParser, precision: str, output: str, experiment: str) -> None:
    add_hardware(parser, precision)
    parser.add_argument("--output-dir", type=Path, default=Path(output), metavar="DIR", help="(default: %(default)s)")
    text = "runs go to OUTPUT_DIR/NAME/runs (default: %(default)s)"
    parser.add_argument("--experiment-name", default=experiment, metavar="NAME", help=text)
    add_seed_and_set(parser)


# training -----------------------------------------------------------------------------------------------------------


def _train_vq(arguments: argparse.Namespace) -> int:
    study = _study(arguments, masks=False)
    run, size = study.tokenizer(), study.config.data.image_size
    folder = shlex.quote(str(run.folder))
    print(f"tokenizer: {run.folder}\nnext: tokencutseg train-seg --image-size {size} --vqgan-checkpoint {folder} …")
    return 0


def _train_seg(arguments: argparse.Namespace) -> int:
    vqgan = _open_model(arguments.vqgan_checkpoint, "vqgan")
    study = _study(arguments)
    study.adopt_tokenizer(vqgan, str(arguments.vqgan_checkpoint))
    _note_sizes(arguments, study.config, arguments.vqgan_checkpoint, "vqgan")
    run = study.segmenter()
    metrics, reduction = run.metrics, study.config.evaluation.score_reduction
    size, folder = study.config.data.image_size, shlex.quote(str(run.folder))
    print(f"segmenter: {run.folder}\nbest epoch {metrics['best_epoch']} of {metrics['epochs']}, ", end="")
    print(f"validation {reduction} IoU {metrics['best_score']:.4f}")
    print(f"next: tokencutseg test-seg --image-size {size} --checkpoint-path {folder} …")
    return 0


def _settings(arguments: argparse.Namespace, *sections: str) -> dict[str, Any]:
    """The flags that are settings of these sections."""
    return {name: value for name, value in vars(arguments).items() if name.startswith(tuple(f"{s}." for s in sections))}


def _study(arguments: argparse.Namespace, masks: bool = True) -> Study:
    """A study whose runs are in OUTPUT_DIR/NAME, with the recipe `released` and what the flags say."""
    values = _settings(arguments, "data", "vqgan", "masked_gpt", "segmentation")
    values["evaluation.batch_size"] = max(8, values.get("segmentation.batch_size") or values["vqgan.batch_size"])
    config = configure("full", "released", arguments.seed, values | read_overrides(arguments.overrides))

    from tokencutseg.data.folders import pair_folders
    from tokencutseg.data.source import folder_source
    from tokencutseg.experiments.study import Study
    from tokencutseg.report.notebooks import check_writable

    train = pair_folders("folders", "train", arguments.train_data_dir, arguments.train_mask_dir if masks else None)
    val = pair_folders("folders", "validation", arguments.val_data_dir, arguments.val_mask_dir if masks else None)
    if shared := {s.image.resolve() for s in train.samples} & {s.image.resolve() for s in val.samples}:
        raise ConfigError(f"{len(shared)} images are of both splits, such as {min(shared)}; validate on others")
    folder = arguments.output_dir / arguments.experiment_name
    check_writable(folder / "runs", "--output-dir")
    machine, size = hardware(arguments), config.data.image_size
    counts = f"{len(train.samples)} training and {len(val.samples)} validation images"
    print(f"{counts} at {size}×{size}; runs go to {folder / 'runs'}\ndevice: {machine.describe()}", flush=True)
    return Study(config, folder_source("folders", size, [train, val]), folder, machine)


# models -------------------------------------------------------------------------------------------------------------


def _open_model(path: Path, stage: str, **options: Any) -> Any:
    """The tokenizer (`vqgan`) or segmenter at `path`: a checkpoint of the authors', with `options`, or a run of ours.

    Raises ConfigError for what holds none, and for a run's own checkpoint, which is for resuming the training.
    """
    import tokencutseg
    from tokencutseg.models import upstream

    if path.name == "last.ckpt" and (path.parent / "config.json").is_file():
        raise ConfigError(f"{path} is for going on with a training; give the run's folder {path.parent}")
    tokenizer = stage == "vqgan"
    if path.suffix in (".ckpt", ".pt", ".pth") or (path.is_file() and path.suffix != ".safetensors"):
        return (upstream.load_tokenizer if tokenizer else upstream.load_segmenter)(path, **options)
    model = tokencutseg.load(_run_folder(path, stage), segments=not tokenizer)
    model = getattr(model, "vqgan", model) if tokenizer else model
    if tokenizer and not hasattr(model, "tokenize"):
        raise ConfigError(f"{path} holds no tokenizer")
    return model


def _run_folder(path: Path, stage: str) -> Path:
    """A run's folder, or the only finished run of `stage` in an experiment's folder."""
    from tokencutseg.models.checkpoint import read_metrics

    if not (path / "runs").is_dir():
        return path
    there = sorted(metrics.parent for metrics in path.glob(f"runs/{stage}-*/metrics.json"))
    done = [
        folder for folder in there if "adopted_from" not in read_metrics(folder)
    ]  # a copy is no training of its own
    if len(done) != 1:
        listed = "".join(f"\n  {folder}" for folder in done)
        raise ConfigError(f"{path} holds {len(done)} finished {stage} runs; give one run's folder{listed}")
    return done[0]


def _note_sizes(arguments: argparse.Namespace, config: Config, path: Path, *sections: str) -> None:
    """Say where the sizes on the command line are not the checkpoint's, which count."""
    for name, given in _settings(arguments, *sections).items():
        if given != (held := config.value(name)):
            note(f"{name} is {given} on the command line, but {path} has {held}: going on with {held}")


# test-seg and export ------------------------------------------------------------------------------------------------


def _test_seg(arguments: argparse.Namespace) -> int:
    from tokencutseg.data.folders import pair_folders
    from tokencutseg.data.image_set import load_split
    from tokencutseg.evaluation.inference import predict_masks
    from tokencutseg.evaluation.per_image import score
    from tokencutseg.evaluation.statistics import summarise
    from tokencutseg.files import write_csv
    from tokencutseg.models.hardware import Hardware, choose_device
    from tokencutseg.report.notebooks import check_writable

    size, path = getattr(arguments, "data.image_size"), arguments.checkpoint_path
    if arguments.records:
        check_writable(arguments.records, "--records", file=True)
    model = _open_model(path, "segmentation", n_head=getattr(arguments, "masked_gpt.n_head"))
    stride = 2**model.config.vqgan.n_stages
    if size % stride:
        raise ConfigError(f"--image-size must be a multiple of the tokenizer's stride {stride}, not {size}")
    if hasattr(model, "masked_gpt"):
        _note_sizes(arguments, model.config, path, "vqgan", "masked_gpt")
    if size != (own := model.config.data.image_size):
        note(f"--image-size is {size}, but {path} was trained at {own}: scores will be lower than it can reach")
    images = load_split(pair_folders("folders", "test", arguments.test_data_dir, arguments.test_mask_dir), size)
    for text in images.notes:
        note(text)
    model = model.to(choose_device(arguments.device))
    print(f"device: {Hardware(arguments.device, '32-true').describe()}", flush=True)
    records = score(predict_masks(model, images, arguments.batch_size), images.masks, images.ids, method="test-seg")
    print(f"{len(images)} images at {size}×{size}")
    for reduction, rule in (
        ("micro_two_class", "released rule: mean of lesion and background, all pixels pooled"),
        ("per_image", "lesion per image, then the mean"),
    ):
        for name, measure in (("mIoU", "iou"), ("DSC", "dice")):
            found = summarise(records, reduction, measure)
            print(f"{name} {found.mean:.6f} [{found.low:.4f}, {found.high:.4f}]", end="  ")
        print(f"{reduction} ({rule})")
    if arguments.records:
        write_csv(records, arguments.records)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from tokencutseg.models.checkpoint import load, save_half, stage_and_config
    from tokencutseg.models.upstream import save_segmenter, save_tokenizer
    from tokencutseg.report.notebooks import check_writable

    run, target = _run_folder(arguments.run, "segmentation"), arguments.released
    stage, config = stage_and_config(run)  # before a folder is made
    if arguments.half:
        check_writable(arguments.half.absolute(), "--half")
        print(f"{run} -> {arguments.half} ({save_half(run, arguments.half) / 2**20:.1f} MiB)")
        return 0
    if stage not in ("vqgan", "segmentation"):
        raise ConfigError(f"{run} is a {stage} run; the released code has files of tokenizers and segmenters only")
    check_writable(target, "--released", file=True)
    model = load(run)
    vgg = save_tokenizer(model, config, target) if stage == "vqgan" else save_segmenter(model, target)
    print(f"{run} -> {target} (its loss network, which only training reads, is {vgg})")
    return 0
