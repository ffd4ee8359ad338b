"""Opens and writes checkpoints of the released code: Lightning files whose state dict names other modules than ours.

A file holds `state_dict` and plain `hyper_parameters`. Beside the model it carries what only training needs, the
PatchGAN and the VGG16 of the perceptual loss; reading ignores these by name, writing adds them, since a Lightning
module loads strictly.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
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

_NAMES = [
    ("deepcut_module.", "head."),
    ("lm_head.", "masked_gpt.lm_head."),
    ("gpt.transformer.embed.word_embeddings.", "masked_gpt.token_embedding."),
    ("gpt.transformer.embed.position_embeddings.", "masked_gpt.position_embedding."),
    ("gpt.transformer.embed.layernorm.", "masked_gpt.embedding_norm."),
    ("gpt.transformer.mlm_layer.", "masked_gpt.tied_head."),
    ("gpt.transformer.layers.{}.attention.multihead_attn.in_proj_", "masked_gpt.blocks.{}.qkv."),
    ("gpt.transformer.layers.{}.attention.multihead_attn.out_proj.", "masked_gpt.blocks.{}.out."),
    ("gpt.transformer.layers.{}.attention.layernorm.", "masked_gpt.blocks.{}.norm1."),
    ("gpt.transformer.layers.{}.mlp.layernorm.", "masked_gpt.blocks.{}.norm2."),
    ("gpt.transformer.layers.{}.mlp.", "masked_gpt.blocks.{}."),
]
"""Beginnings of names, theirs and ours; the first that fits counts. The tokenizer's names are the same."""
_LEFTOVERS = re.compile(r"^(vqgan\.)?(loss|discriminator)\.|perceptual_loss\.")
_DEFAULT_HEADS = 4
_VGG_SLICES = (0, 4, 9, 16, 23, 30)
_SWITCHES = (
    "vqgan.n_stages",
    "vqgan.input_normalisation",
    "masked_gpt.inputs",
    "masked_gpt.norm",
    "masked_gpt.positions",
    "segmentation.use_deepcut",
    "segmentation.affinity",
    "segmentation.graph_radius",
    "segmentation.radius_unit",
    "segmentation.upsampling",
    "segmentation.encoder",
    "segmentation.loss_input",
    "segmentation.test_time_flips",
)
"""What decides the numbers of a forward pass: to be written, a model must have the released value of each."""


def load_segmenter(path: str | Path, image_size: int | None = None, n_head: int | None = None) -> TokenCutSeg:
    """A released segmentation checkpoint as a `TokenCutSeg` in evaluation mode.

    Sizes come from the tensors. The number of attention heads, which no tensor shows, comes from the hyper-parameters;
    where they are missing it is `n_head`, by default four as in the released defaults. `image_size`, the side in pixels
    at which `predict` works, is by default the one that the position table was made for.

    Raises DataError for a file that is no such checkpoint, and when a key is missing or unexpected (all are listed).
    """
    checkpoint = _read(path)
    state = _model_part(checkpoint)
    state = {_rename(key, to_ours=True): value for key, value in state.items()}
    parameters = checkpoint.get("hyper_parameters") or {}
    heads = (parameters.get("gpt_config") or {}).get("n_head", n_head or _DEFAULT_HEADS)
    try:
        config, n_positions = _config_of(state, heads, image_size)
        model = TokenCutSeg(config, n_classes=len(state["head.pool.mlp.4.weight"]), n_positions=n_positions)
    except KeyError as error:
        raise DataError(
            f"{path} is not a released segmentation checkpoint: {_rename(error.args[0], to_ours=False)} is missing"
        ) from error
    return _load(model, state, path)


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
    were written is returned); only training reads them. Raises ConfigError for a model that the released code has no
    words for, naming what differs.
    """
    config = model.config
    _check_released(config)
    if model.masked_gpt.tied_head is None:
        raise ConfigError(
            "the released code cannot hold this model: it has no tied vocabulary head, as models of the "
            "recipe released do"
        )
    parts, vgg = _training_parts()
    state = {_rename(key, to_ours=False): value for key, value in model.state_dict().items()}
    gpt = {key: getattr(config.masked_gpt, key) for key in ("n_layer", "n_head", "n_embd")}
    _write(
        path,
        state | parts,
        {
            "vqgan_path": "vqgan.ckpt",
            "vqgan_config": _vqgan_parameters(config),
            "gpt_config": {
                "vocab_size": config.vqgan.codebook_size + 1,
                "block_size": len(model.masked_gpt.position_embedding.weight),
                **gpt,
            },
            "segmentation_config": {
                "num_classes": model.head.pool.mlp[-1].out_features,
                "use_deepcut": True,
                "deepcut_loss_weight": config.segmentation.deepcut_loss_weight,
            },
            "learning_rate": config.segmentation.learning_rate,
        },
    )
    return vgg


def save_tokenizer(vqgan: VQGAN, config: Config, path: str | Path) -> str:
    """Write a tokenizer of the recipe `released` likewise; `load_tokenizer` is the inverse."""
    _check_released(config, "vqgan.")
    parts, vgg = _training_parts()
    state = {f"vqgan.{key}": value for key, value in vqgan.state_dict().items()}
    _write(
        path, state | parts, {"vqgan_config": _vqgan_parameters(config), "learning_rate": config.vqgan.learning_rate}
    )
    return vgg


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist; the README says where the authors' files are")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        struct.error,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:  # torch's readers raise all of these for files that are something else
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise DataError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}); download it "
            f"again, or give another file"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise DataError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    return checkpoint


def _write(path: str | Path, state: dict[str, Tensor], hyper_parameters: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        torch.save(
            {
                "epoch": 0,
                "global_step": 0,
                "pytorch-lightning_version": "2.4.0",
                "state_dict": {key: value.detach().cpu().contiguous() for key, value in state.items()},
                "hyper_parameters": hyper_parameters,
            },
            file,
        )


def _model_part(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in checkpoint["state_dict"].items() if not _LEFTOVERS.search(key)}


def _training_parts() -> tuple[dict[str, Tensor], str]:
    """What a released file holds beside its model, the discriminator and the perceptual loss; and whose VGG it is."""
    parts = {f"vqgan.discriminator.{key}": value for key, value in Discriminator(64).state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LPIPS compares random features")  # the caller says it
        lpips, name = load_lpips()
    layers = [layer for part in lpips.net.children() if isinstance(part, nn.Sequential) for layer in part]
    loss = "vqgan.loss.perceptual_loss"
    for i, layer in enumerate(layers):
        block = sum(i >= start for start in _VGG_SLICES) - 1
        parts |= {f"{loss}.blocks.{block}.{i}.{key}": value for key, value in layer.state_dict().items()}
    return parts | {
        f"{loss}.mean": torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1),
        f"{loss}.std": torch.tensor(IMAGENET_STD).view(1, 3, 1, 1),
    }, name


def _rename(key: str, to_ours: bool) -> str:
    for theirs, ours in _NAMES:
        old, new = (theirs, ours) if to_ours else (ours, theirs)
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        renamed, found = re.subn(f"^{pattern}", new.replace("{}", r"\1"), key)
        if found:
            return renamed
    return key


def _load(model: Any, state: dict[str, Tensor], path: str | Path) -> Any:
    named = {key: _rename(key, to_ours=False) for key in model.state_dict()}
    missing = sorted(theirs for ours, theirs in named.items() if ours not in state)
    unexpected = sorted(_rename(key, to_ours=False) for key in state if key not in named)
    if missing or unexpected:
        raise DataError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit: {' '.join(str(error).split())}") from error
    return model.eval()


def _tokenizer_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    n_embed, embed_dim = state["quantize.embedding.weight"].shape
    blocks = {key.split(".")[3] for key in state if key.startswith("encoder.down.0.") and ".block." in key}
    return {
        "vqgan.codebook_size": n_embed,
        "vqgan.code_dim": embed_dim,
        "vqgan.norm_groups": 32,
        "vqgan.hidden_channels": len(state["encoder.conv_in.weight"]),
        "vqgan.n_res_blocks": len(blocks),
    }


def _config_of(state: dict[str, Tensor], n_head: int, image_size: int | None) -> tuple[Config, int]:
    """The released recipe with the sizes of a renamed state dict, and the length of its position table."""
    sizes = _tokenizer_sizes(
        {key.removeprefix("vqgan."): value for key, value in state.items() if key.startswith("vqgan.")}
    )
    n_positions, n_embd = state["masked_gpt.position_embedding.weight"].shape
    layers = {key.split(".")[2] for key in state if key.startswith("masked_gpt.blocks.")}
    return configure(
        "full",
        "released",
        overrides=sizes
        | {
            "data.image_size": image_size or 4 * math.isqrt(n_positions),
            "masked_gpt.d_model": n_embd,
            "masked_gpt.n_layer": len(layers),
            "masked_gpt.n_head": n_head,
        },
    ), n_positions


def _vqgan_parameters(config: Config) -> dict[str, int]:
    return {key: getattr(config.vqgan, key) for key in ("n_embed", "embed_dim", "hidden_channels", "n_res_blocks")}


def _check_released(config: Config, part: str = "") -> None:
    """Raise ConfigError unless the released code, which has no switches, computes what this configuration does."""
    released = RECIPES["released"] | {"segmentation.use_deepcut": True}
    wrong = []
    for switch in _SWITCHES:
        if switch.startswith(part) and (value := config.value(switch)) != released[switch]:
            wrong.append(f"{switch} is {value}, not {released[switch]}")
    if config.vqgan.norm_groups != 32 or config.vqgan.hidden_channels % 32:
        wrong.append(
            f"vqgan.hidden_channels is {config.vqgan.hidden_channels} with {config.vqgan.norm_groups} norm "
            f"groups, not a multiple of 32 with 32 groups"
        )
    if wrong:
        raise ConfigError(
            f"the released code cannot hold this model: {'; '.join(wrong)}; train one with "
            f"`tokencutseg train-seg` or `--recipe released --preset full`"
        )
