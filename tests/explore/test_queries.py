"""The explorer's questions against slow formulas."""

import json

import pandas as pd
import pytest
import torch

from tokencutseg.config import configure
from tokencutseg.data.images import DataError
from tokencutseg.explore import queries
from tokencutseg.models.checkpoint import PRETRAINED


def test_tokens_and_distances(model, images, tokenized):
    x = images.images.float() / 255
    assert torch.equal(tokenized.tokens, model.vqgan.tokenize(x))
    latents = model.vqgan.encode(model.vqgan.normalise(x)).latents
    codes = model.vqgan.quantize.lookup(tokenized.tokens)
    torch.testing.assert_close(tokenized.distances, (latents - codes).square().sum(1).sqrt(), atol=1e-5, rtol=1e-4)


def test_regions_of_codes(model, images, tokenized):
    H, W = tokenized.tokens.shape[1:]
    found = {}
    for n in range(len(images)):
        for y in range(H):
            for x in range(W):
                share = images.masks[n, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double().mean().item()
                region = "skin" if share < 0.1 else "lesion" if share > 0.9 else "border"
                assert queries.REGIONS[tokenized.regions[n, y, x]] == region
                found.setdefault(int(tokenized.tokens[n, y, x]), []).append(region)
    table = queries.code_region_table(tokenized, model.vqgan.quantize.codebook_size).set_index("code")
    assert set(table.index) == set(found)
    for code, regions in found.items():
        assert table.loc[code, "cells"] == len(regions)
        for region in queries.REGIONS:
            assert table.loc[code, region] == pytest.approx(regions.count(region) / len(regions))
    unmasked = queries.TokenizedSet(tokenized.images, tokenized.tokens, tokenized.distances, None)
    with pytest.raises(ValueError, match="masks"):
        queries.code_region_table(unmasked, 16)


def test_ranking():
    table = pd.DataFrame({"code": [3, 5, 8, 9], "cells": [2, 10, 40, 48], "border": [1.0, 0.2, 0.6, 0.25]})
    ranked = queries.rank_codes(table, "border")
    assert ranked["code"].tolist() == [8, 9, 5], "two cells are too few"
    assert ranked["ratio"].tolist() == pytest.approx([0.6 / 0.4, 0.25 / 0.4, 0.2 / 0.4])
    sentence = queries.ranking_sentence(table, "border")
    assert "code 8," in sentence and "60% of its 40 cells, 1.5 times" in sentence and "there: 1 of 3" in sentence
    assert "No code" in queries.ranking_sentence(table.head(1), "border")


def test_patches(tokenized):
    code = int(tokenized.tokens.flatten().mode().values)
    patches, distances = queries.code_patches(tokenized, code, count=7, around=1)
    assert patches.shape == (min(7, int((tokenized.tokens == code).sum())), 3, 24, 24) and patches.dtype == torch.uint8
    assert torch.equal(distances, tokenized.distances[tokenized.tokens == code].sort().values[:7])
    n, y, x = ((tokenized.tokens == code) & (tokenized.distances == distances[0])).nonzero()[0].tolist()
    assert torch.equal(patches[0, :, 8:16, 8:16], tokenized.images[n][:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8])
    assert queries.code_patches(tokenized, 99)[0].shape == (0, 3, 24, 24)


def test_replacement(model, tokenized):
    tokens = tokenized.tokens[0]
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[1, 2] = True
    decoded = model.vqgan.detokenize(tokens[None])[0]
    same = queries.decode_with_replacement(model.vqgan, tokens, where, int(tokens[1, 2]))
    torch.testing.assert_close(same, decoded)
    other = queries.decode_with_replacement(model.vqgan, tokens, where, (int(tokens[1, 2]) + 1) % 16)
    assert not torch.equal(other, decoded)
    assert queries.decode_code(model.vqgan, 3).shape == (3, 8, 8)
    assert queries.likeliest(torch.tensor([0.1, 0.6, 0.3]), 2) == [(1, pytest.approx(0.6)), (2, pytest.approx(0.3))]


def test_attention_map(model, images):
    maps = queries.attention_map(model, images.images[0].float() / 255, 1, 2)
    assert maps.shape == (2, 2, 4, 4)
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 2))


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


@pytest.mark.parametrize(
    ("stage", "setting", "lost"),
    [
        ("segmentation", {"segmentation.frozen_transformer": False}, True),
        ("segmentation", {"segmentation.frozen_transformer": True, "masked_gpt.encoder": "frozen"}, False),
        ("segmentation", {"segmentation.frozen_transformer": False, "segmentation.mlm_weight": 1.0}, False),
        ("masked_gpt", {"segmentation.frozen_transformer": False}, False),
    ],
)
def test_describe(tmp_path, stage, setting, lost):
    config = configure("tiny", overrides=setting).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"stage": stage, "config": config}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "metrics.json").write_text(json.dumps({"best_score": 0.8125}))
    text = queries.describe(tmp_path)
    assert ("lost masked-token prediction" in text) == lost and stage in text and "0.812" in text
