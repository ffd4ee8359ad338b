"""Masked-token prediction, attention and decoded codes of an untrained model, against plain formulas."""

import pytest
import torch

from tokencutseg.config import configure
from tokencutseg.evaluation import inspection
from tokencutseg.models.tokencutseg import TokenCutSeg

K, S, GRID = 16, 32, (4, 4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TokenCutSeg(configure("tiny")).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, S, S, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pattern", ["iid", "block"])
def test_token_masks_keep_to_ratio_and_seed(pattern):
    config = configure("tiny").masked_gpt
    masks = inspection.sample_token_masks(config, pattern, 0.3, (12, 12), 50, seed=3)
    assert masks.shape == (50, 12, 12)
    assert masks.float().mean() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(masks, inspection.sample_token_masks(config, pattern, 0.3, (12, 12), 50, seed=3))


def test_inpaint_predicts_masked_tokens_only(model, images):
    mask = inspection.sample_token_masks(model.config.masked_gpt, "block", 0.5, GRID, 2)
    result = inspection.inpaint(model, images, mask)
    tokens, _ = model.encode_to_tokens(images)
    assert torch.equal(result.tokens, tokens)
    assert torch.equal(result.filled[~mask], tokens[~mask])
    features = model.transformer_features(*model.encode_to_tokens(images), mask.flatten(1))
    p = model.masked_gpt.lm_head(features)[..., :K].double().softmax(-1)
    assert torch.equal(result.filled[mask], p.argmax(-1).view(2, *GRID)[mask])
    torch.testing.assert_close(result.entropy.double(), -(p * p.log()).sum(-1).view(2, *GRID), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.probabilities.double(), p.view(2, *GRID, K), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.decoded, model.vqgan.detokenize(result.filled))


def test_attention_is_a_distribution_over_the_tokens(model, images):
    weights = inspection.attention(model, images[0], torch.tensor([0, 7, 15]))
    assert weights.shape == (2, model.config.masked_gpt.n_head, 3, *GRID)
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(weights.shape[:3]))


def test_lesion_and_skin_are_the_middle_and_the_far_corner():
    mask = torch.zeros(S, S, dtype=torch.uint8)
    mask[:8, 8:16] = 1  # the token (0, 1)
    assert inspection.lesion_and_skin(mask, GRID).tolist() == [1, 15]
    middle, far = inspection.lesion_and_skin(torch.zeros_like(mask), GRID).tolist()
    assert middle in (5, 6, 9, 10) and far in (0, 3, 12, 15), "of the image, where there is no lesion"


def test_mean_decoded_patch_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(K - 2, (3, *GRID), generator=generator)  # the last two codes are never used
    decoded = torch.rand(3, 3, S, S, generator=generator)
    patches = inspection.mean_decoded_patch(tokens, decoded, K)
    assert patches[-2:].isnan().all()
    f = S // GRID[0]
    for code in tokens.unique().tolist():
        places = (tokens == code).nonzero().tolist()
        cut = [decoded[n, :, y * f : (y + 1) * f, x * f : (x + 1) * f] for n, y, x in places]
        torch.testing.assert_close(patches[code], torch.stack(cut).mean(0))


def test_principal_colours_follow_the_main_axes():
    """Three orthogonal directions of falling variance: each colour is one coordinate, up to its sign, stretched."""
    coordinates = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(1))).Q
    colours = inspection.principal_colours(coordinates @ basis.T)
    assert colours.shape == (500, 3) and colours.min() == 0 and colours.max() == 1
    for i in range(3):
        assert abs(torch.corrcoef(torch.stack([colours[:, i], coordinates[:, i]]))[0, 1]) > 0.95
