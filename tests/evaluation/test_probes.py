"""Probes on features that say the answer, and their scores against torchmetrics and a plain bootstrap."""

from functools import partial

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_jaccard_index, multiclass_accuracy

from tokencutseg.config import configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation import probes
from tokencutseg.models.baselines import BASELINES, Baseline
from tokencutseg.models.encoders import LITE0_CHANNELS, build_lite0
from tokencutseg.models.tokencutseg import TokenCutSeg


def blobs(images, seed=0, side=6):
    """Square lesions on a grid of tokens: labels (N, T) bool."""
    rng, labels = np.random.default_rng(seed), torch.zeros(images, side, side, dtype=torch.bool)
    for one in labels:
        y, x = rng.integers(0, side - 2, 2)
        one[y : y + 3, x : x + 3] = True
    return labels.flatten(1)


graph_probe = partial(probes.train_graph_probe, grid=(6, 6), config=configure("tiny").segmentation)


@pytest.mark.parametrize("probe", [probes.train_linear_probe, graph_probe])
def test_probes_read_features_that_say_the_answer_and_not_those_that_do_not(probe):
    labels, test_labels = blobs(24), blobs(12, seed=1)
    generator = torch.Generator().manual_seed(0)

    def probed(signal):
        features, test_features = (
            signal * y[..., None] + torch.randn(*y.shape, 4, generator=generator) for y in (labels, test_labels)
        )
        scores = probe(features, labels, test_features)
        assert scores.shape == test_labels.shape
        return probes.token_scores(probes.token_records(scores, test_labels))

    assert probed(6.0)["balanced_accuracy"] > 0.95
    assert probed(0.0)["balanced_accuracy"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("lesion", [False, True])
def test_a_probe_of_one_class_gives_it(lesion):
    features, labels = torch.randn(3, 36, 4), torch.full((3, 36), lesion)
    with pytest.warns(UserWarning, match="no token"):
        scores = probes.train_linear_probe(features, labels, features[:2])
    assert scores.shape == (2, 36) and ((scores > 0) == lesion).all()
    found = probes.token_scores(probes.token_records(scores, labels[:2]))
    assert np.isnan(found["balanced_accuracy"]) and np.isnan(found["low"]) and found["iou"] == 1
    assert probes.token_scores(probes.token_records(scores, blobs(2)))["balanced_accuracy"] == 0.5


def test_token_scores_equal_torchmetrics():
    labels = blobs(20)
    scores = np.random.default_rng(0).normal(size=labels.shape) + labels.numpy()
    found, predicted = probes.token_scores(probes.token_records(scores, labels)), torch.from_numpy(scores > 0)
    assert found["iou"] == pytest.approx(binary_jaccard_index(predicted.int(), labels.int()).item(), abs=1e-6)
    accuracy = multiclass_accuracy(predicted.int().flatten(), labels.int().flatten(), 2, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
    assert found["low"] < found["balanced_accuracy"] < found["high"]
    one = probes.token_scores(probes.token_records(scores, labels, ["a"] * 20))
    assert one["low"] == one["high"] == pytest.approx(one["balanced_accuracy"]), "one cluster only: no spread"


def test_layer_features_are_those_of_one_pass():
    torch.manual_seed(0)
    model = TokenCutSeg(configure("tiny")).eval()
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet("x", "test", list("abcde"), pixels, None, None, [(32, 32)] * 5)
    found, x = probes.layer_features(model, images, batch_size=2), pixels.float() / 255
    with torch.no_grad():
        tokens, latents = model.encode_to_tokens(x)
        states = model.masked_gpt.hidden_states(tokens.flatten(1), latents.flatten(2).mT)
    assert list(found) == probes.layer_names(model)
    torch.testing.assert_close(found["output"].float(), states[-1], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found["tokenizer"].float(), latents.flatten(2).mT, atol=1e-2, rtol=1e-3)
    colour = x.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(2).mT
    torch.testing.assert_close(found["colour"].float(), colour, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stride", [1, 4])
def test_decoder_features_are_those_of_each_tokens_pixels(monkeypatch, stride):
    network = torch.nn.Module()
    network.segmentation_head = torch.nn.Upsample(scale_factor=stride)
    network.forward = lambda x: network.segmentation_head(torch.nn.functional.avg_pool2d(x, stride))
    monkeypatch.setitem(BASELINES, "mine", lambda: network)
    baseline = Baseline("mine", configure("tiny"))
    pixels = torch.randint(256, (3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet("x", "test", list("abc"), pixels, None, None, [(48, 48)] * 3)
    found = probes.decoder_features(baseline, images, (6, 6), batch_size=2)
    colour = (pixels / 255).unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5))
    torch.testing.assert_close(found, ((colour - baseline.mean) / baseline.std).flatten(2).mT)


def test_token_labels_go_by_majority():
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, :4, :3] = 1  # three quarters of the first token
    masks[0, 4:, 4:6] = 1  # half of the last one
    images = ImageSet("x", "test", ["a"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8), masks, None, [(8, 8)])
    assert probes.token_labels(images, (2, 2)).tolist() == [[True, False, False, False]]


def test_imagenet_features_are_the_encoders_own_at_the_grid_and_coarser():
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = probes.imagenet_features(
        ImageSet("own", "train", list("abc"), pixels, None, None, [(64, 64)] * 3), (8, 8), batch_size=2
    )
    assert found.shape == (3, 64, sum(LITE0_CHANNELS[2:]))
    with torch.no_grad():
        levels = build_lite0().eval()(2 * pixels.float() / 255 - 1)[1:]
    own = found.transpose(1, 2).unflatten(2, (8, 8)).float()
    torch.testing.assert_close(own[:, : LITE0_CHANNELS[2]], levels[2], atol=1e-2, rtol=1e-2)
    coarse = own[:, -LITE0_CHANNELS[4] :].unflatten(2, (2, 4)).mean(3).unflatten(3, (2, 4)).mean(4)
    torch.testing.assert_close(coarse, levels[4], atol=0.1 * levels[4].abs().max().item(), rtol=0)
