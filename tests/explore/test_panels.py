"""The explorer's widgets, moved without a browser."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from unittest.mock import Mock

import ipywidgets as w
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_erosion

from tokencutseg.explore import panels, queries, view, widgets
from tokencutseg.explore.widgets import parts


def control(widget, description):
    return next(part for part in parts(widget) if getattr(part, "description", None) == description)


def of(widget, kind):
    return next(part for part in parts(widget) if isinstance(part, kind))


def html(widget):
    return "".join(part.value for part in parts(widget) if isinstance(part, w.HTML))


def pictures(widget):
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', html(widget))]


def pixels(image):
    """An image as (3, h, w)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def is_framed(image, cells):
    """Whether the yellow pixels of an image are the inner border of cells (H, W)."""
    f = image.width // cells.shape[1]
    whole = cells.repeat_interleave(f, 0).repeat_interleave(f, 1).numpy()
    border = whole & ~binary_erosion(whole, np.ones((3, 3)), border_value=1)
    return np.array_equal((np.array(image) == (255, 221, 0)).all(2), border)


def only(row, column):
    return torch.arange(16).view(4, 4) == 4 * row + column


@pytest.fixture
def box(model, images):
    return panels.build_explorer(model, images)


def moves(part):
    """A value that a control does not have yet."""
    if isinstance(part, w.Dropdown):
        return next(value for _, value in part._options_full if value != part.value)
    return part.min if part.value != part.min else part.max


def test_every_control_changes_what_is_shown(box):
    chooser, tabs = box.children
    assert [tabs.get_title(i) for i in range(5)] == [title for title, _ in panels.PANELS.values()]
    for i, panel in enumerate(tabs.children):
        tabs.selected_index = i
        for part in parts(panel.children[0]):
            if isinstance(part, w.Dropdown | w.IntSlider | w.FloatSlider):
                before = html(panel)
                part.value = moves(part)
                assert html(panel) != before, part.description
        before, index = html(panel), control(chooser, "image")
        index.value = (index.value + 1) % (index.max + 1)
        assert html(panel) != before, i
        before = html(chooser)
        of(chooser, w.GridBox).children[2 + i].click()
        assert html(chooser) != before, i
        assert all(min(picture.size) >= 4 for picture in pictures(panel))


def test_a_click_on_a_token_chooses_its_code_and_draws_once(box, tokenized, monkeypatch):
    chooser, tabs = box.children
    board, index, draw = of(chooser, w.GridBox), control(chooser, "image"), Mock(wraps=queries.ranking_sentence)
    monkeypatch.setattr(queries, "ranking_sentence", draw)
    board.children[7].click()  # row 2, column 4 of 4
    assert draw.call_count == 1 and board.children[7].tooltip == "row 2, column 4"
    code = int(tokenized.tokens[index.value, 1, 3])
    assert f"Code {code}</b>" in html(tabs)
    assert is_framed(pictures(chooser)[0], only(1, 3))
    assert [button.tabbable for button in board.children] == [i == 7 for i in range(16)], "the board is one stop"


def test_a_ranked_code_leads_to_the_images_where_it_is_used_most(box, images, tokenized):
    chooser, tabs = box.children
    ranking, index = of(tabs, w.Select), control(chooser, "image")
    table = queries.rank_codes(queries.code_region_table(tokenized), "border")
    assert [code for _, code in ranking.options] == table["code"].tolist()
    best = table.iloc[0]
    assert ranking.value == best.code and f"code {best.code:.0f}, with {best.border:.0%} of" in html(tabs)
    code = table["code"].iloc[1]
    counts, seen = (tokenized.tokens == code).sum((1, 2)), []
    ranking.value = code
    for _ in range(int((counts > 0).sum())):
        seen.append(index.value)
        assert f"has {counts[index.value]} cells here" in html(tabs)
        here = tokenized.tokens[index.value] == code
        assert is_framed(pictures(tabs.children[0])[0], here)
        assert any(is_framed(pictures(chooser)[0], only(*place)) for place in here.nonzero().tolist())
        control(tabs, "next image with the code").click()
    assert sorted(seen) == (counts > 0).nonzero()[:, 0].tolist() and index.value == seen[0]
    assert counts[seen].tolist() == sorted(counts[seen].tolist(), reverse=True)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_framed_code_is_the_replaced_one(box, model, tokenized, everywhere):
    chooser, tabs = box.children
    tabs.selected_index = 1
    of(chooser, w.GridBox).children[6].click()
    scope, other, index = control(tabs, "replace"), control(tabs, "by code").value, control(chooser, "image").value
    scope.value = scope.options[everywhere]
    tokens = tokenized.tokens[[index]]
    where = tokens[0] == tokens[0, 1, 2] if everywhere else only(1, 2)
    before, after, change = pictures(tabs.children[1])[:3]
    assert is_framed(before, where) and is_framed(after, where)
    expected = (model.vqgan.detokenize(tokens.masked_fill(where, other))[0] * 255).round().int()
    inner = torch.arange(32) % 8 % 7 > 0  # the frame is on the rim of a cell
    plain = (~where).repeat_interleave(8, 0).repeat_interleave(8, 1) | (inner[:, None] & inner)
    assert torch.equal(pixels(after)[:, plain].int(), expected[:, plain])
    assert change.size == (32, 32) and f"in {int(where.sum())} of 16 cells" in html(tabs)


def test_masked_tokens(box, model, images, tokenized):
    chooser, tabs = box.children
    tabs.selected_index = 2
    of(chooser, w.GridBox).children[5].click()
    index = control(chooser, "image").value
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :3, :3] = True  # three tokens a side around row 2, column 2
    _, logits = model.predict_masked(images.images[[index]].float() / 255, mask.flatten(1))
    likely = logits[0, 5, : model.masked_gpt.codebook_size].softmax(0)
    assert f"code {int(likely.argmax())}: {likely.max():.0%}" in html(tabs)
    assert f"prediction is {-(likely * likely.log()).sum():.2f} nats" in html(tabs)
    assert "9 tokens are masked" in html(tabs)
    grey = (pixels(pictures(tabs.children[2])[0]) == 128).all(0)
    assert torch.equal(grey, mask[0].repeat_interleave(8, 0).repeat_interleave(8, 1))


def test_the_cut_panel_scores_the_mask(model, images):
    box = panels.build_explorer(model, images, ["cut"])
    mask, reference = model(images.images[:1].float() / 255).mask[0].bool(), images.masks[0].bool()
    both, either = (mask & reference).sum(), (mask | reference).sum()
    assert f"Lesion IoU {both / either:.3f}, Dice {2 * both / (both + either):.3f}." in html(box.children[1])


def test_own_images(model, images, monkeypatch):
    box = panels.build_explorer(model, images, ["cut"])
    upload = next(part for part in parts(box) if isinstance(part, w.FileUpload))

    def send(name, content):
        about = {"type": "image/png", "size": 99, "last_modified": datetime.now(UTC)}
        upload.value = [{"name": name, "content": memoryview(content), **about}]

    tall, buffer = Image.new("RGB", (20, 40), (200, 120, 90)), io.BytesIO()
    tall.paste((0, 0, 255), (0, 0, 20, 20))
    tall.getexif()[274] = 6  # to be turned clockwise by a quarter
    tall.save(buffer, "JPEG", exif=tall.getexif())
    before = html(box.children[1])
    send("mine.jpg", buffer.getvalue())
    assert "mine.jpg" in html(box.children[0]) and "IoU" not in html(box.children[1])
    shown = pictures(box.children[0])[0]
    assert shown.getpixel((28, 16))[2] > 150 > shown.getpixel((3, 16))[2], "the blue half is on the right"
    assert shown.getpixel((28, 2)) == shown.getpixel((3, 2)), "padded above, not stretched"
    send("notes.txt", b"hello")
    assert "notes.txt" in html(box.children[0]) and "/" not in html(box.children[0]).partition("notes.txt")[0][-20:]
    monkeypatch.setattr(view, "LARGEST_UPLOAD", 1_000_000)
    send("large.jpg", bytes(2_000_000))
    assert "large.jpg has 2 MB" in html(box.children[0]) and "at most 1 MB" in html(box.children[0])
    control(box.children[0], "back to the set").click()
    assert html(box.children[1]) == before


def test_what_a_model_allows(model, images):
    assert len(panels.build_explorer(model.vqgan, images).children[1].children) == 2
    with pytest.raises(ValueError, match="tokenizer alone"):
        panels.build_explorer(model.vqgan, images, ["cut"])
    with pytest.raises(ValueError, match="Known: codes"):
        panels.build_explorer(model, images, ["colours"])


def test_stills_stand_in_for_widgets_where_nobody_can_move_them(model, images, monkeypatch):
    monkeypatch.setenv(widgets.HEADLESS, "1")
    shown = Mock()
    monkeypatch.setattr(panels, "display", shown)
    monkeypatch.setattr(widgets, "display", shown)
    panels.explorer(model, images, ["cut", "attention"])
    still = shown.call_args.args[0].data
    assert "Cut and mask" in still and "Attention" in still and still.count("<img") == 2 + 4 + 3
    widgets.explore(lambda **values: values, rank={"min": 1, "max": 5, "value": 5}, by=["iou", "dice"])
    assert shown.call_args.args[0] == {"rank": 1, "by": "dice"}


def test_an_answer_is_folded():
    shown = ElementTree.fromstring(widgets.answer("a < b", pd.DataFrame({"n": [7]})).data)
    assert shown.tag == "details" and shown.find("p").text == "a < b" and shown.find(".//td").text == "7"
