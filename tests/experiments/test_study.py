"""What one stage hands to the next."""

import pytest
import torch
from safetensors.torch import load_file

from tokencutseg.config import configure
from tokencutseg.data.images import DataError
from tokencutseg.data.source import open_source
from tokencutseg.experiments.runs import Busy
from tokencutseg.experiments.study import Finished, Study
from tokencutseg.models.checkpoint import WEIGHTS, load, save_weights


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = configure("tiny", overrides={"vqgan.perceptual": "none", "data.synthetic_test": 4})
    return Study(config, open_source("", config), tmp_path_factory.mktemp("study"))


class Started(Exception):
    """Ends a training before its first step; holds the model."""


@pytest.fixture
def starts(study, monkeypatch):
    """The weights that a segmenter starts with, by part."""

    def stop(module, *_):
        raise Started(module.model)

    def of(pretrained=True, **overrides):
        config = study.config.override(overrides)
        if pretrained:
            study.transformer(config)
        with monkeypatch.context() as patch, pytest.raises(Started) as started:
            patch.setattr(study, "_fit", stop)
            study.segmenter(config=config, pretrained=pretrained)
        found = started.value.args[0].state_dict()
        parts = ("vqgan", "masked_gpt", "encoder", "head", "upsampler")
        return {
            part: {name.removeprefix(f"{part}."): value for name, value in found.items() if name.startswith(f"{part}.")}
            for part in parts
        }

    return of


def test_trainings_ahead_are_those_that_nobody_is_at(study, monkeypatch):
    taken, elsewhere = [], ["a", "a"]  # another process needs two looks for a, and trains it

    def cell(name):
        def train():
            assert not study.store.waits
            if name in elsewhere:
                elsewhere.remove(name)
                raise Busy(name)
            taken.append(name)

        return train

    monkeypatch.setattr(study, "records", lambda run, dataset, split: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    study.train_missing([cell("a")], "test")
    assert not taken, "one process trains when it comes to it"
    monkeypatch.setattr(study, "jobs", 2)
    study.train_missing([cell(name) for name in "abc"], "test")
    assert taken == ["b", "c", "a"] and study.store.waits
    monkeypatch.setattr(study, "helping", True)
    with pytest.raises(Finished):
        study.train_missing([cell("d")], "test")
    assert taken[-1] == "d"


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_segmenter_goes_on_with_what_the_masked_pretraining_left(study, starts):
    pretrained, start = study.transformer().model(), starts()
    assert same(start["encoder"], pretrained.encoder.state_dict())
    assert same(start["masked_gpt"], pretrained.masked_gpt.state_dict())
    own = {name: start["vqgan"][name] for name in start["encoder"]}
    assert not same(start["encoder"], own), "it was trained"
    assert same(starts(**{"masked_gpt.encoder": "frozen"})["encoder"], own)


def test_what_starts_from_nothing_starts_alike_whatever_went_before(starts):
    """Rows of a table differ in what they say, and not in how their heads happened to start."""
    cells = [starts(), starts(pretrained=False), starts(**{"masked_gpt.encoder": "frozen"})]
    for part in ("head", "upsampler"):
        assert all(same(cell[part], cells[0][part]) for cell in cells)
    assert not same(cells[0]["masked_gpt"], cells[1]["masked_gpt"])


def test_a_saved_pretraining_holds_its_encoder(study, tmp_path):
    folder = study.transformer().folder
    weights, encoder = load_file(folder / WEIGHTS), load(folder).encoder.state_dict()
    assert all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in encoder.items())
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_weights({name: value for name, value in weights.items() if not name.startswith("encoder.")}, tmp_path)
    with pytest.raises(DataError, match="cannot open"):
        load(tmp_path)
