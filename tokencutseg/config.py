"""What a study is made of: presets (how much work), recipes (which method), and the options that both are made of.

A preset sets sizes and budgets, a recipe sets the method; both are TOML files under `tokencutseg/configs`, with a
reason beside each value. `configure` starts from a preset, applies a recipe, then the user's ``stage.key=value`` pairs.

The defaults below are neutral: a run's id holds what differs from them (`Config.non_default`). A new option must
default to what the code did without it, and a default never changes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import tomllib
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokencutseg.options import ConfigError, check_bounds, coerce, option

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class DataConfig:
    """Which pixels the study looks at."""

    image_size: int = option(96, "Side of the square network input, in pixels.", least=1)
    synthetic_train: int = option(320, "Synthetic lesions in each site's training split.", least=1)
    synthetic_validation: int = option(50, least=1)
    synthetic_test: int = option(128, least=1)
    synthetic_unlabelled: int = option(320, "Synthetic images without masks, from both sites: the part of HAM10000.")
    label_fraction: float = option(
        1.0,
        "Share of the training masks that the supervised stage may see; subsets of one seed are nested.",
        above=0,
        most=1,
    )


@dataclass(frozen=True)
class VQGANConfig:
    """Stage 1, the tokenizer: image → tokens → image."""

    # sizes and budget (preset)
    hidden_channels: int = option(16, "Width h of the first convolution; each down-sampling stage doubles it.", least=1)
    n_res_blocks: int = option(1, least=0)
    norm_groups: int = option(8, "Groups of each GroupNorm, at most one per channel (released: 32).", least=1)
    code_dim: int = option(32, "Width D of a code.", least=1)
    codebook_size: int = option(64, "Number K of codes.", least=1)
    disc_channels: int = option(16, "Filters in the first layer of the PatchGAN discriminator.", least=1)
    perceptual_size: int = option(48, "Side at which the perceptual term compares images, in pixels.", least=1)
    perceptual_every: int = option(
        8, "Compute the perceptual term every n-th step, n times as heavy (lazy regularisation, StyleGAN2).", least=1
    )
    epochs: int = option(5, above=0)
    images_per_epoch: int | None = option(280, "Images drawn per epoch; none for each image of the set once.", above=0)
    # options (recipe)
    n_stages: int = option(3, "Down-sampling stages; a token covers 2^n_stages pixels a side.", least=1, most=5)
    input_normalisation: Literal["imagenet_then_symmetric", "symmetric"] = option(
        "symmetric", "Released: ImageNet mean/std and then 2x−1, about −5.2…4.3, out of a tanh's reach."
    )
    clamped_reconstruction: bool = option(False, "Released: |x − x̂| is clamped at 1, without gradient beyond.")
    edge_weighted: bool = option(False, "Released: the reconstruction loss is weighted 1 + exp(−5·gradient).")
    perceptual: Literal["vgg_l1", "lpips", "none"] = option(
        "lpips", "vgg_l1: L1 between VGG16 features (released). lpips: learned weights on normalised features."
    )
    perceptual_weight: float = option(0.2, "Weight of the perceptual term; its kinds differ in scale.", least=0)
    clamped_adversary: bool = option(False, "Released: adversarial losses are clamped at ±1 and ramped from 1 %.")
    disc_start: float = option(
        120, "When the discriminator joins: below 1 after a share of the training, else after so many steps.", least=0
    )
    disc_weight: float = option(0.05, "Weight of the adversarial term; without the clamp it needs less.", least=0)
    codebook_weight: float = option(1.0, "Weight of the commitment loss beside the reconstruction loss.", least=0)
    commitment: float = option(0.25, "Factor inside the commitment loss.", least=0)
    codebook_init: Literal["uniform", "kmeans"] = option(
        "kmeans", "uniform: U(−1/K, 1/K) with EMA counts of zero (released). kmeans: from encoder outputs."
    )
    restart_dead_codes: bool = option(True, "Move a code that the EMA shows unused onto a random encoder output.")
    augmented_validation: bool = option(False, "Released: the tokenizer's validation images are augmented too.")
    stepping_schedule: bool = option(True, "Released: a cosine schedule is created but never stepped.")
    batch_size: int = option(8, "Larger batches give the codebook's moving average steadier counts.", above=0)
    learning_rate: float = option(1e-3, "Peak; it goes with the batch size and the schedule.", above=0)
    images: Literal["labelled", "unlabelled"] = option(
        "unlabelled", "labelled: the training split only. unlabelled: every image outside the scored sets."
    )


@dataclass(frozen=True)
class MaskedGPTConfig:
    """Stage 2, the bidirectional masked-token transformer."""

    # sizes and budget (preset)
    n_layer: int = option(3, least=0)
    n_head: int = option(4, least=1)
    d_model: int = option(128, "Width of the transformer.", least=1)
    epochs: int = option(5, above=0)
    images_per_epoch: int | None = option(400, above=0)
    # options (recipe)
    dropout: float = option(0.0, "Masking is regularisation enough for a short training.", least=0, below=1)
    inputs: Literal["tokens", "tokens_and_vectors"] = option(
        "tokens_and_vectors",
        "tokens: ids only (released). tokens_and_vectors: the encoder's vectors where visible too.",
    )
    norm: Literal["post", "pre"] = option("pre", "Where LayerNorm stands in a block (Xiong et al. 2020).")
    positions: Literal["first", "interpolated"] = option(
        "interpolated", "Which positions an image with fewer tokens than the table uses. Released: the first ones."
    )
    mask_id: Literal["zero", "own"] = option("own", "zero: masked positions have id 0, also a code (released).")
    mask_pattern: Literal["iid", "block", "variable"] = option(
        "variable", "iid: each position alone. block: squares. variable: squares at a ratio drawn for each image."
    )
    mask_ratio: float = option(
        0.6, "Expected share of masked positions (variable: the middle of the range ±0.3).", above=0, below=1
    )
    pretraining: Literal["joint", "separate"] = option(
        "separate", "joint: from scratch together with the segmentation (released). separate: a stage before it."
    )
    images: Literal["labelled", "unlabelled"] = option("unlabelled", "Which images it learns from, as the tokenizer.")
    batch_size: int = option(32, "Images per step of the masked pretraining.", above=0)
    learning_rate: float = option(2e-3, "Peak of the masked pretraining; it goes with the batch size.", above=0)
    weight_decay: float = option(0.05, "AdamW's, in the masked pretraining.", least=0)


@dataclass(frozen=True)
class SegmentationConfig:
    """Stage 3, the supervised graph module."""

    # budget (preset)
    epochs: int = option(4, above=0)
    images_per_epoch: int | None = option(
        None, "Images drawn per epoch; none for each image of the study's largest training set once.", above=0
    )
    # options (recipe)
    use_deepcut: bool = option(True, "False replaces the graph module by a linear layer on the same features.")
    deepcut_loss_weight: float = option(0.02, "Weight of the unsupervised cut beside the supervised loss.", least=0)
    graph_radius: float = option(math.sqrt(2) / 30, "Reach of an edge, in `radius_unit`.", least=0)
    radius_unit: Literal["image", "cells"] = option(
        "image", "image: distance in [0, 1]² over the token grid (released). cells: distance in tokens."
    )
    affinity: Literal["position", "feature"] = option(
        "position", "Edge weights: one for every neighbour (released), or the similarity of the two tokens' features."
    )
    upsampling: Literal["bilinear", "unet"] = option(
        "unet", "bilinear (released), or the decoder of a U-Net over EfficientNet-Lite0 from ImageNet."
    )
    loss_input: Literal["probabilities", "logits"] = option(
        "logits", "Released: a softmax enters a cross-entropy that applies softmax again."
    )
    class_weighted_dice: bool = option(False, "Released: each class's Dice term has its clamped inverse frequency.")
    cross_entropy_weight: float = option(1.0, "Weight of the cross-entropy beside the Dice loss.", least=0)
    assignment_weight: float = option(
        0.0,
        "Weight of the same loss on the up-sampled assignments, so that a strong up-sampler does not ignore them.",
        least=0,
    )
    mlm_weight: float = option(0.0, "Weight of the masked-token loss beside the segmentation loss.", least=0)
    training_features: Literal["masked", "full"] = option(
        "full", "Released: the graph module gets the masked sequence in training and the full one in evaluation."
    )
    transformer_lr_scale: float = option(0.1, "Learning rate of the transformer, as a share of learning_rate.", least=0)
    self_training_weight: float = option(
        1.0,
        "Weight of the loss on unlabelled images against the averaged weights' masks (Tarvainen and Valpola 2017).",
        least=0,
    )
    self_training_share: float = option(0.5, "Unlabelled images in a step, for each labelled one.", above=0)
    self_training_mix: float = option(
        0.0, "Share of them with a rectangle of another one and its mask (CutMix, French et al. 2020).", least=0, most=1
    )
    self_training_hidden: float = option(
        0.0, "Share of them with half of the tokens hidden (masked consistency, Hoyer et al. 2023).", least=0, most=1
    )
    frozen_codebook: bool = option(
        True, "Under Lightning < 2.2 fit() put the tokenizer in train mode: its codes drifted."
    )
    frozen_transformer: bool = option(False, "True keeps the pretrained transformer as it is.")
    augmentation: Literal["released", "plain", "none"] = option("released")
    schedule: Literal["cosine", "one_cycle"] = option(
        "one_cycle", "cosine: per epoch down to a tenth (released). one_cycle: warm-up, then cosine to zero, per step."
    )
    weight_average: bool = option(True, "Score an exponential moving average of the weights instead of the last ones.")
    test_time_flips: bool = option(True, "Score the mean prediction over an image and its flips.")
    batch_size: int = option(8, "Images per step (released: one).", above=0)
    learning_rate: float = option(2e-3, "Peak; it goes with the batch size and the schedule.", above=0)
    weight_decay: float = option(0.05, "AdamW's; with the one-cycle schedule only matrices decay.", least=0)


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions are scored. Apart from `score_reduction` this is the plan of a study, and in no run's id."""

    bootstrap_draws: int = option(10_000, least=1)
    batch_size: int = option(32, least=1)
    lpips_images: int = option(16, "Test images for LPIPS, whose VGG16 is the costliest network of the study.", least=1)
    score_reduction: Literal["micro_two_class", "micro_lesion", "per_image", "per_image_thr65"] = option(
        "per_image", "The reduction of IoU by which the best epoch is chosen."
    )
    rivals: tuple[str, ...] = option(("otsu",), "Baselines and other recipes in the main results, by name.")
    train_sets: tuple[str, ...] = option((), "Training sets of the main results; none named: all that the data hold.")
    seeds: int = option(1, "Trainings of each method in the main results, from the same pretrained stages.", least=1)
    trained_once: tuple[str, ...] = option(
        ("released", "described"),
        "Methods with one training where others have several; training sets and shares of labels where all have one.",
    )
    left_out: tuple[str, ...] = option((), "Rivals not trained on a training set, as `described/isic2016`.")


@dataclass(frozen=True)
class AblationConfig:
    """The plan of notebook 05: each of its trainings is a run of its own, shorter than the main stages."""

    budget: float = option(0.25, "Epochs of an ablation's training, as a share of the main stages'.", above=0)
    images_per_epoch: int = option(128, "Images per epoch of its supervised stage, whatever the labels.", least=1)
    codebook_sizes: tuple[int, ...] = option((16, 64))
    graph_radii: tuple[float, ...] = option((0.0, 2.6), "In tokens.")
    label_fractions: tuple[float, ...] = option((0.05, 1.0))
    label_methods: tuple[str, ...] = option(("unet",), "Baselines and other recipes in the table of label shares.")
    deviations: tuple[str, ...] = option(("segmentation.loss_input",))
    steps: tuple[str, ...] = option(("segmentation.upsampling",), "Options from `described` to `revised`, in order.")
    baselines: tuple[str, ...] = option(("otsu", "unet"))
    full_comparisons: bool = option(
        False, "Whether the tables of baselines and of label shares have the budget of the main stages."
    )
    seeds: int = option(1, "Draws of the labels, and trainings, in the table of label shares.", least=1)
    deviation_seeds: int = option(1, least=1)


@dataclass(frozen=True)
class Config:
    """One study. `to_dict` and `from_dict` are inverse. Raises ConfigError for values that cannot go together."""

    preset: str = "quick"
    recipe: str = "revised"
    seed: int = 0
    data: DataConfig = DataConfig()
    vqgan: VQGANConfig = VQGANConfig()
    masked_gpt: MaskedGPTConfig = MaskedGPTConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ablation: AblationConfig = AblationConfig()

    def __post_init__(self) -> None:
        for name, one in options().items():
            check_bounds(name, self.value(name), one.metadata)
        side, size = 2**self.vqgan.n_stages, self.data.image_size
        if size % side or size == side:
            raise ConfigError(
                f"data.image_size must be a multiple of the tokenizer's stride {side}, twice or more, not {size}"
            )
        for channels in (self.vqgan.hidden_channels * 2**i for i in range(self.vqgan.n_stages + 1)):
            if channels % min(self.vqgan.norm_groups, channels):
                raise ConfigError(
                    f"vqgan.hidden_channels ({self.vqgan.hidden_channels}) gives a layer of {channels} channels, which "
                    f"{self.vqgan.norm_groups} norm groups do not divide"
                )
        if self.vqgan.disc_start > 1 and self.vqgan.disc_start % 1:
            raise ConfigError(f"vqgan.disc_start must be below 1 or a whole number, not {self.vqgan.disc_start}")
        if self.masked_gpt.d_model % self.masked_gpt.n_head:
            raise ConfigError(
                f"masked_gpt.d_model ({self.masked_gpt.d_model}) must be a multiple of masked_gpt.n_head "
                f"({self.masked_gpt.n_head})"
            )
        if self.masked_gpt.pretraining == "joint" and self.segmentation.frozen_transformer:
            raise ConfigError(
                "masked_gpt.pretraining = joint trains the transformer along with the masks; set "
                "segmentation.frozen_transformer = false with it"
            )

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image."""
        return self.data.image_size // 2**self.vqgan.n_stages

    def value(self, name: str) -> Any:
        """The setting that `--set` calls ``stage.key``."""
        stage, key = name.split(".")
        return getattr(getattr(self, stage), key)

    def non_default(self, section: str) -> dict[str, Any]:
        """What of a section differs from the neutral defaults, in JSON types: what a run's id is made of."""
        own = getattr(self, section)
        changed = {f.name: getattr(own, f.name) for f in dataclasses.fields(own) if getattr(own, f.name) != f.default}
        return json.loads(json.dumps(changed))

    def changes(self, plan: bool = True) -> dict[str, Any]:
        """What departs from the preset and the recipe, ``stage.key`` → value in JSON types; `plan=False` leaves out the
        plan of the experiments, which decides no training.

        ``configure(c.preset, c.recipe, c.seed, c.changes()) == c``.
        """
        plain = configure(self.preset, self.recipe, self.seed)
        changed = {name: self.value(name) for name in options() if self.value(name) != plain.value(name)}
        return json.loads(json.dumps({name: v for name, v in changed.items() if plan or not is_plan(name)}))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`. Raises ConfigError for an unknown key; one of the plan, which decides no training,
        may be that of another version and is left out."""
        head = {key: values[key] for key in ("preset", "recipe", "seed") if key in values}
        given = _flat({stage: values.get(stage, {}) for stage in STAGES})
        return cls(**head).override({n: value for n, value in given.items() if n in options() or not is_plan(n)})

    def with_recipe(self, recipe: str) -> Config:
        """The same study under another recipe."""
        return dataclasses.replace(self, recipe=recipe).override(RECIPES[recipe])

    def override(self, values: Mapping[str, Any]) -> Config:
        """A copy with ``stage.key`` values replaced; strings are read as the field's type.

        Raises ConfigError for an unknown stage or key (with the one that is most like it) or a value of the wrong type.
        """
        by_stage: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in _types():
                raise ConfigError(f"unknown setting {name!r}. {_hint(name, options())}")
            stage, key = name.split(".")
            by_stage.setdefault(stage, {})[key] = coerce(name, value, _types()[name])
        return dataclasses.replace(
            self, **{stage: dataclasses.replace(getattr(self, stage), **keys) for stage, keys in by_stage.items()}
        )


STAGES: dict[str, type] = {
    "data": DataConfig, "vqgan": VQGANConfig, "masked_gpt": MaskedGPTConfig, "segmentation": SegmentationConfig,
    "evaluation": EvaluationConfig, "ablation": AblationConfig,
}  # fmt: skip


@functools.cache
def options() -> dict[str, dataclasses.Field]:
    """Every option as ``stage.key``, the names that `--set` accepts."""
    return {f"{stage}.{f.name}": f for stage, cls in STAGES.items() for f in dataclasses.fields(cls)}


@functools.cache
def _types() -> dict[str, Any]:
    hints = {stage: typing.get_type_hints(cls) for stage, cls in STAGES.items()}
    return {name: hints[name.split(".")[0]][one.name] for name, one in options().items()}


def _hint(name: str, known: Collection[str]) -> str:
    """What an unknown option may have been meant to be, and where all of them are listed, which are too many here."""
    same = [other for other in known if other.split(".")[-1] == name.split(".")[-1]]  # of another stage
    close = difflib.get_close_matches(name, same or known, n=1, cutoff=0.0 if same else 0.5)
    listed = f"`tokencutseg recipes` lists the settings of recipes, and {__file__} all"
    return f"Did you mean {close[0]!r}? {listed}" if close else listed


def is_plan(name: str) -> bool:
    """Whether an option belongs to the plan of the experiments, and so decides no training."""
    return name.split(".")[0] in ("evaluation", "ablation") and name != "evaluation.score_reduction"


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{stage}.{key}": value for stage, section in sections.items() for key, value in section.items()}


def _read(kind: str) -> dict[str, dict[str, Any]]:
    """The TOML files of a folder by name, as ``stage.key`` → value; `base` names the one that a file starts from."""
    files = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted((CONFIGS / kind).glob("*.toml"))}
    bases = {name: _flat(files[sections.pop("base")]) if "base" in sections else {} for name, sections in files.items()}
    return {name: bases[name] | _flat(sections) for name, sections in files.items()}


PRESETS = {name: _read("presets")[name] for name in ("tiny", "quick", "small", "full")}
RECIPES = {name: _read("recipes")[name] for name in ("released", "described", "revised")}


def configure(
    preset: str = "quick", recipe: str = "revised", seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a preset under a recipe, with the user's overrides last.

    Raises ConfigError for an unknown preset, recipe or key, and for an ablation of an unknown option.
    """
    for kind, name, known in (("preset", preset, PRESETS), ("recipe", recipe, RECIPES)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}. Known: {', '.join(known)}")
    values = PRESETS[preset] | RECIPES[recipe] | dict(overrides or {})
    config = Config(preset=preset, recipe=recipe, seed=seed).override(values)
    for key in ("steps", "deviations"):
        if unknown := [name for name in getattr(config.ablation, key) if name not in RECIPES["released"]]:
            hint = _hint(unknown[0], RECIPES["released"])
            raise ConfigError(f"ablation.{key} names {unknown[0]!r}, which is no option of a recipe. {hint}")
    return config
