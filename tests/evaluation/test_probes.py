"""Probes on features that say the answer, and their scores against torchmetrics and a plain bootstrap."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_jaccard_index, multiclass_accuracy

from tokencutseg.config import configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.probes import (
    iou_difference,
    layer_features,
    layer_names,
    probe_scores,
    token_labels,
    train_graph_probe,
    train_linear_probe,
)
from tokencutseg.models.tokencutseg import TokenCutSeg


def blobs(images, seed=0, side=6):
    """Square lesions on a grid of tokens: labels (N, T) bool."""
    rng, labels = np.random.default_rng(seed), torch.zeros(images, side, side, dtype=torch.bool)
    for one in labels:
        y, x = rng.integers(0, side - 2, 2)
        one[y : y + 3, x : x + 3] = True
    return labels.flatten(1)


@pytest.mark.parametrize("head", ["linear", "graph"])
def test_probes_read_features_that_say_the_answer_and_not_those_that_do_not(head):
    labels, test_labels = blobs(24), blobs(12, seed=1)
    generator = torch.Generator().manual_seed(0)
    config = configure("tiny").segmentation

    def probed(signal):
        pairs = [
            signal * y[..., None].float() + torch.randn(*y.shape, 4, generator=generator) for y in (labels, test_labels)
        ]
        scores = (
            train_linear_probe(pairs[0], labels, pairs[1])
            if head == "linear"
            else train_graph_probe(pairs[0], labels, pairs[1], (6, 6), config)
        )
        assert scores.shape == test_labels.shape
        return probe_scores(scores, test_labels)

    assert probed(6.0)["balanced_accuracy"] > 0.95
    assert probed(0.0)["balanced_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_probe_scores_equal_torchmetrics():
    labels = blobs(20)
    scores = np.random.default_rng(0).normal(size=labels.shape) + labels.numpy()
    found, predicted = probe_scores(scores, labels), torch.from_numpy(scores > 0)
    assert found["iou"] == pytest.approx(binary_jaccard_index(predicted.int(), labels.int()).item(), abs=1e-6)
    accuracy = multiclass_accuracy(predicted.int().flatten(), labels.int().flatten(), 2, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
    assert found["auc"] == pytest.approx(binary_auroc(torch.from_numpy(scores), labels.int()).item(), abs=1e-5)
    assert found["low"] < found["balanced_accuracy"] < found["high"] and found["n"] == labels.numel()


def test_iou_difference_is_paired():
    labels, rng = blobs(40), np.random.default_rng(0)
    noise = rng.normal(size=labels.shape)
    good, bad = noise + 2.5 * labels.numpy() - 1, noise + 1.5 * labels.numpy() - 1
    found = iou_difference(good, bad, labels)
    one, two = probe_scores(good, labels), probe_scores(bad, labels)
    assert found["diff"] == pytest.approx(one["iou"] - two["iou"])
    assert 0 < found["diff_low"] < found["diff"] < found["diff_high"]
    widths = [each["iou_high"] - each["iou_low"] for each in (one, two)]
    assert found["diff_high"] - found["diff_low"] < sum(widths)
    assert iou_difference(good, good, labels) == {"diff": 0, "diff_low": 0, "diff_high": 0}


def test_several_probes_are_pooled_image_by_image():
    """Two probes with the same scores score like one, and two different ones like both sets of tokens together."""
    labels, rng = blobs(20), np.random.default_rng(0)
    one, two = (rng.normal(size=labels.shape) + labels.numpy() for _ in range(2))
    twice, single = probe_scores(np.stack([one, one]), labels), probe_scores(one, labels)
    assert twice == pytest.approx(single)
    both = probe_scores(np.stack([one, two]), labels)
    flat = torch.from_numpy(np.concatenate([one, two]))
    assert both["iou"] == pytest.approx(
        binary_jaccard_index((flat > 0).int(), torch.cat([labels, labels]).int()).item(), abs=1e-6
    )
    assert both["auc"] == pytest.approx(binary_auroc(flat, torch.cat([labels, labels]).int()).item(), abs=1e-5)
    diff = iou_difference(one, np.stack([one, two]), labels)
    assert diff["diff"] == pytest.approx(single["iou"] - both["iou"])
    assert diff["diff_low"] < diff["diff"] < diff["diff_high"]


def test_layer_features_are_those_of_one_pass():
    torch.manual_seed(0)
    model = TokenCutSeg(configure("tiny")).eval()
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet("x", "test", list("abcde"), pixels, None, None, [(32, 32)] * 5)
    found, x = layer_features(model, images, batch_size=2), pixels.float() / 255
    with torch.no_grad():
        tokens, own = model.encode_to_tokens(x)
        latents = model.encode(x).encoding.latents.flatten(2).transpose(1, 2)
        states = model.masked_gpt.hidden_states(tokens.flatten(1), latents)
    assert list(found) == layer_names(model)
    torch.testing.assert_close(found["output"].float(), states[-1], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found["tokenizer"].float(), own.latents.flatten(2).mT, atol=1e-2, rtol=1e-3)
    colour = x.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(2).mT
    torch.testing.assert_close(found["colour"].float(), colour, atol=1e-3, rtol=1e-3)


def test_token_labels_go_by_majority():
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, :4, :3] = 1  # three quarters of the first token
    masks[0, 4:, 4:6] = 1  # half of the last one
    images = ImageSet("x", "test", ["a"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8), masks, None, [(8, 8)])
    assert token_labels(images, (2, 2)).tolist() == [[True, False, False, False]]
