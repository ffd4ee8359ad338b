"""The explorer's questions against slow formulas, and its widgets moved without a browser."""

import base64
import io
import json
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from ipywidgets import HTML, GridBox, IntSlider
from PIL import Image

from tokencutseg.cli import main
from tokencutseg.config import configure
from tokencutseg.data.source import open_source
from tokencutseg.explore import panels
from tokencutseg.explore import queries as exploration
from tokencutseg.models.checkpoint import PRETRAINED
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.plots.transformer import inpaint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TokenCutSeg(configure("tiny"))
    with torch.no_grad():
        model.vqgan.quantize.embedding.weight.normal_()
        for layer in (model.upsampler.out, model.upsampler.tokens):
            layer.weight.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return open_source("", configure("tiny")).load("site_a", "test")


@pytest.fixture(scope="module")
def words(model, images):
    return exploration.tokenize_set(model.vqgan, images, batch_size=5)


def test_words_and_distances(model, images, words):
    x = images.images.float() / 255
    assert torch.equal(words.tokens, model.vqgan.tokenize(x))
    latents = model.vqgan.encode(model.vqgan.normalise(x)).latents
    codes = model.vqgan.quantize.lookup(words.tokens)
    torch.testing.assert_close(words.distances, (latents - codes).square().sum(1).sqrt(), atol=1e-5, rtol=1e-4)
    assert words.cell == 8


def test_places_and_where_codes_fire(model, images, words):
    H, W = words.tokens.shape[1:]
    counts = {}
    for n in range(len(images)):
        for y in range(H):
            for x in range(W):
                share = images.masks[n, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double().mean().item()
                place = "skin" if share < 0.1 else "lesion" if share > 0.9 else "border"
                assert exploration.REGIONS[words.places[n, y, x]] == place
                counts.setdefault(int(words.tokens[n, y, x]), []).append(place)
    table = exploration.code_region_table(words, model.vqgan.quantize.codebook_size).set_index("code")
    assert set(table.index) == set(counts)
    for code, places in counts.items():
        assert table.loc[code, "fires"] == len(places)
        for place in exploration.REGIONS:
            assert table.loc[code, place] == pytest.approx(places.count(place) / len(places))
    with pytest.raises(ValueError, match="masks"):
        exploration.code_region_table(exploration.TokenizedSet(words.images, words.tokens, words.distances, None), 16)


def test_patches_are_the_cells_of_the_code_nearest_first(words):
    code = int(words.tokens.flatten().mode().values)
    patches, distances = exploration.code_patches(words, code, count=7, around=1)
    assert patches.shape == (min(7, int((words.tokens == code).sum())), 3, 24, 24) and patches.dtype == torch.uint8
    assert torch.equal(distances, words.distances[words.tokens == code].sort().values[:7])
    n, y, x = ((words.tokens == code) & (words.distances == distances[0])).nonzero()[0].tolist()
    assert torch.equal(patches[0, :, 8:16, 8:16], words.images[n][:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8])
    unused = next(code for code in range(16, 99) if not (words.tokens == code).any())
    assert exploration.code_patches(words, unused)[0].shape == (0, 3, 24, 24)


def test_replacing_a_word_by_itself_changes_nothing(model, words):
    tokens = words.tokens[0]
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[1, 2] = True
    back = model.vqgan.detokenize(tokens[None])[0]
    torch.testing.assert_close(exploration.decode_with_replacement(model.vqgan, tokens, where, int(tokens[1, 2])), back)
    other = exploration.decode_with_replacement(model.vqgan, tokens, where, (int(tokens[1, 2]) + 1) % 16)
    assert not torch.equal(other, back)
    assert exploration.decode_code(model.vqgan, 3).shape == (3, 8, 8)


def test_filling_in(model, images, words):
    image, hidden = images.images[0].float() / 255, torch.zeros(4, 4, dtype=torch.bool)
    hidden[1:3, 1:3] = True
    result = inpaint(model, image[None], hidden[None])
    filled, probabilities = result.filled[0], result.probabilities[0]
    assert torch.equal(filled[~hidden], words.tokens[0][~hidden])
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4, 4))
    assert torch.equal(filled[hidden], probabilities.argmax(-1)[hidden])
    p = probabilities.double().numpy()
    np.testing.assert_allclose(result.entropy[0], -(p * np.log(p)).sum(-1), atol=1e-5)
    (code, most), *rest = exploration.likeliest(probabilities[1, 1], 3)
    assert code == filled[1, 1] and most >= rest[0][1] >= rest[1][1]


def test_attention_is_a_distribution_per_head(model, images):
    maps = exploration.attention_map(model, images.images[0].float() / 255, 1, 2)
    assert maps.shape == (2, 2, 4, 4)
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 2))


@pytest.mark.parametrize("recipe", ["revised", "released"])
def test_the_cut_at_the_models_own_radius_is_the_models_prediction(recipe, model, images):
    if recipe == "released":
        reach = {"segmentation.radius_unit": "cells", "segmentation.graph_radius": 1.5}
        model = TokenCutSeg(configure("tiny", recipe, overrides=reach)).eval()
    image, own = images.images[0].float() / 255, model.head
    at_tokens, at_pixels = exploration.cut(model, image, model.config.segmentation.graph_radius)
    out = model(image[None])
    torch.testing.assert_close(at_pixels, out.probabilities[0, 1])
    torch.testing.assert_close(at_tokens.flatten(), out.assignments[0, :, 1])
    assert not torch.equal(exploration.cut(model, image, 0.0)[0], at_tokens)
    assert model.head is own, "the model is left as it was"


def test_the_model_to_explore(tmp_path):
    assert exploration.find_model("a/run", tmp_path)[0].as_posix() == "a/run"
    path, about = exploration.find_model("", tmp_path)
    assert path == PRETRAINED and "--model RUN" in about
    run = tmp_path / "quick-skin" / "runs" / "segmentation-1"
    run.mkdir(parents=True)
    (run / "metrics.json").touch()
    assert exploration.find_model("", tmp_path)[0] == run


@pytest.mark.parametrize(
    ("stage", "setting", "forgot"),
    [
        ("segmentation", {"segmentation.frozen_transformer": False}, True),
        ("segmentation", {"segmentation.frozen_transformer": True, "masked_gpt.encoder": "frozen"}, False),
        ("segmentation", {"segmentation.frozen_transformer": False, "segmentation.mlm_weight": 1.0}, False),
        ("masked_gpt", {"segmentation.frozen_transformer": False}, False),
    ],
)
def test_a_transformer_that_was_trained_on_is_said_to_be(tmp_path, stage, setting, forgot):
    config = configure("tiny", overrides=setting).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"stage": stage, "config": config}))
    (tmp_path / "model.safetensors").touch()
    assert ("forgotten" in exploration.remark(tmp_path)) == forgot


def shown(panel):
    """The pictures of a widget, decoded, and its text."""
    pictures, texts, todo = [], [], [panel]
    while todo:
        widget = todo.pop(0)
        todo = [*getattr(widget, "children", ()), *todo]
        if isinstance(widget, panels.Picture):
            pictures.append(base64.b64decode(widget.value.partition("base64,")[2].partition('"')[0]))
        elif isinstance(widget, HTML):
            texts.append(widget.value)
    return pictures, texts


def sliders(panel):
    found, todo = {}, [panel]
    while todo:
        widget = todo.pop(0)
        todo = [*getattr(widget, "children", ()), *todo]
        if getattr(widget, "description", "") and not isinstance(widget, str):
            found.setdefault(widget.description, widget)
    return found


def test_every_control_changes_what_is_shown(model, images):
    box = panels.build_explorer(model, images)
    chooser, tabs = box.children
    assert [tabs.get_title(i) for i in range(5)] == list(panels.TITLES.values())
    moves = {
        "words": {"code": 5, "most on": "lesion", "by code": 7, "replace": "all cells of its code"},
        "filling": {"rows": (0, 3), "columns": (0, 0), "row": 3},
        "attention": {"block": 1, "head": 1, "row": 2, "column": 1},
        "cut": {"radius": 0.0, "threshold": 0.95},
        "mask": {"prediction": False, "reference": False, "errors": True},
    }
    for i, (name, controls) in enumerate(moves.items()):
        tabs.selected_index = i
        panel = tabs.children[i]
        for control, value in controls.items():
            before, known = shown(panel), sliders(panel)
            options = getattr(known.get("codes"), "options", None)
            assert known[control].value != value, (name, control)
            known[control].value = value
            changed = shown(panel) != before or options != getattr(known.get("codes"), "options", None)
            assert changed, (name, control)
        before = shown(panel)
        sliders(chooser)["image"].value += 1
        assert shown(panel) != before, name
        pictures, _ = shown(panel)
        assert all(Image.open(io.BytesIO(picture)).size[0] >= 8 for picture in pictures)


def test_the_mask_panel_says_how_good_the_mask_is(model, images):
    box = panels.build_explorer(model, images, ["mask"])
    mask = model.predict_probabilities(images.images[:1].float() / 255)[0].argmax(0).bool()
    both, either = ((mask & images.masks[0].bool()).sum(), (mask | images.masks[0].bool()).sum())
    text = f"Lesion IoU {both / either:.3f}, Dice {2 * both / (both + either):.3f}."
    assert text in shown(box.children[1])[1][0]


def test_a_click_on_a_word_chooses_its_code(model, images, words):
    box = panels.build_explorer(model, images, ["words"])
    panel = box.children[1].children[0]
    board = next(part for part in panel.children[0].children[0].children if isinstance(part, GridBox))
    button = board.children[6]  # row 1, column 2 of 4
    button.click()
    code = int(words.tokens[0, 1, 2])
    assert sliders(panel)["code"].value == code and button.tooltip == f"row 1, column 2: code {code}"
    assert any(f"Code {code}</b>" in text for text in shown(panel)[1])


def test_an_uploaded_image_is_shown_and_a_file_that_is_none_is_named(model, images):
    box = panels.build_explorer(model, images, ["mask"])
    upload, name = box.children[0].children[1:]
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), (200, 120, 90)).save(buffer, "PNG")
    before = shown(box.children[1])
    about = {"type": "image/png", "size": 99, "last_modified": datetime.now(UTC)}
    upload.value = [{"name": "mine.png", "content": memoryview(buffer.getvalue()), **about}]
    assert name.value == "mine.png" and shown(box.children[1]) != before
    assert "no reference mask" in shown(box.children[1])[1][0]
    upload.value = [{"name": "notes.txt", "content": memoryview(b"hello"), **about}]
    assert "notes.txt is no image" in name.value


def test_a_tokenizer_alone_has_its_panel(model, images):
    box = panels.build_explorer(model.vqgan, images)
    assert len(box.children[1].children) == 1 and isinstance(box.children[0].children[0], IntSlider)
    with pytest.raises(ValueError, match="tokenizer alone"):
        panels.build_explorer(model.vqgan, images, ["cut"])
    with pytest.raises(ValueError, match="Known: words"):
        panels.build_explorer(model, images, ["colours"])


def test_explore_names_what_is_missing(tmp_path, capsys):
    assert main(["explore", "--model", str(tmp_path / "gone")]) == 2
    assert "gone does not exist" in capsys.readouterr().err
