"""The commands of the authors' README with their flags and defaults: `train-vq`, `train-seg`, `test-seg`.

They train the recipe `released` on folders of images and masks and write ordinary runs. `export` turns such a run into
the authors' own checkpoint (or any run into half precision), `recipes` prints what sets the recipes apart.
"""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokencutseg.cli.common import OK, UsageError, check_file, natural, positive, read_overrides, terminable
from tokencutseg.cli.training import add_processes, hardware, tell
from tokencutseg.config import Config, configure

if TYPE_CHECKING:
    from torch import nn

    from tokencutseg.experiments.study import Study
    from tokencutseg.models.vqgan import VQGAN

_TOKENIZER = {
    "vq_embed_dim": "vqgan.code_dim",
    "vq_n_embed": "vqgan.codebook_size",
    "vq_hidden_channels": "vqgan.hidden_channels",
    "vq_n_res_blocks": "vqgan.n_res_blocks",
}
_TRANSFORMER = {
    "gpt_n_layer": "masked_gpt.n_layer",
    "gpt_n_head": "masked_gpt.n_head",
    "gpt_n_embd": "masked_gpt.d_model",
}
_TRAIN_VQ = {
    "batch_size": "vqgan.batch_size",
    "learning_rate": "vqgan.learning_rate",
    "max_epochs": "vqgan.epochs",
    "disc_start": "vqgan.disc_start",
    "disc_weight": "vqgan.disc_weight",
    "perceptual_weight": "vqgan.perceptual_weight",
    "codebook_weight": "vqgan.codebook_weight",
}
_TRAIN_SEG = {
    "batch_size": "segmentation.batch_size",
    "learning_rate": "segmentation.learning_rate",
    "max_epochs": "segmentation.epochs",
    "use_deepcut": "segmentation.use_deepcut",
    "deepcut_loss_weight": "segmentation.deepcut_loss_weight",
}
"""Which setting each flag is."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this module's commands; `command(name, handler, text)` makes one parser."""
    train_vq = command("train-vq", _train_vq, "Train the tokenizer as the authors' train_vq.py does.")
    _add_folders(train_vq, masks=False)
    _add_training(
        train_vq,
        batch_size=4,
        epochs=100,
        precision="32",
        output="vqgan_pretrain_full",
        experiment="vqgan_pretrain_isic_full",
    )
    _add_tokenizer(train_vq, n_embed=64)
    for name, kind, default in (
        ("disc-start", natural, 10_000),
        ("disc-weight", float, 0.5),
        ("perceptual-weight", float, 0.8),
        ("codebook-weight", float, 1.0),
    ):
        train_vq.add_argument(f"--{name}", type=kind, default=default, help="(default: %(default)s)")

    train_seg = command("train-seg", _train_seg, "Train the segmenter as the authors' train_seg.py does.")
    _add_folders(train_seg, masks=True)
    _add_training(
        train_seg,
        batch_size=1,
        epochs=200,
        precision="16",
        output="segmentation_training_2018_codebook_full",
        experiment="segmentation_isic2018_codebook_full",
    )
    train_seg.add_argument(
        "--vqgan-checkpoint",
        type=Path,
        default=Path("model_trained_in_step1.ckpt"),
        metavar="FILE",
        help="what train-vq wrote, or the authors' own .ckpt (default: %(default)s)",
    )
    _add_tokenizer(train_seg, n_embed=512)
    _add_transformer(train_seg)
    train_seg.add_argument(
        "--use-deepcut",
        type=_boolean,
        default=True,
        metavar="True|False",
        help="False: a linear layer instead of the graph module (default: True)",
    )
    train_seg.add_argument("--deepcut-loss-weight", type=float, default=0.2, help="(default: %(default)s)")

    test_seg = command("test-seg", _test_seg, "Score a model on a folder by the released rule.")
    test_seg.add_argument("--test-data-dir", type=Path, required=True, metavar="DIR", help="images")
    test_seg.add_argument("--test-mask-dir", type=Path, required=True, metavar="DIR", help="their masks")
    test_seg.add_argument("--image-size", type=positive, default=224, help="in pixels (default: %(default)s)")
    test_seg.add_argument(
        "--checkpoint-path",
        type=Path,
        default=Path("model_trained_in_step2.ckpt"),
        metavar="FILE",
        help="the authors' .ckpt, or one of our runs (default: %(default)s)",
    )
    test_seg.add_argument("--batch-size", type=positive, default=1, help="(default: %(default)s)")
    _add_ignored(test_seg)
    _add_tokenizer(test_seg, n_embed=1024)
    _add_transformer(test_seg)
    test_seg.add_argument("--records", type=Path, metavar="FILE.csv", help="write one row of scores per image")

    export = command(
        "export",
        _export,
        "Write a run of the recipe `released` as the authors' own checkpoint, or any run at half its size.",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="a run's folder: a tokenizer's or a segmenter's")
    kind = export.add_mutually_exclusive_group(required=True)
    kind.add_argument("--released", type=Path, metavar="FILE.ckpt", help="the authors' checkpoint to write")
    kind.add_argument("--half", type=Path, metavar="DIR", help="where to write the model in half precision")

    command("recipes", _recipes, "Show every switch, its value under each recipe, and the reason.")


def _add_folders(parser: argparse.ArgumentParser, masks: bool) -> None:
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-data-dir", type=Path, required=True, metavar="DIR", help="images")
        parser.add_argument(
            f"--{split}-mask-dir",
            type=Path,
            required=masks,
            metavar="DIR",
            help="their masks" if masks else "not needed: the tokenizer reads images only",
        )


def _add_training(
    parser: argparse.ArgumentParser, batch_size: int, epochs: int, precision: str, output: str, experiment: str
) -> None:
    parser.add_argument("--image-size", type=positive, default=224, help="in pixels (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        help="images per step, over all processes (default: %(default)s)",
    )
    _add_ignored(parser)
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="(default: %(default)s)")
    parser.add_argument("--max-epochs", type=positive, default=epochs, help="(default: %(default)s)")
    parser.add_argument("--gpus", type=natural, default=1, help="on each machine; 0 trains on the CPU (default: 1)")
    parser.add_argument(
        "--precision",
        choices=("16", "32", "bf16"),
        default=precision,
        help="16 and bf16 are mixed precision (default: %(default)s)",
    )
    add_processes(parser)
    parser.add_argument("--output-dir", type=Path, default=Path(output), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument(
        "--experiment-name",
        default=experiment,
        metavar="NAME",
        help="runs go to OUTPUT_DIR/NAME/runs (default: %(default)s)",
    )
    parser.add_argument("--seed", type=natural, default=0, help="of every draw (default: %(default)s)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="stage.key=value",
        help="correct a switch, such as segmentation.loss_input=logits",
    )


def _add_ignored(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-workers",
        type=natural,
        default=4,
        help="accepted and not needed: images are decoded once and kept in memory",
    )


def _add_tokenizer(parser: argparse.ArgumentParser, n_embed: int) -> None:
    for name, default in (("embed-dim", 256), ("n-embed", n_embed), ("hidden-channels", 128), ("n-res-blocks", 2)):
        parser.add_argument(f"--vq-{name}", type=positive, default=default, help="(default: %(default)s)")


def _add_transformer(parser: argparse.ArgumentParser) -> None:
    for name, default in (("n-layer", 12), ("n-head", 4), ("n-embd", 256)):
        parser.add_argument(f"--gpt-{name}", type=positive, default=default, help="(default: %(default)s)")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() == "true"


# training -----------------------------------------------------------------------------------------------------------


def _train_vq(arguments: argparse.Namespace) -> int:
    study = _study(arguments, _TOKENIZER | _TRAIN_VQ, masks=False)
    with terminable():
        run = study.tokenizer()
    print(
        f"tokenizer: {run.folder}\nnext: tokencutseg train-seg --image-size {arguments.image_size} "
        f"--vqgan-checkpoint {shlex.quote(str(run.folder))} …"
    )
    return OK


def _train_seg(arguments: argparse.Namespace) -> int:
    vqgan = _open_tokenizer(arguments.vqgan_checkpoint)
    study = _study(arguments, _TOKENIZER | _TRANSFORMER | _TRAIN_SEG, masks=True)
    study.adopt_tokenizer(vqgan, str(arguments.vqgan_checkpoint))
    _tell_sizes(arguments, _TOKENIZER, study.config, arguments.vqgan_checkpoint)
    with terminable():
        run = study.segmenter()
    print(
        f"segmenter: {run.folder}\nbest epoch {run.metrics['best_epoch']} of {run.metrics['epochs']}, validation "
        f"{study.config.evaluation.score_reduction} IoU {run.metrics['best_score']:.4f}\n"
        f"next: tokencutseg test-seg --image-size {arguments.image_size} --checkpoint-path "
        f"{shlex.quote(str(run.folder))} …"
    )
    return OK


def _study(arguments: argparse.Namespace, settings: dict[str, str], masks: bool) -> Study:
    """The study in OUTPUT_DIR/NAME, with the recipe `released` and what the flags say."""
    values = {setting: getattr(arguments, flag) for flag, setting in settings.items()}
    values |= {"data.image_size": arguments.image_size, "evaluation.batch_size": max(8, arguments.batch_size)}
    config = configure("full", "released", arguments.seed, values | read_overrides(arguments.overrides))

    from tokencutseg.data.folders import pair_folders
    from tokencutseg.data.source import folder_source
    from tokencutseg.experiments.study import Study
    from tokencutseg.report.notebooks import check_writable

    name = arguments.experiment_name
    splits = [
        pair_folders("folders", split, images, mask_folder if masks else None)
        for split, images, mask_folder in (
            ("train", arguments.train_data_dir, arguments.train_mask_dir),
            ("validation", arguments.val_data_dir, arguments.val_mask_dir),
        )
    ]
    folder = arguments.output_dir / name
    check_writable(folder, "--output-dir")
    machine = hardware(arguments)
    print(
        f"{len(splits[0].samples)} training and {len(splits[1].samples)} validation images at "
        f"{config.data.image_size}×{config.data.image_size}; runs go to {folder / 'runs'}",
        flush=True,
    )
    return Study(config, folder_source("folders", config.data.image_size, splits), folder, hardware=machine)


# models -------------------------------------------------------------------------------------------------------------


def _open_tokenizer(path: Path) -> VQGAN:
    from tokencutseg.models.upstream import load_tokenizer
    from tokencutseg.models.vqgan import VQGAN

    if _is_authors(path):
        return load_tokenizer(path)
    model = _open_run(path, "vqgan")
    tokenizer = model if isinstance(model, VQGAN) else getattr(model, "vqgan", None)
    if tokenizer is None:
        raise UsageError(f"{path} holds no tokenizer")
    return tokenizer


def _open_segmenter(path: Path, n_head: int) -> nn.Module:
    from tokencutseg.models.upstream import load_segmenter

    if _is_authors(path):
        return load_segmenter(path, n_head=n_head)
    model = _open_run(path, "segmentation")
    if not hasattr(model, "predict_probabilities"):
        raise UsageError(f"{path} holds no segmenter; give a run of train-seg")
    return model


def _is_authors(path: Path) -> bool:
    """Whether `path` means a checkpoint file of theirs (also one that is missing) and not a run of ours.

    Raises UsageError for a run's own checkpoint, which is for going on with the training.
    """
    if path.name == "last.ckpt" and (path.parent / "config.json").is_file():
        raise UsageError(f"{path} is for going on with a training; give the run's folder {path.parent}")
    return path.suffix in (".ckpt", ".pt", ".pth") or (path.is_file() and path.suffix != ".safetensors")


def _open_run(path: Path, stage: str) -> nn.Module:
    """The model of a run, or of the only finished run of `stage` in an experiment's folder."""
    import tokencutseg

    return tokencutseg.load(_run_folder(path, stage))


def _run_folder(path: Path, stage: str) -> Path:
    if not (path / "runs").is_dir():
        return path
    done = sorted(metrics.parent for metrics in path.glob(f"runs/{stage}-*/metrics.json"))
    if len(done) != 1:
        raise UsageError(
            f"{path} holds {len(done)} finished {stage} runs; give one run's folder"
            + "".join(f"\n  {folder}" for folder in done)
        )
    return done[0]


def _tell_sizes(arguments: argparse.Namespace, flags: dict[str, str], config: Config, path: Path) -> None:
    """Say where the sizes on the command line are not the checkpoint's, which count."""
    for flag, setting in flags.items():
        given, held = getattr(arguments, flag), config.value(setting)
        if given != held:
            tell(f"--{flag.replace('_', '-')} is {given}, but {path} has {held}: going on with {held}")


# test-seg, export, recipes ------------------------------------------------------------------------------------------


def _test_seg(arguments: argparse.Namespace) -> int:
    import torch

    from tokencutseg.data.folders import pair_folders
    from tokencutseg.data.image_set import load_split
    from tokencutseg.evaluation.inference import predict_masks
    from tokencutseg.evaluation.per_image import score
    from tokencutseg.evaluation.statistics import summarise

    size = arguments.image_size
    if arguments.records:
        check_file(arguments.records, "--records")
    model = _open_segmenter(arguments.checkpoint_path, arguments.gpt_n_head)
    stride = 2**model.config.vqgan.n_stages
    if size % stride:
        raise UsageError(f"--image-size must be a multiple of the tokenizer's stride {stride}, not {size}")
    if hasattr(model, "masked_gpt"):
        _tell_sizes(arguments, _TOKENIZER | _TRANSFORMER, model.config, arguments.checkpoint_path)
    if size != model.config.data.image_size:
        tell(
            f"--image-size is {size}, but {arguments.checkpoint_path} was trained at "
            f"{model.config.data.image_size}: scores will be lower than it can reach"
        )
    images = load_split(pair_folders("folders", "test", arguments.test_data_dir, arguments.test_mask_dir), size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictions = predict_masks(model.to(device), images, arguments.batch_size)
    records = score(predictions, images.masks, images.ids, method="test-seg")
    print(f"{len(images)} images at {size}×{size}")
    for rule, reduction in (
        ("released rule: mean of lesion and background, all pixels pooled", "micro_two_class"),
        ("lesion per image, then the mean", "per_image"),
    ):
        iou, dice = (summarise(records, reduction, measure) for measure in ("iou", "dice"))
        print(
            f"mIoU {iou.mean:.6f} [{iou.low:.4f}, {iou.high:.4f}]  DSC {dice.mean:.6f} [{dice.low:.4f}, "
            f"{dice.high:.4f}]  {reduction} ({rule})"
        )
    if arguments.records:
        from tokencutseg.files import write_csv

        write_csv(records, arguments.records)
    return OK


def _export(arguments: argparse.Namespace) -> int:
    from tokencutseg.models.checkpoint import load, save_half, saved_config, saved_stage
    from tokencutseg.models.upstream import save_segmenter, save_tokenizer
    from tokencutseg.report.notebooks import check_writable

    run = _run_folder(arguments.run, "segmentation")
    if arguments.half:
        check_writable(arguments.half.absolute(), "--half")
        size = save_half(run, arguments.half)
        print(f"{run} -> {arguments.half} ({size / 2**20:.1f} MiB)")
        return OK
    stage = saved_stage(run)
    if stage not in ("vqgan", "segmentation"):
        raise UsageError(f"{run} is a {stage} run; the released code has files of tokenizers and segmenters only")
    check_file(arguments.released, "--released")
    model = load(run)
    vgg = (
        save_tokenizer(model, saved_config(run), arguments.released)
        if stage == "vqgan"
        else save_segmenter(model, arguments.released)
    )
    print(f"{run} -> {arguments.released} (its loss network, which only training reads, is {vgg})")
    return OK


def _recipes(arguments: argparse.Namespace) -> int:
    from tokencutseg.experiments.ablations import recipe_table

    table = recipe_table()
    table = table.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    names = [column for column in table if column not in ("switch", "reason")]
    width = {column: max(len(column), table[column].str.len().max()) for column in ("switch", *names)}
    print("  ".join(column.ljust(width[column]) for column in ("switch", *names)).rstrip())
    for row in table.to_dict("records"):
        print("  ".join(row[column].ljust(width[column]) for column in ("switch", *names)).rstrip())
        print(textwrap.fill(row["reason"], 110, initial_indent="    ", subsequent_indent="    "))
    return OK
