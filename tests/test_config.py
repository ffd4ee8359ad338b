import dataclasses
import re
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencutseg.config import PRESETS, RECIPES, STAGES, Config, ConfigError, configure, known_keys


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ablation.steps", "'segmentation.upsamplin', which is no switch. Known: vqgan.n_stages"),
        ("ablation.deviations", "'segmentation.upsamplin', which is no switch"),
        ("ablation.label_recipes", "'segmentation.upsamplin', which is no recipe. Known: released, described, revised"),
    ],
)
def test_a_grid_of_unknown_names_is_refused(setting, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        configure(overrides={setting: "segmentation.upsamplin"})


@pytest.mark.parametrize("size", [20, 8])
def test_a_side_that_is_not_several_tokens_is_refused(size):
    with pytest.raises(ConfigError, match=f"a multiple of the tokenizer's stride 8, twice or more, not {size}"):
        configure("tiny", overrides={"data.image_size": size})


@pytest.mark.parametrize(
    ("setting", "value", "least"),
    [
        ("vqgan.hidden_channels", "0", 1),
        ("vqgan.n_stages", "-1", 1),
        ("masked_gpt.n_head", "0", 1),
        ("masked_gpt.n_layer", "-1", 0),
        ("ablation.seeds", "0", 1),
        ("data.image_size", "-8", 1),
    ],
)
def test_sizes_and_counts_have_a_least_value(setting, value, least):
    with pytest.raises(ConfigError, match=f"{setting} must be {least} or more, not {value}"):
        configure(overrides={setting: value})


def test_a_model_saved_before_there_was_a_choice_has_a_frozen_encoder():
    values = configure().to_dict()
    del values["masked_gpt"]["encoder"]
    assert Config.from_dict(values).masked_gpt.encoder == "frozen"
    del values["segmentation"]["encoder"]
    assert Config.from_dict(values).segmentation.encoder == "frozen"


def test_a_saved_model_opens_although_its_grids_named_a_switch_that_is_gone():
    values = configure().to_dict()
    values["ablation"]["steps"] = ["segmentation.gone"]
    assert Config.from_dict(values).ablation.steps == ("segmentation.gone",)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_dictionary_round_trip(preset, recipe):
    config = configure(preset, recipe, seed=3)
    assert Config.from_dict(config.to_dict()) == config


def test_presets_and_recipes_touch_different_fields():
    sizes, switches = set().union(*PRESETS.values()), set().union(*RECIPES.values())
    assert not sizes & switches
    assert sizes | switches <= set(known_keys())


def test_recipes_are_columns_of_one_table():
    assert len({frozenset(recipe) for recipe in RECIPES.values()}) == 1


def test_full_has_the_sizes_of_the_authors_readme():
    config = configure("full", "released")
    assert (config.data.image_size, config.grid_size) == (224, 56)
    assert (config.vqgan.hidden_channels, config.vqgan.n_res_blocks, config.vqgan.code_dim) == (128, 2, 256)
    assert (config.vqgan.disc_start, config.vqgan.disc_weight, config.vqgan.perceptual_weight) == (10_000, 0.5, 0.8)
    assert (config.vqgan.batch_size, config.vqgan.learning_rate, config.vqgan.epochs) == (4, 1e-4, 100)
    assert (config.masked_gpt.n_layer, config.masked_gpt.n_head, config.masked_gpt.d_model) == (12, 4, 256)
    segmentation = config.segmentation
    assert (segmentation.batch_size, segmentation.learning_rate, segmentation.epochs) == (1, 1e-4, 200)
    assert segmentation.use_deepcut and segmentation.deepcut_loss_weight == 0.2


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("vqgan.codebook_size", "128", 128),
        ("vqgan.learning_rate", "1e-3", 1e-3),
        ("vqgan.images_per_epoch", "none", None),
        ("vqgan.restart_dead_codes", "False", False),
        ("segmentation.affinity", "feature", "feature"),
        ("ablation.graph_radii", "0,1.5", (0.0, 1.5)),
        ("ablation.baselines", "otsu", ("otsu",)),
    ],
)
def test_text_is_read_as_the_fields_type(name, text, value):
    stage, key = name.split(".")
    assert getattr(getattr(configure(overrides={name: text}), stage), key) == value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"vqgan.d_model": 3}, ["d_model", "Did you mean", "vqgan.codebook_size", "segmentation.affinity"]),
        ({"nonsense": 3}, ["nonsense", "Known"]),
        ({"vqgan.codebook_size": "many"}, ["vqgan.codebook_size", "int", "many"]),
        ({"vqgan.codebook_size": True}, ["vqgan.codebook_size", "int"]),
        ({"vqgan.codebook_size": 2.5}, ["vqgan.codebook_size", "int"]),
        ({"vqgan.learning_rate": "nan"}, ["vqgan.learning_rate", "float"]),
        ({"vqgan.restart_dead_codes": "maybe"}, ["true or false"]),
        ({"segmentation.affinity": "colour"}, ["position", "feature", "colour"]),
        ({"ablation.graph_radii": 3}, ["ablation.graph_radii", "list"]),
        ({"data.image_size": 97}, ["image_size", "multiple", "97"]),
        ({"masked_gpt.n_head": 3}, ["d_model", "multiple", "3"]),
        ({"data.label_fraction": 0}, ["label_fraction", "(0, 1]"]),
        ({"masked_gpt.mask_ratio": 1.0}, ["mask_ratio"]),
        (
            {"segmentation.encoder": "frozen"},
            ["segmentation.encoder", "fine_tuned", "set masked_gpt.encoder=frozen too"],
        ),
        ({"segmentation.batch_size": 0}, ["segmentation.batch_size", "positive"]),
        ({"vqgan.hidden_channels": 24, "vqgan.norm_groups": 32}, ["vqgan.hidden_channels", "48 channels"]),
    ],
)
def test_what_cannot_be_used_is_named(overrides, words):
    with pytest.raises(ConfigError) as error:
        configure(overrides=overrides)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("kind", "arguments"), [("preset", {"preset": "huge"}), ("recipe", {"recipe": "stew"})])
def test_unknown_preset_or_recipe_lists_the_known(kind, arguments):
    with pytest.raises(ConfigError, match=f"unknown {kind} .*Known: "):
        configure(**arguments)


@given(st.sampled_from(known_keys()), st.text(max_size=8))
def test_any_text_is_taken_or_refused_in_words(name, text):
    try:
        config = configure(overrides={name: text})
    except ConfigError as error:
        assert str(error)
    else:
        assert Config.from_dict(config.to_dict()) == config


def test_every_field_is_of_a_type_that_json_knows():
    for cls in STAGES.values():
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            assert hints[f.name] in (int, float, bool) or typing.get_origin(hints[f.name]) is not None
