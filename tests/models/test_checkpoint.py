"""Saved models that are broken, foreign or none: one sentence that names the file."""

import json
import os
import re

import numpy as np
import pytest

from tokencutseg.cli import main
from tokencutseg.data.images import DataError
from tokencutseg.models.checkpoint import CONFIG, WEIGHTS, build, load, read_metrics, save_half, save_weights

ABOUT = {"stage": "vqgan", "config": {}}


@pytest.fixture
def folder(tiny, tmp_path):
    """A saved tokenizer."""
    folder = tmp_path / "vqgan-1"
    folder.mkdir()
    save_weights(build("vqgan", tiny).state_dict(), folder)
    (folder / CONFIG).write_text(json.dumps({"stage": "vqgan", "config": tiny.to_dict()}))
    return folder


def assert_refused(path, tmp_path, name, capsys):
    """Every way of opening the model names the file, and nothing is written."""
    for opened in (load, lambda path: save_half(path, tmp_path / "half")):
        with pytest.raises(DataError, match=re.escape(name)):
            opened(path)
    assert main(["segment", str(tmp_path / "a.png"), "--model", str(path), "--out", str(tmp_path / "out")]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: ") and name in sentence
    assert not (tmp_path / "half").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["vqgan", "masked_gpt"])
def test_a_model_that_has_not_learned_to_segment(folder, tiny, tmp_path, capsys, stage):
    save_weights(build(stage, tiny).state_dict(), folder)
    (folder / CONFIG).write_text(json.dumps({"stage": stage, "config": tiny.to_dict()}))
    model, data = str(folder), ["--test-data-dir", str(tmp_path), "--test-mask-dir", str(tmp_path)]
    segment = ["segment", str(tmp_path / "a.png"), "--model", model, "--out", str(tmp_path / "out")]
    for command in (segment, ["test-seg", "--checkpoint-path", model, *data]):
        assert main(command) == 2
        assert f"{folder} is a {stage} run, which segments nothing" in capsys.readouterr().err
    if stage == "masked_gpt":
        with pytest.raises(DataError, match="masked tokens only"):
            load(folder).predict(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe\xfd", b"", b"[1]", b'{"config": 1}', b'{"model_type": "bert"}']
    + [json.dumps(ABOUT | change).encode() for change in ({"stage": "foo"}, {"stage": ["vqgan"]}, {"config": [1]})],
)
def test_broken_or_foreign_config(folder, tmp_path, capsys, content):
    (folder / CONFIG).write_bytes(content)
    assert_refused(folder, tmp_path, CONFIG, capsys)


def test_config_of_another_version(folder, tiny):
    config = tiny.to_dict() | {"segmentation": tiny.to_dict()["segmentation"] | {"gone": 1}}
    (folder / CONFIG).write_text(json.dumps({"stage": "vqgan", "config": config}))
    with pytest.raises(DataError, match=r"cannot open \(unknown setting 'segmentation.gone'\); train it again"):
        load(folder)


@pytest.mark.parametrize("cut", [lambda whole: b"", lambda whole: b"version https://git-lfs", lambda whole: whole[:-9]])
def test_broken_weights(folder, tmp_path, capsys, cut):
    (folder / WEIGHTS).write_bytes(cut((folder / WEIGHTS).read_bytes()))
    assert_refused(folder, tmp_path, WEIGHTS, capsys)


def test_no_folder(folder, tmp_path, capsys):
    (tmp_path / "a.png").touch()
    assert_refused(tmp_path / "a.png", tmp_path, "a.png is a file", capsys)
    assert_refused(tmp_path, tmp_path, "holds no saved model: config.json is missing", capsys)
    (folder / WEIGHTS).unlink()
    (folder / "metrics.json").touch()  # a finished run that was kept without weights
    assert_refused(folder, tmp_path, "once the folder is removed", capsys)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert_refused(tmp_path / "round", tmp_path, "round", capsys)
    assert_refused(tmp_path / ("x" * 300), tmp_path, "x" * 300, capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_folder(folder, tmp_path, capsys):
    folder.chmod(0)
    assert_refused(folder, tmp_path, folder.name, capsys)
    folder.chmod(0o700)


def test_broken_metrics(folder):
    assert read_metrics(folder) == {}
    (folder / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json"):
        read_metrics(folder)
