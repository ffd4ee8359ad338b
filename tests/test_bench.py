"""The plain formulations equal the package's, and the benchmark runs on small sizes."""

import bench
import numpy as np
import oracles
import pandas as pd
import pytest
import torch

from tokencutseg.config import VQGANConfig, configure
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import EMAQuantizer

SIZES = {
    "data.image_size": 48,
    "vqgan.hidden_channels": 32,
    "vqgan.n_res_blocks": 1,
    "vqgan.codebook_size": 12,
    "vqgan.code_dim": 8,
    "vqgan.disc_channels": 8,
    "masked_gpt.n_layer": 2,
    "masked_gpt.n_head": 2,
    "masked_gpt.d_model": 16,
    "segmentation.graph_radius": 0.2,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TokenCutSeg(configure("full", "released", overrides=SIZES)).eval()


@torch.no_grad()
def test_plain_prediction(model):
    images = torch.rand(2, 3, 48, 48)
    out = model(images)
    features = oracles.transformer(model.masked_gpt, out.tokens)
    torch.testing.assert_close(features, out.features, atol=1e-5, rtol=1e-4)
    assignments, loss = oracles.deepcut(model.head, out.features, (12, 12))
    torch.testing.assert_close(assignments, out.assignments, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, out.deepcut_loss, atol=1e-5, rtol=1e-4)
    assert (oracles.predict(model, images) == out.mask).float().mean() > 0.999


def test_plain_loss_and_gradients(model):
    head, generator, grid = model.head.double(), torch.Generator().manual_seed(0), (12, 10)
    features = torch.randn(2, 120, 16, dtype=torch.float64, generator=generator).requires_grad_()
    S = head(features, grid).softmax(-1)
    plain_S, plain_loss = oracles.deepcut(head, features, grid)
    loss = head.loss(S, features, grid)
    (ours,) = torch.autograd.grad(loss + S.square().sum(), features)
    (plain,) = torch.autograd.grad(plain_loss + plain_S.square().sum(), features)
    torch.testing.assert_close((S, loss, ours), (plain_S, plain_loss, plain), atol=1e-9, rtol=1e-9)


def test_plain_quantizer():
    torch.manual_seed(0)
    config = VQGANConfig(codebook_size=12, code_dim=8, codebook_init="uniform", restart_dead_codes=False)
    ours, plain = EMAQuantizer(config), EMAQuantizer(config)
    plain.load_state_dict(ours.state_dict())
    for _ in range(3):
        z = torch.randn(2, 8, 5, 5)
        a, b = ours(z), oracles.quantize(plain, z)
        assert torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close((a.vectors, a.commitment_loss), (b.vectors, b.commitment_loss))
    torch.testing.assert_close(dict(ours.state_dict()), dict(plain.state_dict()))


def test_benchmark_on_small_sizes(tmp_path):
    out = tmp_path / "bench.csv"
    settings = [f"{key}={value}" for key, value in SIZES.items()]
    bench.main(["--seconds", "0", "--out", str(out), "--set", *settings])
    table = pd.read_csv(out)
    assert {"graph module, forward", "image → mask", "scoring", "loading with augmentation"} <= set(table["part"])
    np.testing.assert_allclose(table["faster"], table["plain_seconds"] / table["seconds"])
