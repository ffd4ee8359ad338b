"""What decides a run's id, what a study is called, and what one stage hands to the next."""

import dataclasses
import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tokencutseg.config import configure
from tokencutseg.data.images import DataError
from tokencutseg.data.source import open_source
from tokencutseg.experiments.engine import train_missing
from tokencutseg.experiments.pipeline import OURS
from tokencutseg.experiments.study import Study, study_name
from tokencutseg.models.baselines import BASELINES
from tokencutseg.models.checkpoint import WEIGHTS, load, save_weights
from tokencutseg.models.encoders import build_lite0
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.training import fit

QUICK = {"vqgan.perceptual": "none", "data.synthetic_test": 4}
STAGES = ("vqgan", "masked_gpt", "segmentation", "unet", "otsu")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = configure("tiny", overrides=QUICK)
    return Study(config, open_source("", config), tmp_path_factory.mktemp("results"))


def ids(study, config=None):
    """The run id of each stage under a configuration."""
    trainings = [study.training(stage, config) for stage in STAGES[:2]]
    trainings += [study.method(name, config=config) for name in (OURS, *STAGES[3:])]
    return dict(zip(STAGES, (study.spec(training).id for training in trainings), strict=True))


# ---- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["data", "vqgan", "masked_gpt", "segmentation", "evaluation", "ablation"])
def test_neutral_new_option_changes_no_id(study, section):
    old = getattr(study.config, section)
    field = ("new", bool, dataclasses.field(default=False, metadata=dict(dataclasses.fields(old)[0].metadata)))
    grown = dataclasses.make_dataclass("Grown", [field], bases=(type(old),), frozen=True)

    def ids_with(new):
        value = grown(**{f.name: getattr(old, f.name) for f in dataclasses.fields(old)}, new=new)
        config = dataclasses.replace(study.config)
        object.__setattr__(config, section, value)  # whose checks know nothing of the new option
        return ids(study, config)

    assert ids_with(False) == ids(study)
    changed = {stage for stage, id in ids_with(True).items() if id != ids(study)[stage]}
    chain = {"vqgan": STAGES[:3], "masked_gpt": STAGES[1:3], "segmentation": ["segmentation"], "data": ["otsu"]}
    assert changed == set(chain.get(section, []))


CHANGED = [
    ("segmentation.learning_rate", 0.1, ["segmentation", "unet"]),
    ("evaluation.score_reduction", "micro_lesion", ["segmentation", "unet"]),
    ("data.label_fraction", 0.5, ["segmentation", "unet", "otsu"]),
]


@pytest.mark.parametrize(("setting", "value", "stages"), CHANGED)
def test_settings_in_ids(study, setting, value, stages):
    new, old = ids(study, study.config.override({setting: value})), ids(study)
    assert {stage for stage in STAGES if new[stage] != old[stage]} == set(stages)


def test_seeds_data_and_parents_in_id(study):
    def id(**options):
        return study.spec(study.training("segmentation", **options)).id

    assert len({id(), id(seed=1), id(train_set="site_b"), id(pretrained=False)}) == 4
    assert id(seed=0) == id()
    own = study.spec(study.training("segmentation"))
    assert own.dependencies["transformer"] == ids(study)["masked_gpt"]
    assert own.dependencies["tokenizer"] == ids(study)["vqgan"]


def test_images_in_id(study):
    source = study.source
    pool = source.unlabelled().fingerprint
    train, validation = (source.load("site_b", split).fingerprint for split in ("train", "validation"))
    spec = {stage: study.spec(study.training(stage, train_set="site_b")) for stage in STAGES[:3]}
    primary = {"train": pool, "validation": source.load("site_a", "validation").fingerprint}
    for stage in ("vqgan", "masked_gpt"):
        assert primary.items() <= spec[stage].dependencies.items()
    own = {"train": train, "validation": validation}
    assert (own | {"unlabelled": pool}).items() <= spec["segmentation"].dependencies.items()
    assert study.spec(study.method("unet", "site_b")).dependencies == own
    alone = study.spec(study.method("unet_self_training", "site_b"))
    assert alone.dependencies == own | {"unlabelled": pool}


def test_baseline_declaration_in_id(study, monkeypatch):
    before = ids(study)["unet"]
    monkeypatch.setitem(BASELINES, "unet", dataclasses.replace(BASELINES["unet"], encoder="resnet34"))
    other = Study(study.config, study.source, study.results)
    assert ids(other)["unet"] != before and ids(other)["segmentation"] == ids(study)["segmentation"]


def test_plan_trains_nothing_again(study, monkeypatch):
    run = study.segmenter()
    monkeypatch.setattr(Study, "_train", lambda *_: pytest.fail("it was trained"))
    records = study.records(run, "site_a", "test")
    plan = {"ablation.seeds": 2, "evaluation.rivals": "otsu,unet", "evaluation.train_sets": "site_a"}
    other = Study.open("tiny", results=study.results, overrides=QUICK | plan)
    assert other.folder == study.folder
    assert (other.tokenizer(), other.transformer(), other.segmenter()) == (study.tokenizer(), study.transformer(), run)
    pd.testing.assert_frame_equal(other.records(run, "site_a", "test"), records)


# ---- names, folders, files ------------------------------------------------------------------------------------------


def test_study_name():
    def name(preset, *arguments, **settings):
        return study_name(configure(preset, *arguments, overrides=settings), "isic")

    assert name("quick") == "quick-isic" and name("tiny", "released", 3) == "tiny-isic-released-seed3"
    changed = {name("tiny", **{"vqgan.codebook_size": size}) for size in ("8", "9", 8.0)}
    assert len(changed) == 2 and all(one.startswith("tiny-isic-set-") for one in changed)
    assert name("tiny", **{"vqgan.codebook_size": 16}) == "tiny-isic", "16 is the preset's"


def test_table_and_figure(study):
    figure, table = plt.figure(), pd.DataFrame({"n": [1]})
    assert study.table("one", table) is table and study.figure("one", figure) is figure
    assert pd.read_csv(study.folder / "tables/one.csv").equals(table)
    assert {path.name for path in (study.folder / "figures").iterdir()} == {"one.pdf", "one.png"}
    assert json.loads((study.folder / "config.json").read_text()) == study.config.to_dict()
    with pytest.raises(ValueError, match="'none' is empty"):
        study.table("none", table[:0])


# ---- what one stage hands to the next -------------------------------------------------------------------------------


class Started(Exception):
    """Ends a training before its first step; holds the model."""


@pytest.fixture
def starts(study, monkeypatch):
    """The weights that a segmenter starts with, by part."""

    def stop(module, *_):
        raise Started(module.model)

    def of(pretrained=True, **overrides):
        config = study.config.override(overrides)
        study.transformer(config)
        with monkeypatch.context() as patch, pytest.raises(Started) as started:
            patch.setattr(fit, "fit", stop)
            study.segmenter(config=config.override({"segmentation.epochs": 9}), pretrained=pretrained)
        return {name: part.state_dict() for name, part in started.value.args[0].named_children()}

    return of


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_segmenter_starts_from_pretraining(study, starts):
    pretrained, start = study.transformer().model(), starts()
    assert same(start["masked_gpt"], pretrained.masked_gpt.state_dict())
    assert same(start["encoder"], build_lite0().state_dict()), "ImageNet's"


def test_untrained_parts_start_alike(starts):
    """So rows of a table differ in what they name, and not in how their heads happened to start."""
    rows = [starts(), starts(pretrained=False), starts(**{"segmentation.frozen_transformer": False})]
    for part in ("head", "upsampler"):
        assert all(same(row[part], rows[0][part]) for row in rows)
    assert not same(rows[0]["masked_gpt"], rows[1]["masked_gpt"])


def test_saved_pretraining_holds_tokenizer_and_transformer(study, tmp_path):
    folder = study.transformer().folder
    weights = load_file(folder / WEIGHTS)
    assert {name.split(".")[0] for name in weights} == {"vqgan", "masked_gpt"}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_weights({name: value for name, value in weights.items() if not name.startswith("vqgan.")}, tmp_path)
    with pytest.raises(DataError, match="cannot open"):
        load(tmp_path)


def test_otsu_is_a_run(study):
    run = study.baseline("otsu")
    records = study.records(run, "site_a", "test")
    assert run.metrics["images_seen"] == 0 and set(records["method"]) == {"otsu"} and len(records) == 4


def test_adopted_tokenizer(study):
    own = Study(study.config, study.source, study.results)
    assert ids(own) == ids(study)  # and remembers them
    run = own.adopt_tokenizer(VQGAN(own.config.vqgan), "a checkpoint")
    assert own.tokenizer() == run and run.metrics["adopted_from"] == "a checkpoint"
    assert own.spec(own.training("segmentation")).dependencies["tokenizer"] == run.id
    train_missing(own, [own.training("vqgan")])  # which finds it done
    config = own.config.override({"vqgan.codebook_size": 8})
    assert own.adopt_tokenizer(VQGAN(config.vqgan), "another") == own.tokenizer() and own.config == config
