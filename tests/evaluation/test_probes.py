"""Probes on features that say the answer, and their scores against torchmetrics and a plain bootstrap."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_jaccard_index, multiclass_accuracy

from tokencutseg.config import configure
from tokencutseg.evaluation.probes import graph_probe, iou_difference, linear_probe, probe_scores


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
        margins = (
            linear_probe(pairs[0], labels, pairs[1])
            if head == "linear"
            else graph_probe(pairs[0], labels, pairs[1], (6, 6), config)
        )
        assert margins.shape == test_labels.shape
        return probe_scores(margins, test_labels)

    assert probed(6.0)["balanced_accuracy"] > 0.95
    assert probed(0.0)["balanced_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_probe_scores_equal_torchmetrics():
    labels = blobs(20)
    margins = np.random.default_rng(0).normal(size=labels.shape) + labels.numpy()
    found, predicted = probe_scores(margins, labels), torch.from_numpy(margins > 0)
    assert found["iou"] == pytest.approx(binary_jaccard_index(predicted.int(), labels.int()).item(), abs=1e-6)
    accuracy = multiclass_accuracy(predicted.int().flatten(), labels.int().flatten(), 2, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
    assert found["auc"] == pytest.approx(binary_auroc(torch.from_numpy(margins), labels.int()).item(), abs=1e-5)
    assert found["low"] < found["balanced_accuracy"] < found["high"] and found["n"] == labels.numel()


def test_iou_ahead_is_the_difference_with_a_paired_interval():
    labels, rng = blobs(40), np.random.default_rng(0)
    noise = rng.normal(size=labels.shape)
    good, bad = noise + 2.5 * labels.numpy() - 1, noise + 1.5 * labels.numpy() - 1
    found = iou_difference(good, bad, labels)
    one, two = probe_scores(good, labels), probe_scores(bad, labels)
    assert found["diff"] == pytest.approx(one["iou"] - two["iou"])
    assert 0 < found["diff_low"] < found["diff"] < found["diff_high"]
    widths = [score["iou_high"] - score["iou_low"] for score in (one, two)]
    assert found["diff_high"] - found["diff_low"] < sum(widths)
    assert iou_difference(good, good, labels) == {"diff": 0, "diff_low": 0, "diff_high": 0}


def test_several_probes_are_pooled_image_by_image():
    """Two probes with the same margins score like one, and two different ones like both sets of tokens together."""
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
