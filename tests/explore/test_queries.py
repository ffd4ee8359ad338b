"""The explorer's questions against slow formulas."""

import copy
import dataclasses
import itertools
import json
import re

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tokencutseg.config import configure
from tokencutseg.data.images import DataError
from tokencutseg.explore import queries
from tokencutseg.models.checkpoint import PRETRAINED, save_half


def test_tokens_and_distances(model, images, tokenized):
    x = images.images.float() / 255
    assert torch.equal(tokenized.tokens, model.vqgan.tokenize(x))
    latents = model.vqgan.encode(model.vqgan.normalise(x))
    codes = model.vqgan.quantize.lookup(tokenized.tokens)
    torch.testing.assert_close(tokenized.distances, (latents - codes).square().sum(1).sqrt(), atol=1e-5, rtol=1e-4)


def test_regions_of_codes(images, tokenized):
    H, W = tokenized.tokens.shape[1:]
    found = {}
    for n, y, x in itertools.product(range(len(images)), range(H), range(W)):
        share = images.masks[n, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double().mean().item()
        region = "skin" if share < 0.1 else "lesion" if share > 0.9 else "border"
        assert queries.REGIONS[tokenized.regions[n, y, x]] == region
        found.setdefault(int(tokenized.tokens[n, y, x]), []).append(region)
    table = queries.code_region_table(tokenized).set_index("code")
    assert set(table.index) == set(found)
    for code, regions in found.items():
        assert table.loc[code, "cells"] == len(regions)
        for region in queries.REGIONS:
            assert table.loc[code, region] == pytest.approx(regions.count(region) / len(regions))
    with pytest.raises(ValueError, match="masks"):
        queries.code_region_table(dataclasses.replace(tokenized, regions=None))


def test_ranking():
    table = pd.DataFrame({"code": [3, 5, 8, 9], "cells": [2, 10, 40, 48], "border": [1.0, 0.2, 0.6, 0.25]})
    ranked = queries.rank_codes(table, "border")
    assert ranked["code"].tolist() == [8, 9, 5], "two cells are too few"
    assert ranked["ratio"].tolist() == pytest.approx([0.6 / 0.4, 0.25 / 0.4, 0.2 / 0.4])
    sentence = queries.ranking_sentence(table, "border")
    assert "code 8," in sentence and "60% of its 40 cells, 1.5 times" in sentence and "1 of the 3 codes" in sentence
    assert "No code" in queries.ranking_sentence(table.head(1), "border")
    assert "No cell" in queries.ranking_sentence(table.assign(border=0.0), "border")


def test_patches(model, tokenized):
    code = int(tokenized.tokens.flatten().mode().values)
    cells = (tokenized.tokens == code).nonzero().tolist()
    nearest = sorted(cells, key=lambda cell: tokenized.distances[tuple(cell)])
    patches = queries.code_patches(tokenized, code, count=7)
    assert len(patches) == min(7, len(cells)) and not queries.code_patches(tokenized, 99)
    for patch, (n, y, x) in zip(patches, nearest, strict=False):
        assert patch.shape == (3, 24, 24) and patch.dtype == torch.uint8
        assert torch.equal(patch[:, 8:16, 8:16], tokenized.images[n][:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8])
        if 0 < y < 3 and 0 < x < 3:
            assert torch.equal(patch, tokenized.images[n][:, 8 * y - 8 : 8 * y + 16, 8 * x - 8 : 8 * x + 16])
    assert queries.decode_code(model.vqgan, 3).shape == (3, 8, 8)


@pytest.mark.parametrize("recipe", ["revised", "released"])
def test_cut_at_the_trained_radius(recipe, random_model, images):
    model = random_model(recipe, **({"segmentation.graph_radius": 0.5} if recipe == "released" else {}))
    image, head = images.images[0].float() / 255, model.head
    at_tokens, at_pixels = queries.cut(model, image, queries.radius_in_cells(model))
    out = model(image[None])
    torch.testing.assert_close(at_pixels, out.probabilities[0, 1])
    torch.testing.assert_close(at_tokens.flatten(), out.assignments[0, :, 1])
    assert not torch.equal(queries.cut(model, image, 0.0)[0], at_tokens)
    assert model.head is head, "the model is left as it was"


def test_find_model(tmp_path):
    assert queries.find_model() == PRETRAINED
    assert queries.find_model("a/run").as_posix() == "a/run"
    study = tmp_path / "quick-synthetic"
    (study / "tables").mkdir(parents=True)
    with pytest.raises(DataError, match="notebook 04"):
        queries.find_model(study)
    rows = {"method": ["otsu", "tokencutseg"], "runs": [None, "vqgan-1 masked_gpt-2 segmentation-3"]}
    pd.DataFrame(rows).to_csv(study / "tables" / "main_results.csv")
    assert queries.find_model(study) == tmp_path / "runs" / "segmentation-3"
    for content in ("method,runs\notsu,\n", "method,runs\ntokencutseg,\n", "a\n1\n", ""):
        (study / "tables" / "main_results.csv").write_text(content)
        with pytest.raises(DataError, match="name the folder of a run"):
            queries.find_model(study)


def test_describe(tmp_path):
    config = configure("tiny").to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"stage": "segmentation", "config": config}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "tiny" in queries.describe(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"best_score": 0.8125, "training_images": 1500}))
    save_half(tmp_path, tmp_path / "half")
    for path in (tmp_path, tmp_path / "half"):
        text = queries.describe(path)
        assert path.name in text and "segmentation" in text and "1,500 masks" in text and "0.812" in text


def test_masked_accuracy(model, images):
    """In words; of a model that predicts one code always it is that code's share."""
    best = copy.deepcopy(model)
    shares, head = [], best.masked_gpt.lm_head.requires_grad_(False)
    head.weight.zero_()
    for code in range(model.config.vqgan.codebook_size):
        head.bias.zero_()[code] = 1
        shares.append(re.findall(r"(\d+)%", queries.masked_accuracy(best, images)))
    right, chance = (list(map(int, column)) for column in zip(*shares, strict=True))
    assert set(chance) == {max(right)} and sum(right) == pytest.approx(100, abs=8)  # of rounding
