"""The explorer's widgets, moved without a browser."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from unittest.mock import Mock

import ipywidgets as w
import pandas as pd
import pytest
import torch
from PIL import Image

from tokencutseg.explore import panels, queries, widgets


def parts(widget):
    """A widget and all that it holds."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


def control(widget, description):
    return next(part for part in parts(widget) if getattr(part, "description", None) == description)


def html(widget):
    return "".join(part.value for part in parts(widget) if isinstance(part, w.HTML))


def pictures(widget):
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', html(widget))]


@pytest.fixture
def box(model, images):
    return panels.build_explorer(model, images)


def moves(part):
    """A value that a control does not have yet."""
    if isinstance(part, w.IntRangeSlider):
        return (0, 0)
    if isinstance(part, w.Dropdown):
        return next(value for _, value in part._options_full if value != part.value)
    if isinstance(part, w.Checkbox):
        return not part.value
    return part.min if part.value != part.min else part.max


def test_every_control_changes_what_is_shown(box):
    chooser, tabs = box.children
    assert [tabs.get_title(i) for i in range(4)] == [title for title, _ in panels.PANELS.values()]
    for i, panel in enumerate(tabs.children):
        tabs.selected_index = i
        for part in panel.children[0].children:
            if not isinstance(part, w.Select):
                before = html(panel)
                part.value = moves(part)
                assert html(panel) != before, part.description
        for name in ("image",) if i == 3 else ("image", "row", "column"):
            before = html(panel)
            part = control(chooser, name)
            part.value = moves(part)
            assert html(panel) != before, (i, name)
        assert all(min(picture.size) >= 8 for picture in pictures(panel))


def test_a_click_on_a_token_chooses_its_code_and_draws_once(box, tokenized, monkeypatch):
    chooser, tabs = box.children
    board = next(part for part in parts(chooser) if isinstance(part, w.GridBox))
    draw = Mock(wraps=queries.code_patches)
    monkeypatch.setattr(queries, "code_patches", draw)
    board.children[7].click()  # row 1, column 3 of 4
    assert draw.call_count == 1
    code = int(tokenized.tokens[0, 1, 3])
    assert (control(chooser, "row").value, control(chooser, "column").value) == (1, 3)
    assert control(tabs, "code").value == code and board.children[7].tooltip == f"row 1, column 3: code {code}"
    assert f"Code {code}</b>" in html(tabs) and not any(button.tabbable for button in board.children)


def test_a_ranked_code_leads_to_its_image_and_is_the_one_replaced(box, model, images, tokenized):
    chooser, tabs = box.children
    ranking = next(part for part in parts(tabs) if isinstance(part, w.Select))
    code = ranking.options[1][1]
    ranking.value = code
    counts = (tokenized.tokens == code).sum((1, 2))
    index = control(chooser, "image").value
    assert counts[index] == counts.max() and control(tabs, "code").value == code
    assert f"has {int(counts.sum())} of" in html(tabs) and f"{int(counts.max())} cells here" in html(tabs)
    where, other = tokenized.tokens[index] == code, control(tabs, "by code").value
    expected = model.vqgan.detokenize(tokenized.tokens[[index]].masked_fill(where, other))[0]
    shown = torch.tensor(list(pictures(tabs.children[0])[2].resize((32, 32), 0).getdata())).T.view(3, 32, 32)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:-1, 1:-1] = True  # the frame is drawn on the rim of a cell
    plain = (~where).repeat_interleave(8, 0).repeat_interleave(8, 1) | inside.repeat(4, 4)
    assert torch.equal(shown[:, plain], (expected * 255).round().int()[:, plain])


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
    shown = pictures(box.children[0])[0].resize((32, 32), 0)
    assert shown.getpixel((28, 16))[2] > 150 > shown.getpixel((3, 16))[2], "the blue half is on the right"
    assert shown.getpixel((28, 2)) == shown.getpixel((3, 2)), "padded above, not stretched"
    send("notes.txt", b"hello")
    assert "notes.txt" in html(box.children[0]) and "/" not in html(box.children[0]).partition("notes.txt")[0][-20:]
    monkeypatch.setattr(panels, "LARGEST_UPLOAD", 1_000_000)
    send("large.jpg", bytes(2_000_000))
    assert "large.jpg has 2 MB" in html(box.children[0]) and "at most 1 MB" in html(box.children[0])
    control(box.children[0], "back to the set").click()
    assert html(box.children[1]) == before


def test_what_a_model_allows(model, images):
    assert len(panels.build_explorer(model.vqgan, images).children[1].children) == 1
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
    assert "Cut and mask" in still and "Attention" in still and still.count("<img") == 1 + 3 + 2
    widgets.explore(lambda **values: values, rank={"min": 1, "max": 5, "value": 5}, by=["iou", "dice"])
    assert shown.call_args.args[0] == {"rank": 1, "by": "dice"}


def test_an_answer_is_folded():
    shown = ElementTree.fromstring(widgets.answer("a < b", pd.DataFrame({"n": [7]})).data)
    assert shown.tag == "details" and shown.find("p").text == "a < b" and shown.find(".//td").text == "7"
