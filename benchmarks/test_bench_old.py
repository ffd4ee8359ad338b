"""The bench: its plain formulations compute what the package computes, and its numbers hold together."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tokencutseg.bench import lines, measure, plain, report

from tokencutseg.cli import main
from tokencutseg.config import configure
from tokencutseg.data import synthetic
from tokencutseg.evaluation.cost import flops
from tokencutseg.evaluation.per_image import score
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import EMAQuantizer

SMALL = configure(
    "full",
    "released",
    overrides={
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
    },
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TokenCutSeg(SMALL).eval()


@torch.no_grad()
def test_plain_prediction_equals_ours(model):
    images = torch.rand(2, 3, 48, 48)
    out = model(images)
    features = plain.transformer(model.masked_gpt, out.tokens)
    torch.testing.assert_close(features, out.features, atol=1e-5, rtol=1e-4)
    assignments, loss = plain.deepcut(model.head, out.features, (12, 12))
    torch.testing.assert_close(assignments, out.assignments, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, out.deepcut_loss, atol=1e-5, rtol=1e-4)
    assert (plain.predict(model, images) == out.mask).float().mean() > 0.999


def test_plain_gradients_equal_ours(model):
    features = torch.randn(2, 144, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = []
    for form in ("ours", "plain"):
        if form == "ours":
            S = model.head(features, (12, 12)).softmax(-1)
            loss = model.head.loss(S, features, (12, 12))
        else:
            S, loss = plain.deepcut(model.head, features, (12, 12))
        gradients.append(torch.autograd.grad(loss + S.square().sum(), features)[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_plain_quantizer_equals_ours():
    torch.manual_seed(0)
    ours, theirs = (EMAQuantizer(12, 8, start="uniform", restart_dead=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        z = torch.randn(2, 8, 5, 5)
        a, b = ours(z), plain.quantize(theirs, z)
        assert torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close(a.vectors, b.vectors)
        torch.testing.assert_close(a.commitment_loss, b.commitment_loss)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


def test_plain_scores_equal_ours():
    target = synthetic.generate("site_a", 4, 32, 0)[1]
    prediction = target ^ (np.random.default_rng(0).random(target.shape) < 0.1)
    records = score(prediction, target, list("abcd"), boundary=False)
    assert plain.count_overlap(prediction, target) == pytest.approx(records["iou"].mean())


def test_operations_are_those_that_torch_counts(model):
    tokens = torch.zeros(1, 144, dtype=torch.long)
    assert lines.transformer_flops(SMALL) == flops(model.masked_gpt, tokens)
    encode, decode = lines.tokenizer_flops(SMALL)
    images = torch.rand(1, 3, 48, 48)
    both = flops(model.vqgan, images)
    assert encode + decode == both


def test_alternation_gives_each_call_as_many_rounds():
    called = []
    timings = measure.alternate([lambda: called.append("a"), lambda: called.append("b")], "cpu", budget=0, least=4)
    assert [len(timing.seconds) for timing in timings] == [4, 4]
    # one warm-up and one for the memory beside the timed ones, in turn
    assert called[:10] == ["a", "b"] * 5 and called.count("a") == called.count("b") == 6
    timing = measure.Timing((1.0, 2.0, 3.0, 4.0, 5.0), 0)
    assert timing.median == 3 and timing.spread == pytest.approx(1 / 3)
    grown = measure.alternate([lambda: torch.zeros(2**18)], "cpu", budget=0)[0]
    assert grown.peak_bytes == 2**20


def test_exponents_are_the_slopes():
    T = np.array([16, 64, 256])
    table = pd.DataFrame({"part": "x", "T": T, "seconds": 3.0 * T**2, "peak_bytes": 5.0 * T})
    fitted = report.exponents(table).iloc[0]
    assert (fitted["part"], fitted["time"], fitted["memory"]) == ("x", pytest.approx(2), pytest.approx(1))


def test_the_whole_bench_on_small_sizes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lines, "paper_config", lambda: SMALL)
    monkeypatch.setattr(report, "SIDES", (8, 12))
    assert (
        main(
            [
                "bench",
                "--device",
                "cpu",
                "--quick",
                "--out",
                str(tmp_path / "bench"),
                "--json",
                str(tmp_path / "all.json"),
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / "all.json").read_text())
    table = pd.read_csv(tmp_path / "bench" / "lines.csv")
    assert list(table["line"]) == [row["line"] for row in result["lines"]]
    names = set(table["line"])
    for part in (
        "graph module, forward",
        "graph module, forward + backward",
        "graph module, also to its features",
        "training loop of stage 3, preset quick",
        "transformer, forward",
        "transformer + graph, training step",
        "tokenizer, encode",
        "tokenizer, decode",
        "tokenizer, training step",
        "quantizer, training step",
        "segmenter, training step",
        "image → mask",
        "data pipeline with augmentation",
        "scoring",
    ):
        assert part in names
    assert {"vector-quantize-pytorch", "dense T×T adjacency"} <= set(table["against"])
    compared = table.dropna(subset="ratio")
    np.testing.assert_allclose(compared["ratio"], compared["plain_seconds"] / compared["seconds"])
    scaling = pd.read_csv(tmp_path / "bench" / "scaling.csv")
    assert sorted(set(scaling["T"])) == [64, 144] and (scaling["peak_bytes"] > 0).all()
    assert result["machine"]["matmul_flops_per_second"] > 0
    projected = pd.DataFrame(result["projection"])
    assert list(projected["images_seen"]) == [100 * 2000, 200 * 2000]
    for name in ("ratios.png", "scaling.png", "exponents.csv", "projection.csv", "machine.json"):
        assert (tmp_path / "bench" / name).stat().st_size > 0
    assert "images/s" in capsys.readouterr().out


def test_a_gpu_that_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda", "--out", str(tmp_path / "bench")]) == 2
    assert "there is no GPU here; use --device cpu" in capsys.readouterr().err
