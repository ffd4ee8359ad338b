import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import VectorQuantize

from tokencutseg.config import VQGANConfig, configure
from tokencutseg.models.vqgan import VQGAN, Discriminator, EMAQuantizer


def quantizer_of(K, D, init="kmeans", restart=True):
    return EMAQuantizer(VQGANConfig(codebook_size=K, code_dim=D, codebook_init=init, restart_dead_codes=restart))


@pytest.mark.parametrize("recipe", ["released", "revised"])
def test_normalisation_and_its_inverse(recipe):
    vqgan = VQGAN(configure("tiny", recipe).vqgan)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(vqgan.denormalise(vqgan.normalise(images)), images)
    low, high = vqgan.normalise(torch.zeros(1, 3, 8, 8)).min(), vqgan.normalise(torch.ones(1, 3, 8, 8)).max()
    wanted = (-5.2357, 4.28) if recipe == "released" else (-1, 1)
    assert (low.item(), high.item()) == pytest.approx(wanted, abs=1e-2)


@given(st.sampled_from(["released", "revised"]), st.integers(1, 3), st.integers(2, 5))
@settings(max_examples=12, deadline=None)
def test_shapes(recipe, batch, cells):
    config = configure("tiny", recipe).vqgan
    vqgan, stride = VQGAN(config).eval(), 2**config.n_stages
    images = torch.rand(batch, 3, cells * stride, cells * stride)
    reconstruction, quantized = vqgan(vqgan.normalise(images))
    assert reconstruction.shape == images.shape and reconstruction.abs().max() <= 1
    assert quantized.tokens.shape == (batch, cells, cells)
    assert quantized.vectors.shape == (batch, config.code_dim, cells, cells)
    assert torch.equal(vqgan.tokenize(images), quantized.tokens)
    assert vqgan.detokenize(quantized.tokens).shape == images.shape


def test_ema_equals_vector_quantize_pytorch():
    """Same codes after several updates, from the same codes and counts."""
    torch.manual_seed(0)
    K, D = 16, 4
    settings = dict(decay=0.99, commitment_weight=0.25, rotation_trick=False, threshold_ema_dead_code=0)
    theirs = VectorQuantize(dim=D, codebook_size=K, eps=1e-5, **settings)
    codebook = theirs._codebook
    ours = quantizer_of(K, D, init="uniform", restart=False)
    start = torch.randn(K, D)
    with torch.no_grad():
        ours.embedding.weight.copy_(start)
        ours.embedding_avg.copy_(start)
        ours.cluster_size.fill_(1)
        codebook.embed.copy_(start[None])
        codebook.embed_avg.copy_(start[None])
        codebook.cluster_size.fill_(1)
        codebook.initted.fill_(True)
    ours.train(), theirs.train()
    for _ in range(5):
        z = torch.randn(3, D, 4, 4)
        quantized = ours(z)
        vectors, indices, _ = theirs(z.permute(0, 2, 3, 1).reshape(3, 16, D))
        assert torch.equal(quantized.tokens.reshape(3, 16), indices)
        torch.testing.assert_close(quantized.vectors.permute(0, 2, 3, 1).reshape(3, 16, D), vectors)
    torch.testing.assert_close(ours.embedding.weight, codebook.embed[0], atol=1e-5, rtol=1e-4)


def test_straight_through_gradient():
    quantizer = quantizer_of(8, 4)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantized = quantizer(z)
    weight = torch.randn_like(z)
    (quantized.vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert not quantizer.embedding.weight.requires_grad


def test_kmeans_and_restarts_keep_codes_alive():
    """Vectors in one far corner: codes that start near the origin all die but one, codes from data all live."""
    torch.manual_seed(0)

    def used(**options):
        quantizer = quantizer_of(16, 4, **options).train()
        for _ in range(60):
            tokens = quantizer(torch.randn(4, 4, 8, 8) * 0.3 + 5).tokens
        return len(tokens.unique())

    assert used(init="uniform", restart=False) <= 4
    assert used(init="kmeans") >= 15
    assert used(init="uniform") >= 12


def test_the_discriminator_judges_patches():
    assert Discriminator(64)(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 6, 6)
