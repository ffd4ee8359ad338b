import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencutseg.config import MaskedGPTConfig, configure
from tokencutseg.models.masked_transformer import Block, MaskedTransformer, sample_token_mask

SMALL = MaskedGPTConfig(n_layer=2, n_head=2, d_model=16)


def transformer(**options):
    """Of 10 codes of width 4, for 36 tokens."""
    torch.manual_seed(0)
    sizes = {"vqgan.codebook_size": 10, "vqgan.code_dim": 4, "masked_gpt.n_head": 2, "masked_gpt.d_model": 16}
    options = {f"masked_gpt.{key}": value for key, value in options.items()}
    return MaskedTransformer(configure("tiny", overrides=sizes | options), n_positions=36).eval()


def test_post_norm_block_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    block = Block(dataclasses.replace(SMALL, norm="post")).eval()
    layer = torch.nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=False
    )
    layer.self_attn.in_proj_weight.data, layer.self_attn.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    layer.self_attn.out_proj.load_state_dict(block.out.state_dict())
    for theirs, ours in (("linear1", "fc1"), ("linear2", "fc2"), ("norm1", "norm1"), ("norm2", "norm2")):
        getattr(layer, theirs).load_state_dict(getattr(block, ours).state_dict())
    x = torch.randn(3, 9, 16)
    torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-5)  # train mode: no fused path
    weights = block.attention_weights(x, torch.tensor([2, 5]))
    assert weights.shape == (3, 2, 2, 9)
    _, expected = layer.self_attn(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights, expected[:, :, [2, 5]], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("inputs", ["tokens", "tokens_and_vectors"])
def test_masked_tokens_have_no_influence(inputs):
    gpt = transformer(inputs=inputs)
    tokens, vectors = torch.randint(10, (2, 36)), torch.randn(2, 36, 4)
    mask = torch.zeros(2, 36, dtype=torch.bool)
    mask[:, 7] = True
    others, other_vectors = tokens.clone(), vectors.clone()
    others[:, 7], other_vectors[:, 7] = (tokens[:, 7] + 1) % 10, 0.5
    torch.testing.assert_close(gpt(tokens, vectors, mask), gpt(others, other_vectors, mask))
    assert not torch.allclose(gpt(tokens, vectors), gpt(others, other_vectors))


def test_mask_ids():
    assert transformer(mask_id="zero").mask_id == 0
    assert transformer(mask_id="own").mask_id == 10


def test_missing_vectors():
    with pytest.raises(ValueError, match="pass `vectors`"):
        transformer()(torch.zeros(1, 36, dtype=torch.long))


def test_other_grids():
    gpt = transformer(inputs="tokens")
    assert gpt(torch.zeros(1, 20, dtype=torch.long), grid=(4, 5)).shape == (1, 20, 16)
    with pytest.raises(ValueError, match="20 tokens, but positions for 36"):
        gpt(torch.zeros(1, 20, dtype=torch.long))
    same = torch.randint(10, (1, 36))
    torch.testing.assert_close(gpt(same), gpt(same, grid=(6, 6)))


@given(
    st.sampled_from(["iid", "block", "variable"]),
    st.integers(1, 4),
    st.integers(2, 9),
    st.integers(2, 9),
    st.floats(0.05, 0.95),
)
@settings(max_examples=80, deadline=None)
def test_masks_are_neither_empty_nor_full(pattern, B, H, W, ratio):
    config = dataclasses.replace(SMALL, mask_pattern=pattern, mask_ratio=ratio)
    mask = sample_token_mask((B, H, W), config, torch.Generator().manual_seed(0))
    assert mask.shape == (B, H * W) and mask.dtype == torch.bool
    assert mask.any(1).all() and not mask.all(1).any()


@pytest.mark.parametrize("pattern", ["iid", "block", "variable"])
def test_mask_ratio(pattern):
    config = dataclasses.replace(SMALL, mask_pattern=pattern, mask_ratio=0.4)
    share = sample_token_mask((400, 12, 12), config, torch.Generator().manual_seed(0)).float().mean(1)
    assert share.mean().item() == pytest.approx(0.4, abs=0.02)
    assert share.std().item() == pytest.approx({"iid": 0.0408, "block": 0.0, "variable": 0.173}[pattern], abs=0.012)
    exact = sample_token_mask((50, 12, 12), config, torch.Generator().manual_seed(0), ratio=0.25).float().mean().item()
    assert exact == pytest.approx(0.25, abs=0.02)


def test_blocks_are_blocks():
    """A hidden token's right neighbour is hidden far more often than under the i.i.d. pattern."""

    def together(pattern):
        config = dataclasses.replace(SMALL, mask_pattern=pattern, mask_ratio=0.4)
        mask = sample_token_mask((200, 12, 12), config, torch.Generator().manual_seed(0)).view(200, 12, 12)
        return (mask[..., 1:] & mask[..., :-1]).sum().item() / mask[..., :-1].sum().item()

    assert together("iid") == pytest.approx(0.4, abs=0.02)
    assert together("block") > 0.6
