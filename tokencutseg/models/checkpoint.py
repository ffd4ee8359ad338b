"""Saved models: a folder with `config.json` and `model.safetensors`, opened by the kind of stage that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokencutseg.config import Config, ConfigError
from tokencutseg.data.images import DataError
from tokencutseg.files import atomic_write, write_json
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN

WEIGHTS, CONFIG = "model.safetensors", "config.json"
STAGES = ("vqgan", "masked_gpt", "segmentation", "baseline")
PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""The model that comes with the package: a revised segmenter with its tokenizer; `README.md` beside it is its card."""

PRETRAINED_PARTS = ("vqgan.", "masked_gpt.")
"""The parts of a `TokenCutSeg` that a masked-token run holds."""


def build(stage: str, config: Config, name: str | None = None, pretrained: bool = True) -> nn.Module:
    """An untrained model of a stage in `STAGES`; a `baseline` needs a name.

    `pretrained` says whether it may start from ImageNet weights.
    """
    if stage == "vqgan":
        return VQGAN(config.vqgan)
    if stage == "baseline":
        from tokencutseg.models.baselines import Baseline  # takes longer to import than all the rest

        return Baseline(name or "", config, pretrained)
    return TokenCutSeg(config, pretrained=pretrained)


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Write `model.safetensors` atomically."""
    with atomic_write(folder / WEIGHTS) as file:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, file)


def save_half(run: str | Path, folder: Path) -> int:
    """Write a run's model into another `folder` in half precision, for `load`; returns the bytes of its weights.

    Raises DataError when there is no model, when half precision cannot hold its weights, and when `folder` holds a
    model, a run or a study.
    """
    if taken := [name for name in (WEIGHTS, CONFIG) if (folder / name).exists()]:
        raise DataError(f"{folder / taken[0]} is there already and would be lost; write to another folder")
    about, source = _about(run)
    about |= {"metrics": read_metrics(source)}
    state = _read_weights(source)
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise DataError(f"{source} holds weights beyond half precision in {broken[0]}; keep it in full precision")
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(state, folder)
    write_json(about, folder / CONFIG)
    return (folder / WEIGHTS).stat().st_size


def load(path: str | Path = PRETRAINED, segments: bool = False) -> nn.Module:
    """A saved model in evaluation mode, from a run's folder or the `model.safetensors` in it.

    Gives a `TokenCutSeg` for a segmentation or masked-token run, a `Baseline` or a `VQGAN` for theirs. Raises DataError
    when there is no model, or with `segments` one that has not learned to segment.
    """
    about, folder = _about(path)
    config, state = _config(about, folder), _read_weights(folder)
    model = build(about["stage"], config, about.get("name"), pretrained=False)
    if about["stage"] == "masked_gpt":
        untrained = {key: value for key, value in model.state_dict().items() if not key.startswith(PRETRAINED_PARTS)}
        state |= untrained  # head, encoder and up-sampler
        model.segments = False
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"{folder} holds a model that this version of tokencutseg cannot open "
            f"({str(error).splitlines()[1].strip()}); train it again"
        ) from error
    if segments and about["stage"] not in ("segmentation", "baseline"):
        raise DataError(f"{folder} is a {about['stage']} run, which segments nothing; give a segmentation run's folder")
    return model.eval()


def stage_and_config(path: str | Path) -> tuple[str, Config]:
    """The stage and the configuration of a saved model. Raises DataError when there is no model."""
    about, folder = _about(path)
    return about["stage"], _config(about, folder)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What a run measured as it trained, also of a model exported from it; empty where that is not known."""
    if (file := folder / "metrics.json").is_file():
        return _read_json(file)
    return _about(folder)[0].get("metrics", {})


def _config(about: dict[str, Any], folder: Path) -> Config:
    """The configuration of a saved model. Raises DataError where another version wrote it."""
    try:
        return Config.from_dict(about["config"])
    except ConfigError as error:
        what = str(error).partition(". ")[0]  # without the advice on settings
        raise DataError(
            f"{folder} holds a model that this version of tokencutseg cannot open ({what}); train it again"
        ) from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    try:
        return load_file(file)
    except SafetensorError as error:
        raise DataError(f"{file} is damaged or incomplete; copy or train it again") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}); check its permissions") from error


def _about(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The content of `config.json`, and the folder; `path` is the folder or the weights in it."""
    folder = Path(path)
    folder = folder.parent if folder.name == WEIGHTS else folder
    what = "give a run's folder such as results/runs/segmentation-…"
    try:
        if folder.is_file():
            raise DataError(f"{folder} is a file and no folder with a saved model; {what}")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                if (folder / "metrics.json").is_file():  # a finished run
                    what = "a study trains it again once the folder is removed"
                raise DataError(f"{folder} holds no saved model: {name} is missing there; {what}")
        about = _read_json(folder / CONFIG)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); check the path and its permissions") from error
    if about.get("stage") not in STAGES or not isinstance(about.get("config"), dict):
        raise DataError(f"{folder / CONFIG} does not describe a saved model; {what}")
    return about, folder


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if isinstance(values := json.loads(file.read_bytes()), dict):
            return values
        what = "holds no settings"
    except ValueError as error:
        what = f"is no JSON ({error})"
    raise DataError(f"{file} {what}; copy its folder or train it again")
