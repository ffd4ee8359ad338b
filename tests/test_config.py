import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencutseg.config import PRESETS, RECIPES, STAGES, Config, ConfigError, configure, is_plan, options


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_dictionary_round_trip(preset, recipe):
    config = configure(preset, recipe, seed=3)
    assert Config.from_dict(config.to_dict()) == config
    older = config.to_dict()
    older["ablation"]["gone"] = 1  # of the plan: no matter to a model
    assert Config.from_dict(older) == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_changes_are_the_inverse_of_configure(recipe):
    overrides = {"vqgan.codebook_size": 48, "ablation.seeds": 2, "evaluation.score_reduction": "micro_lesion"}
    config = configure("small", recipe, 1, overrides)
    assert config.changes() == overrides
    assert configure("small", recipe, 1, config.changes()) == config
    assert config.changes(plan=False) == {k: v for k, v in overrides.items() if k != "ablation.seeds"}


def test_non_default_holds_what_differs_from_the_fields_defaults():
    neutral = Config()
    assert all(neutral.non_default(section) == {} for section in STAGES)
    changed = neutral.override({"vqgan.codebook_size": 48, "segmentation.graph_radius": 2})
    assert changed.non_default("vqgan") == {"codebook_size": 48}
    assert changed.non_default("segmentation") == {"graph_radius": 2.0}


def test_the_plan_is_what_decides_no_training():
    assert {name.split(".")[0] for name in options() if is_plan(name)} == {"evaluation", "ablation"}
    assert not is_plan("evaluation.score_reduction") and not is_plan("vqgan.epochs")


def test_presets_and_recipes_set_different_options():
    sizes, switches = set().union(*PRESETS.values()), set().union(*RECIPES.values())
    assert not sizes & switches
    assert sizes | switches <= set(options())
    assert len({frozenset(recipe) for recipe in RECIPES.values()}) == 1, "every recipe sets the same"


def test_full_has_the_sizes_of_the_authors_readme():
    config = configure("full", "released")
    assert (config.data.image_size, config.grid_size) == (224, 56)
    assert (config.vqgan.hidden_channels, config.vqgan.n_res_blocks, config.vqgan.code_dim) == (128, 2, 256)
    steps = config.vqgan.epochs * 2000 / config.vqgan.batch_size  # with the images of ISIC 2017, which it is trained on
    assert config.vqgan.disc_start * steps == 10_000
    assert (config.vqgan.disc_weight, config.vqgan.perceptual_weight) == (0.5, 0.8)
    assert (config.vqgan.batch_size, config.vqgan.learning_rate, config.vqgan.epochs) == (4, 1e-4, 100)
    assert (config.masked_gpt.n_layer, config.masked_gpt.n_head, config.masked_gpt.d_model) == (12, 4, 256)
    segmentation = config.segmentation
    assert (segmentation.batch_size, segmentation.learning_rate, segmentation.epochs) == (1, 1e-4, 200)
    assert segmentation.use_deepcut and segmentation.deepcut_loss_weight == 0.2
    assert segmentation.graph_radius == pytest.approx(2**0.5 / 30, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("vqgan.codebook_size", "128", 128),
        ("vqgan.codebook_size", "1e3", 1000),
        ("vqgan.codebook_size", 64.0, 64),
        ("vqgan.learning_rate", "1e-3", 1e-3),
        ("vqgan.images_per_epoch", "none", None),
        ("vqgan.restart_dead_codes", "False", False),
        ("segmentation.affinity", "feature", "feature"),
        ("ablation.graph_radii", "0,1.5", (0.0, 1.5)),
        ("ablation.baselines", "otsu", ("otsu",)),
    ],
)
def test_text_is_read_as_the_fields_type(name, text, value):
    assert configure(overrides={name: text}).value(name) == value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"vqgan.d_model": 3}, ["vqgan.d_model", "'masked_gpt.d_model'", "tokencutseg recipes"]),
        ({"nonsense": 3}, ["nonsense", "config.py"]),
        ({"vqgan.codebook_size": "many"}, ["vqgan.codebook_size", "int", "many"]),
        ({"vqgan.codebook_size": True}, ["vqgan.codebook_size", "int"]),
        ({"vqgan.codebook_size": 2.5}, ["vqgan.codebook_size", "int"]),
        ({"vqgan.codebook_size": "64.00000000000000000001"}, ["vqgan.codebook_size", "int"]),
        ({"vqgan.epochs": "9999999999999999999999"}, ["vqgan.epochs", "1000000000", "9999999999999999999999"]),
        ({"vqgan.codebook_size": -(10**10)}, ["vqgan.codebook_size", "1000000000"]),
        ({"vqgan.learning_rate": "1e999"}, ["vqgan.learning_rate", "float"]),
        ({"vqgan.learning_rate": "nan"}, ["vqgan.learning_rate", "float"]),
        ({"vqgan.restart_dead_codes": "maybe"}, ["true or false"]),
        ({"segmentation.affinity": "colour"}, ["position", "feature", "colour"]),
        ({"ablation.graph_radii": 3}, ["ablation.graph_radii", "list"]),
        ({"vqgan.disc_start": 1.5}, ["vqgan.disc_start", "whole", "1.5"]),
        ({"data.image_size": 97}, ["image_size", "multiple", "97"]),
        ({"data.image_size": 8}, ["image_size", "multiple", "8"]),
        ({"masked_gpt.n_head": 3}, ["d_model", "multiple", "3"]),
        ({"data.label_fraction": 0}, ["label_fraction", "0"]),
        ({"data.label_fraction": 1.5}, ["label_fraction", "1"]),
        ({"masked_gpt.mask_ratio": 1.0}, ["mask_ratio", "below 1"]),
        ({"segmentation.batch_size": 0}, ["segmentation.batch_size", "above 0"]),
        ({"ablation.seeds": "0"}, ["ablation.seeds", "1 or more"]),
        ({"masked_gpt.n_layer": "-1"}, ["masked_gpt.n_layer", "0 or more"]),
        ({"vqgan.hidden_channels": 24, "vqgan.norm_groups": 32}, ["vqgan.hidden_channels", "48 channels"]),
        ({"masked_gpt.pretraining": "joint"}, ["masked_gpt.pretraining", "segmentation.frozen_transformer"]),
        ({"ablation.steps": "segmentation.gone"}, ["ablation.steps", "segmentation.gone", "tokencutseg recipes"]),
    ],
)
def test_what_cannot_be_used_is_named(overrides, words):
    with pytest.raises(ConfigError) as error:
        configure(overrides=overrides)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 400, "one sentence, not a list of all settings"


def test_every_bound_of_an_option_is_one_that_is_checked():
    used = {key for one in options().values() for key in one.metadata}
    assert used == {"reason", "least", "most", "above", "below"}


@pytest.mark.parametrize("arguments", [{"preset": "huge"}, {"recipe": "stew"}])
def test_unknown_preset_or_recipe_lists_the_known(arguments):
    with pytest.raises(ConfigError, match="Known: "):
        configure(**arguments)


@given(st.sampled_from(list(options())), st.text(max_size=8))
def test_any_text_is_taken_or_refused_in_words(name, text):
    try:
        config = configure(overrides={name: text})
    except ConfigError as error:
        assert str(error)
    else:
        assert Config.from_dict(config.to_dict()) == config
