"""Reads and writes checkpoints of the released code: Lightning files whose state dict names other modules than ours.

A file holds `state_dict` and plain `hyper_parameters`. Beside the model it carries what only training needs, the
PatchGAN and the VGG16 of the perceptual loss; reading ignores these by name, writing adds them, since a Lightning
module loads strictly.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokencutseg.config import RECIPES, Config, ConfigError, VQGANConfig, configure
from tokencutseg.data.images import DataError
from tokencutseg.files import atomic_write
from tokencutseg.models.perceptual import load_vgg
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import IMAGENET_MEAN, IMAGENET_STD, VQGAN, Discriminator

_GPT, _LAYER, _BLOCK = "gpt.transformer.", "gpt.transformer.layers.{}.", "masked_gpt.blocks.{}."
_NAMES = [
    ("deepcut_module.pool.", "head.gnn."),
    ("deepcut_module.", "head."),
    ("lm_head.", "masked_gpt.lm_head."),
    (_GPT + "embed.word_embeddings.", "masked_gpt.token_embedding."),
    (_GPT + "embed.position_embeddings.", "masked_gpt.position_embedding."),
    (_GPT + "embed.layernorm.", "masked_gpt.embedding_norm."),
    (_GPT + "mlm_layer.", "masked_gpt.tied_head."),
    (_LAYER + "attention.multihead_attn.in_proj_", _BLOCK + "qkv."),
    (_LAYER + "attention.multihead_attn.out_proj.", _BLOCK + "out."),
    (_LAYER + "attention.layernorm.", _BLOCK + "norm1."),
    (_LAYER + "mlp.layernorm.", _BLOCK + "norm2."),
    (_LAYER + "mlp.", _BLOCK),
]
"""Prefixes of names, upstream's and ours; the first that fits counts. The tokenizer's names are the same."""
_TRAINING_ONLY = re.compile(r"^(vqgan\.)?(loss|discriminator)\.|perceptual_loss\.")
_OPTIONS = [
    *(f"vqgan.{key}" for key in ("n_stages", "input_normalisation", "norm_groups")),
    *(f"masked_gpt.{key}" for key in ("inputs", "norm", "positions")),
    *(f"segmentation.{key}" for key in ("use_deepcut", "affinity", "graph_radius", "radius_unit")),
    *(f"segmentation.{key}" for key in ("upsampling", "loss_input", "test_time_flips")),
]
"""What decides the numbers of a forward pass: to be written, a model must have the released value of each."""


def load_segmenter(path: str | Path, n_head: int = 4) -> TokenCutSeg:
    """A released segmentation checkpoint as a `TokenCutSeg` in evaluation mode.

    Sizes come from the tensors. The number of attention heads, which no tensor shows, comes from the hyper-parameters;
    where they are missing it is `n_head`, by default four as in the released defaults.

    Raises DataError for a file that is no such checkpoint, and when a key is missing or unexpected (all are listed).
    """
    checkpoint = _read(path)
    state = {_rename(key, to_ours=True): value for key, value in _model_part(checkpoint).items()}
    gpt = (checkpoint.get("hyper_parameters") or {}).get("gpt_config") or {}
    try:
        tokenizer = {key.removeprefix("vqgan."): value for key, value in state.items() if key.startswith("vqgan.")}
        n_positions, d_model = state["masked_gpt.position_embedding.weight"].shape
        sizes = _tokenizer_sizes(tokenizer) | {
            "data.image_size": 4 * math.isqrt(n_positions),
            "masked_gpt.d_model": d_model,
            "masked_gpt.n_layer": len({key.split(".")[2] for key in state if key.startswith("masked_gpt.blocks.")}),
            "masked_gpt.n_head": gpt.get("n_head", n_head),
        }
        n_classes = len(state["head.gnn.mlp.4.weight"])
    except KeyError as error:
        missing = _rename(error.args[0], to_ours=False)
        raise DataError(f"{path} is not a released segmentation checkpoint: {missing} is missing") from error
    if n_classes != 2:
        raise DataError(f"{path} tells {n_classes} classes apart; only lesion and skin can be used here")
    return _load(TokenCutSeg(configure("full", "released", overrides=sizes), n_positions), state, path)


def load_tokenizer(path: str | Path) -> VQGAN:
    """A released checkpoint's VQGAN in evaluation mode; from a segmentation checkpoint, the one inside it.

    Raises DataError as `load_segmenter` does.
    """
    state = _model_part(_read(path))
    if any(key.startswith("gpt.") for key in state):
        state = {key: value for key, value in state.items() if key.startswith("vqgan.")}
    state = {key.removeprefix("vqgan."): value for key, value in state.items()}
    try:
        config = configure("full", "released", overrides=_tokenizer_sizes(state))
    except KeyError as error:
        raise DataError(f"{path} is not a released VQGAN checkpoint: {error.args[0]} is missing") from error
    return _load(VQGAN(config.vqgan), state, path)


def save_segmenter(model: TokenCutSeg, path: str | Path) -> str:
    """Write a model of the recipe `released` as the released code's own checkpoint; `load_segmenter` is the inverse.

    The PatchGAN's values are fresh ones and VGG16's are ImageNet's only where they can be had (the name of those that
    were written is returned); only training uses them. Raises ConfigError for a model that the released code cannot
    express, naming what differs.
    """
    config = model.config
    _check_released(config)
    if model.masked_gpt.tied_head is None:
        raise ConfigError("the released code cannot hold this model: it lacks the tied head of the recipe released")
    gpt, seg, n_classes = config.masked_gpt, config.segmentation, model.head.gnn.mlp[-1].out_features
    vocabulary, block_size = config.vqgan.codebook_size + 1, len(model.masked_gpt.position_embedding.weight)
    sizes = {"n_layer": gpt.n_layer, "n_head": gpt.n_head, "n_embd": gpt.d_model}
    head = {"num_classes": n_classes, "use_deepcut": True, "deepcut_loss_weight": seg.deepcut_loss_weight}
    parameters = {
        "vqgan_path": "vqgan.ckpt",
        "vqgan_config": _tokenizer_parameters(config.vqgan),
        "gpt_config": {"vocab_size": vocabulary, "block_size": block_size} | sizes,
        "segmentation_config": head,
        "learning_rate": seg.learning_rate,
    }
    return _write(path, {_rename(key, to_ours=False): value for key, value in model.state_dict().items()}, parameters)


def save_tokenizer(vqgan: VQGAN, config: Config, path: str | Path) -> str:
    """Write a tokenizer of the recipe `released` likewise; `load_tokenizer` is the inverse."""
    _check_released(config, "vqgan.")
    state = {f"vqgan.{key}": value for key, value in vqgan.state_dict().items()}
    parameters = {"vqgan_config": _tokenizer_parameters(config.vqgan), "learning_rate": config.vqgan.learning_rate}
    return _write(path, state, parameters)


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist; train one, or see docs/upstream.md for the authors' files")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise all kinds for files that are something else
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise DataError(f"{path} cannot be read as a checkpoint ({reason}); download it again") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise DataError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    return checkpoint


def _write(path: str | Path, state: dict[str, Tensor], hyper_parameters: dict[str, Any]) -> str:
    """Write a checkpoint, with the discriminator and the perceptual loss beside the model; returns whose VGG it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*EfficientNet-Lite0")  # which is for training
        lpips = load_vgg()
    loss, constants = "vqgan.loss.perceptual_loss", {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    state |= {f"vqgan.discriminator.{key}": value for key, value in Discriminator(64).state_dict().items()}
    for key, value in lpips.net.state_dict().items():  # slice1.0.weight, of VGG16's first five blocks
        number, name = key.removeprefix("slice").split(".", 1)
        state[f"{loss}.blocks.{int(number) - 1}.{name}"] = value
    state |= {f"{loss}.{name}": torch.tensor(values).view(1, 3, 1, 1) for name, values in constants.items()}
    content = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.4.0", "hyper_parameters": hyper_parameters}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_write(path) as file:
        torch.save(content | {"state_dict": tensors}, file)
    return lpips.weights_name


def _model_part(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in checkpoint["state_dict"].items() if not _TRAINING_ONLY.search(key)}


def _rename(key: str, to_ours: bool) -> str:
    for names in _NAMES:
        old, new = names if to_ours else names[::-1]
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        renamed, found = re.subn(f"^{pattern}", new.replace("{}", r"\1"), key)
        if found:
            return renamed
    return key


def _load(model: Any, state: dict[str, Tensor], path: str | Path) -> Any:
    try:
        misfits = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit: {' '.join(str(error).split())}") from error
    missing, unexpected = ([_rename(key, to_ours=False) for key in keys] for keys in misfits)
    if missing or unexpected:
        raise DataError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")
    return model.eval()


def _tokenizer_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    codebook_size, code_dim = state["quantize.embedding.weight"].shape
    blocks = {key.split(".")[3] for key in state if key.startswith("encoder.down.0.") and ".block." in key}
    return {
        "vqgan.codebook_size": codebook_size,
        "vqgan.code_dim": code_dim,
        "vqgan.norm_groups": 32,
        "vqgan.hidden_channels": len(state["encoder.conv_in.weight"]),
        "vqgan.n_res_blocks": len(blocks),
    }


def _tokenizer_parameters(c: VQGANConfig) -> dict[str, int]:
    sizes = {"hidden_channels": c.hidden_channels, "n_res_blocks": c.n_res_blocks}
    return {"n_embed": c.codebook_size, "embed_dim": c.code_dim} | sizes


def _check_released(config: Config, part: str = "") -> None:
    """Raise ConfigError unless the released code, which has no options, computes what this configuration does."""
    released = RECIPES["released"] | {"segmentation.use_deepcut": True, "vqgan.norm_groups": 32}
    wrong = [
        f"{name} is {config.value(name)}, not {released[name]}"
        for name in _OPTIONS
        if name.startswith(part) and config.value(name) != released[name]
    ]
    if config.vqgan.hidden_channels % 32:
        wrong.append(f"vqgan.hidden_channels is {config.vqgan.hidden_channels}, not a multiple of 32")
    if wrong:
        raise ConfigError(
            f"the released code cannot hold this model: {'; '.join(wrong)}; train one with `tokencutseg train-seg` or "
            f"`--recipe released --preset full`"
        )
