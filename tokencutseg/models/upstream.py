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
from torch import Tensor, nn

from tokencutseg.config import RECIPES, Config, ConfigError, configure
from tokencutseg.data.images import DataError
from tokencutseg.files import atomic_write
from tokencutseg.models.perceptual import load_lpips
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
_DEFAULT_HEADS = 4
_VGG_SLICES = (0, 4, 9, 16, 23, 30)
_HYPER_PARAMETERS = {
    "n_embed": "vqgan.codebook_size",
    "embed_dim": "vqgan.code_dim",
    "hidden_channels": "vqgan.hidden_channels",
    "n_res_blocks": "vqgan.n_res_blocks",
    "n_layer": "masked_gpt.n_layer",
    "n_head": "masked_gpt.n_head",
    "n_embd": "masked_gpt.d_model",
}
"""Upstream's names of our settings."""
_OPTIONS = [
    *(f"vqgan.{key}" for key in ("n_stages", "input_normalisation")),
    *(f"masked_gpt.{key}" for key in ("inputs", "norm", "positions")),
    *(f"segmentation.{key}" for key in ("use_deepcut", "affinity", "graph_radius", "radius_unit")),
    *(f"segmentation.{key}" for key in ("upsampling", "encoder", "loss_input", "test_time_flips")),
]
"""What decides the numbers of a forward pass: to be written, a model must have the released value of each."""


def load_segmenter(path: str | Path, image_size: int | None = None, n_head: int | None = None) -> TokenCutSeg:
    """A released segmentation checkpoint as a `TokenCutSeg` in evaluation mode.

    Sizes come from the tensors. The number of attention heads, which no tensor shows, comes from the hyper-parameters;
    where they are missing it is `n_head`, by default four as in the released defaults. `image_size`, the side in pixels
    at which `predict` works, is by default the one that the position table was made for.

    Raises DataError for a file that is no such checkpoint, and when a key is missing or unexpected (all are listed).
    """
    checkpoint = _read(path)
    state = {_rename(key, to_ours=True): value for key, value in _model_part(checkpoint).items()}
    gpt = (checkpoint.get("hyper_parameters") or {}).get("gpt_config") or {}
    try:
        tokenizer = {key.removeprefix("vqgan."): value for key, value in state.items() if key.startswith("vqgan.")}
        n_positions, d_model = state["masked_gpt.position_embedding.weight"].shape
        sizes = _tokenizer_sizes(tokenizer) | {
            "data.image_size": image_size or 4 * math.isqrt(n_positions),
            "masked_gpt.d_model": d_model,
            "masked_gpt.n_layer": len({key.split(".")[2] for key in state if key.startswith("masked_gpt.blocks.")}),
            "masked_gpt.n_head": gpt.get("n_head", n_head or _DEFAULT_HEADS),
        }
        n_classes = len(state["head.gnn.mlp.4.weight"])
    except KeyError as error:
        missing = _rename(error.args[0], to_ours=False)
        raise DataError(f"{path} is not a released segmentation checkpoint: {missing} is missing") from error
    return _load(TokenCutSeg(configure("full", "released", overrides=sizes), n_classes, n_positions), state, path)


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
    block_size = len(model.masked_gpt.position_embedding.weight)
    return _write(
        path,
        {_rename(key, to_ours=False): value for key, value in model.state_dict().items()},
        {
            "vqgan_path": "vqgan.ckpt",
            "vqgan_config": _hyper_parameters(config, "vqgan"),
            "gpt_config": {"vocab_size": config.vqgan.codebook_size + 1, "block_size": block_size}
            | _hyper_parameters(config, "masked_gpt"),
            "segmentation_config": {
                "num_classes": model.head.gnn.mlp[-1].out_features,
                "use_deepcut": True,
                "deepcut_loss_weight": config.segmentation.deepcut_loss_weight,
            },
            "learning_rate": config.segmentation.learning_rate,
        },
    )


def save_tokenizer(vqgan: VQGAN, config: Config, path: str | Path) -> str:
    """Write a tokenizer of the recipe `released` likewise; `load_tokenizer` is the inverse."""
    _check_released(config, "vqgan.")
    state = {f"vqgan.{key}": value for key, value in vqgan.state_dict().items()}
    parameters = {"vqgan_config": _hyper_parameters(config, "vqgan"), "learning_rate": config.vqgan.learning_rate}
    return _write(path, state, parameters)


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist; the README says where the authors' files are")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise all kinds for files that are something else
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise DataError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}); download it again, or give "
            f"another file"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise DataError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    return checkpoint


def _write(path: str | Path, state: dict[str, Tensor], hyper_parameters: dict[str, Any]) -> str:
    parts, vgg = _training_parts()
    content = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.4.0", "hyper_parameters": hyper_parameters}
    tensors = {key: value.detach().cpu().contiguous() for key, value in (state | parts).items()}
    with atomic_write(path) as file:
        torch.save(content | {"state_dict": tensors}, file)
    return vgg


def _model_part(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in checkpoint["state_dict"].items() if not _TRAINING_ONLY.search(key)}


def _training_parts() -> tuple[dict[str, Tensor], str]:
    """What a released file holds beside its model, the discriminator and the perceptual loss; and whose VGG it is."""
    parts = {f"vqgan.discriminator.{key}": value for key, value in Discriminator(64).state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LPIPS compares random features")  # the caller prints it
        lpips, name = load_lpips()
    layers = [layer for part in lpips.net.children() if isinstance(part, nn.Sequential) for layer in part]
    loss = "vqgan.loss.perceptual_loss"
    for i, layer in enumerate(layers):
        block = sum(i >= start for start in _VGG_SLICES) - 1
        parts |= {f"{loss}.blocks.{block}.{i}.{key}": value for key, value in layer.state_dict().items()}
    for key, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        parts[f"{loss}.{key}"] = torch.tensor(values).view(1, 3, 1, 1)
    return parts, name


def _rename(key: str, to_ours: bool) -> str:
    for names in _NAMES:
        old, new = names if to_ours else names[::-1]
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        renamed, found = re.subn(f"^{pattern}", new.replace("{}", r"\1"), key)
        if found:
            return renamed
    return key


def _load(model: Any, state: dict[str, Tensor], path: str | Path) -> Any:
    own = model.state_dict()
    missing, unexpected = (
        sorted(_rename(key, to_ours=False) for key in a if key not in b) for a, b in ((own, state), (state, own))
    )
    if missing or unexpected:
        raise DataError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit: {' '.join(str(error).split())}") from error
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


def _hyper_parameters(config: Config, stage: str) -> dict[str, int]:
    return {name: config.value(key) for name, key in _HYPER_PARAMETERS.items() if key.startswith(stage)}


def _check_released(config: Config, part: str = "") -> None:
    """Raise ConfigError unless the released code, which has no options, computes what this configuration does."""
    released = RECIPES["released"] | {"segmentation.use_deepcut": True}
    wrong = [
        f"{name} is {config.value(name)}, not {released[name]}"
        for name in _OPTIONS
        if name.startswith(part) and config.value(name) != released[name]
    ]
    c = config.vqgan
    if c.norm_groups != 32 or c.hidden_channels % 32:
        wrong.append(
            f"vqgan.hidden_channels is {c.hidden_channels} with {c.norm_groups} norm groups, not a multiple of 32 with "
            f"32 groups"
        )
    if wrong:
        raise ConfigError(
            f"the released code cannot hold this model: {'; '.join(wrong)}; train one with `tokencutseg train-seg` or "
            f"`--recipe released --preset full`"
        )
