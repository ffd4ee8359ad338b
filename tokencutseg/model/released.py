"""Opens checkpoints of the released code: Lightning files whose state dict names other modules than ours."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokencutseg.config import Config, configure
from tokencutseg.model.segmenter import TokenCutSeg
from tokencutseg.model.vqgan import VQGAN

_RENAMES = [
    (r"^deepcut_module\.", "head."),
    (r"^lm_head\.", "masked_gpt.lm_head."),
    (r"^gpt\.transformer\.embed\.word_embeddings\.", "masked_gpt.token_embedding."),
    (r"^gpt\.transformer\.embed\.position_embeddings\.", "masked_gpt.position_embedding."),
    (r"^gpt\.transformer\.embed\.layernorm\.", "masked_gpt.embedding_norm."),
    (r"^gpt\.transformer\.mlm_layer\.", "masked_gpt.tied_head."),
    (r"^gpt\.transformer\.layers\.(\d+)\.attention\.multihead_attn\.in_proj_", r"masked_gpt.blocks.\1.qkv."),
    (r"^gpt\.transformer\.layers\.(\d+)\.attention\.multihead_attn\.out_proj\.", r"masked_gpt.blocks.\1.out."),
    (r"^gpt\.transformer\.layers\.(\d+)\.attention\.layernorm\.", r"masked_gpt.blocks.\1.norm1."),
    (r"^gpt\.transformer\.layers\.(\d+)\.mlp\.layernorm\.", r"masked_gpt.blocks.\1.norm2."),
    (r"^gpt\.transformer\.layers\.(\d+)\.mlp\.", r"masked_gpt.blocks.\1."),
]
_LEFTOVERS = re.compile(r"^(vqgan\.)?(loss|discriminator)\.|perceptual_loss\.")
"""Parts of a checkpoint that only training needs: VGG16 weights, the discriminator."""


def load_segmenter(path: str | Path) -> TokenCutSeg:
    """A released segmentation checkpoint as a `TokenCutSeg` in evaluation mode.

    Sizes come from the tensors, the number of attention heads (which no tensor shows) from the hyper-parameters; four
    where they are missing, as in the released defaults. Raises ValueError when a key is missing or unexpected, and
    lists it.
    """
    checkpoint = _read(path)
    state = {_rename(key): value for key, value in checkpoint["state_dict"].items() if not _LEFTOVERS.search(key)}
    config = _config_of(state, checkpoint.get("hyper_parameters", {}).get("gpt_config", {}).get("n_head", 4))
    model = TokenCutSeg(config, n_classes=_classes(state))
    return _load(model, state, path)


def load_tokenizer(path: str | Path) -> VQGAN:
    """A released VQGAN checkpoint in evaluation mode. Raises ValueError as `load_segmenter` does."""
    state = {key.removeprefix("vqgan."): value for key, value in _read(path)["state_dict"].items()
             if not _LEFTOVERS.search(key)}
    sizes = _tokenizer_sizes(state)
    return _load(VQGAN(configure("full", "released", overrides=sizes).vqgan), state, path)


def _read(path: str | Path) -> dict[str, Any]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    return checkpoint


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _load(model: Any, state: dict[str, Tensor], path: str | Path) -> Any:
    result = model.load_state_dict(state, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise ValueError(f"{path} does not fit: missing {sorted(result.missing_keys)}, "
                         f"unexpected {sorted(result.unexpected_keys)}")
    return model.eval()


def _tokenizer_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    n_embed, embed_dim = state["quantize.embedding.weight"].shape
    blocks = {key.split(".")[3] for key in state if key.startswith("encoder.down.0.") and ".block." in key}
    return {"vqgan.n_embed": n_embed, "vqgan.embed_dim": embed_dim, "vqgan.norm_groups": 32,
            "vqgan.hidden_channels": len(state["encoder.conv_in.weight"]), "vqgan.n_res_blocks": len(blocks)}


def _classes(state: dict[str, Tensor]) -> int:
    return len(state["head.pool.mlp.4.weight"])


def _config_of(state: dict[str, Tensor], n_head: int) -> Config:
    """The released recipe with the sizes of a renamed state dict."""
    sizes = _tokenizer_sizes({key.removeprefix("vqgan."): value for key, value in state.items()
                              if key.startswith("vqgan.")})
    n_tokens, n_embd = state["masked_gpt.position_embedding.weight"].shape
    layers = {key.split(".")[2] for key in state if key.startswith("masked_gpt.blocks.")}
    return configure("full", "released", overrides=sizes | {
        "data.image_size": 4 * math.isqrt(n_tokens), "masked_gpt.n_embd": n_embd, "masked_gpt.n_layer": len(layers),
        "masked_gpt.n_head": n_head})
