"""What a study is made of: frozen dataclasses, presets (how much work) and recipes (which method).

The two axes touch different fields. A preset sets sizes and budgets, a recipe sets switches: named values, each with
its released and its corrected setting. `configure` starts from a preset, applies a recipe, then the user's
``stage.key=value`` pairs; an unknown key is an error that lists the known ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be used. The message says what is wrong and lists what would be right."""


@dataclass(frozen=True)
class DataConfig:
    """Which pixels the study looks at."""

    image_size: int = 96
    """Side of the square network input, in pixels."""
    synthetic_train: int = 320
    """Synthetic lesions in each site's training split; validation and test have the next two fields."""
    synthetic_validation: int = 50
    synthetic_test: int = 128
    synthetic_unlabelled: int = 320
    """Synthetic images without masks, mixed from both sites: the counterpart of HAM10000."""
    label_fraction: float = 1.0
    """Share of the training masks that the supervised stage may see; subsets of one seed are nested."""


@dataclass(frozen=True)
class VQGANConfig:
    """Stage 1, the tokenizer: image → visual words → image."""

    # sizes and budget (preset)
    hidden_channels: int = 16
    """Width h of the first convolution; every down-sampling stage doubles it."""
    n_res_blocks: int = 1
    norm_groups: int = 8
    """Groups of each GroupNorm, at most one per channel (32 in the released code)."""
    code_dim: int = 32
    """Width D of a code."""
    codebook_size: int = 64
    """Number K of codes."""
    disc_channels: int = 16
    """Filters in the first layer of the PatchGAN discriminator."""
    perceptual_size: int = 48
    """Side at which the perceptual term compares images, in pixels (224 in the released code)."""
    perceptual_every: int = 8
    """Compute the perceptual term on every n-th step only, n times as heavy (lazy regularisation, StyleGAN2)."""
    disc_start: int = 120
    """Own training step, counted in batches, from which the discriminator takes part."""
    epochs: int = 5
    images_per_epoch: int | None = 280
    """Images drawn per epoch; None for each image of the pool once."""
    # switches (recipe)
    n_stages: int = 3
    """Down-sampling stages; one visual word covers 2^n_stages pixels a side (the released stride is 4)."""
    input_normalisation: Literal["imagenet_then_symmetric", "symmetric"] = "symmetric"
    """Released: ImageNet mean/std and then 2x−1, about −5.2…4.3, out of a tanh's reach. Corrected: [−1, 1]."""
    clamped_reconstruction: bool = False
    """Released: |x − x̂| is cut at 1 and so has no gradient where the error is largest."""
    edge_weighted: bool = False
    """Released: the reconstruction loss is weighted 1 + exp(−5·gradient), so flat skin counts most."""
    perceptual: Literal["vgg_l1", "lpips", "none"] = "lpips"
    """Released: L1 between VGG16 features. Corrected: LPIPS, learned weights on normalised features."""
    perceptual_weight: float = 0.2
    """Weight of the perceptual term; LPIPS and a sum of VGG L1 distances differ in scale."""
    clamped_adversary: bool = False
    """Released: adversarial losses are cut at ±1 and ramped from 1 %; the cut leaves no gradient at the start."""
    disc_weight: float = 0.05
    """Weight of the adversarial term; un-clamped it needs less."""
    codebook_weight: float = 1.0
    commitment: float = 0.25
    codebook_init: Literal["uniform", "kmeans"] = "kmeans"
    """Released: codes start at U(−1/K, 1/K) with EMA counts of zero. Corrected: drawn from encoder outputs."""
    restart_dead_codes: bool = True
    """Corrected: a code that the EMA shows unused is moved onto a random encoder output."""
    augmented_validation: bool = False
    """Released: the tokenizer's validation images are augmented too."""
    stepping_schedule: bool = True
    """Released: a cosine schedule is created but never stepped."""
    batch_size: int = 8
    """Larger batches give the codebook's moving average steadier counts."""
    learning_rate: float = 1e-3
    """Peak; it goes with the batch size and, where it steps, the schedule."""
    images: Literal["labelled", "unlabelled"] = "unlabelled"
    """Which images the tokenizer learns from: the training split only, or every image outside the scored sets."""


@dataclass(frozen=True)
class MaskedGPTConfig:
    """Stage 2, the bidirectional masked-token transformer."""

    # sizes and budget (preset)
    n_layer: int = 3
    n_head: int = 4
    d_model: int = 128
    """Width of the transformer."""
    epochs: int = 5
    images_per_epoch: int | None = 400
    # switches (recipe)
    dropout: float = 0.0
    """Hiding tokens is regularisation enough for a short training."""
    inputs: Literal["tokens", "tokens_and_vectors"] = "tokens_and_vectors"
    """Released: token ids only. Revised: the encoder's vectors at the visible positions too."""
    encoder: Literal["frozen", "trained"] = "trained"
    """What reads the image for the transformer in the masked pretraining. frozen: the tokenizer's encoder. trained: a
    copy of it that learns along and never sees the pixels of a hidden cell (BEiT); stage 3 goes on with it."""
    norm: Literal["post", "pre"] = "pre"
    """Where LayerNorm stands in a block (Xiong et al. 2020)."""
    positions: Literal["first", "interpolated"] = "interpolated"
    """For an image with fewer tokens than the table has positions. Released: the first ones, whatever the shape."""
    mask_id: Literal["zero", "own"] = "own"
    """Released: masked positions read id 0, which is also a code. Corrected: id K, the slot meant for it."""
    mask_pattern: Literal["iid", "block", "variable"] = "variable"
    """iid: each position alone. block: squares. variable: squares at a ratio drawn anew for each image."""
    mask_ratio: float = 0.6
    """Expected share of masked positions (for `variable`, the middle of the range ±0.3)."""
    pretraining: Literal["joint", "separate"] = "separate"
    """Released: trained from scratch together with the segmentation. Described: a stage of its own before it."""
    images: Literal["labelled", "unlabelled"] = "unlabelled"
    """Which images it learns from, as for the tokenizer."""
    batch_size: int = 32
    """Images per step of the masked pretraining."""
    learning_rate: float = 2e-3
    """Peak of the masked pretraining; it goes with the batch size."""
    weight_decay: float = 0.05
    """AdamW's, in the masked pretraining."""

    @property
    def trains_encoder(self) -> bool:
        """Whether there is a masked pretraining that trains the encoder."""
        return self.encoder == "trained" and self.pretraining == "separate"


@dataclass(frozen=True)
class SegmentationConfig:
    """Stage 3, the supervised graph module."""

    # budget (preset)
    epochs: int = 4
    images_per_epoch: int | None = None
    """Images drawn per epoch; None for each image of the study's largest training set once: smaller sets are repeated,
    so that every row of a table has the same budget."""
    # switches (recipe)
    use_deepcut: bool = True
    """False replaces the graph module by a linear layer on the same features."""
    deepcut_loss_weight: float = 0.02
    """Of the unsupervised cut beside the supervised loss (released: 0.2). Its balance term pulls towards halves, which
    lesions are not."""
    graph_radius: float = math.sqrt(2) / 30
    """Reach of an edge, in `radius_unit`; the released value spans 2.6 cells at 56×56 tokens."""
    radius_unit: Literal["image", "cells"] = "image"
    """image: distance in [0,1]² over the token grid (released). cells: distance in tokens, the same at any grid."""
    affinity: Literal["position", "feature"] = "position"
    """Edge weights: one for every neighbour (released), or the similarity of the two nodes' features."""
    upsampling: Literal["bilinear", "guided"] = "guided"
    """Tokens → pixels: bilinear (released), or a light decoder guided by the encoder's feature maps and pixels."""
    loss_input: Literal["probabilities", "logits"] = "logits"
    """Released: softmax outputs enter a cross-entropy that applies softmax again and cannot go below 0.313."""
    class_weighted_dice: bool = False
    """Released: each class's Dice term is weighted by its clamped inverse frequency in the batch."""
    cross_entropy_weight: float = 1.0
    """Weight of the cross-entropy beside the Dice loss."""
    mlm_weight: float = 0.0
    """Weight of the masked-token loss beside the segmentation loss (released: 1, trained jointly)."""
    training_features: Literal["masked", "full"] = "full"
    """Released: the graph module sees features of the masked sequence in training and of the full one in evaluation."""
    encoder: Literal["frozen", "fine_tuned"] = "fine_tuned"
    """fine_tuned: a copy of the tokenizer's encoder, trained with the mask, feeds transformer and up-sampler. The words
    stay those of the frozen one."""
    encoder_lr_scale: float = 0.5
    """Learning rate of the fine-tuned encoder, as a share of `learning_rate`: what was pretrained moves slower."""
    transformer_lr_scale: float = 0.1
    """The same for the transformer (released: 1)."""
    self_training_weight: float = 1.0
    """Weight of the segmentation loss on unlabelled images beside the labelled ones, against what the averaged weights
    predict there (Tarvainen and Valpola 2017); 0 leaves them out (released)."""
    frozen_codebook: bool = True
    """Released under Lightning < 2.2: fit() put the tokenizer back in train mode, and its EMA codebook drifted."""
    frozen_transformer: bool = False
    """True keeps the pretrained transformer as it is: one that learned with the tokenizer's vectors reads those."""
    augmentation: Literal["released", "plain", "none"] = "released"
    schedule: Literal["cosine", "one_cycle"] = "one_cycle"
    """cosine: per epoch down to a tenth (released). one_cycle: warm-up, then cosine to zero, per step."""
    weight_average: bool = True
    """Score an exponential moving average of the weights instead of the last ones."""
    test_time_flips: bool = True
    """Score the mean prediction over an image and its flips (released: one look)."""
    batch_size: int = 8
    """Released: one image per step."""
    learning_rate: float = 2e-3
    """Peak; it goes with the batch size and the schedule."""
    weight_decay: float = 0.05
    """AdamW's; with the one-cycle schedule only matrices decay."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions are scored."""

    bootstrap_draws: int = 10_000
    batch_size: int = 32
    lpips_images: int = 16
    """Test images on which LPIPS is computed (VGG16 is the costliest network of the study)."""
    score_reduction: Literal["micro_two_class", "micro_lesion", "per_image", "per_image_thr65"] = "per_image"
    """The reduction that checkpoints are chosen by. Released: `micro_two_class`."""
    rivals: tuple[str, ...] = ("otsu",)
    """What the main results hold beside the study's own recipe: baselines and other recipes, by name."""
    train_sets: tuple[str, ...] = ()
    """Which training sets the main results have rows for; none named: every one that the data hold."""


@dataclass(frozen=True)
class AblationConfig:
    """The grids of notebook 05; each cell is a run of its own, with less training than the main stages."""

    budget: float = 0.25
    """Epochs of a cell, as a share of the main stages'."""
    images_per_epoch: int = 128
    """Images that a cell's supervised stage draws per epoch, however many labels it has."""
    codebook_sizes: tuple[int, ...] = (16, 64)
    graph_radii: tuple[float, ...] = (0.0, 2.6)
    """In cells of the token grid."""
    label_fractions: tuple[float, ...] = (0.05, 1.0)
    label_recipes: tuple[str, ...] = ()
    """Recipes that the table of label shares holds beside the study's own."""
    plain_unet: bool = False
    """Whether that table holds a second U-Net, trained the plain way (`grids.PLAIN`)."""
    deviations: tuple[str, ...] = ("segmentation.loss_input",)
    steps: tuple[str, ...] = ("segmentation.encoder",)
    """Switches by which `described` becomes `revised`, in the order in which they are tried."""
    baselines: tuple[str, ...] = ("otsu", "unet")
    full_baselines: bool = False
    """Whether the table of baselines has the budget of the main stages, and not that of a cell."""
    seeds: int = 1
    """Of the table of label shares."""
    deviation_seeds: int = 1


@dataclass(frozen=True)
class Config:
    """One study. `to_dict` and `from_dict` are inverse."""

    preset: str = "quick"
    recipe: str = "revised"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    masked_gpt: MaskedGPTConfig = field(default_factory=MaskedGPTConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := self.value(name)) < least:
                raise ConfigError(f"{name} must be {least} or more, not {value}")
        side = 2**self.vqgan.n_stages
        if self.data.image_size % side or self.data.image_size == side:
            raise ConfigError(
                f"data.image_size must be a multiple of the tokenizer's stride {side}, twice or more, "
                f"not {self.data.image_size}"
            )
        for channels in (self.vqgan.hidden_channels * 2**i for i in range(self.vqgan.n_stages + 1)):
            if channels % min(self.vqgan.norm_groups, channels):
                raise ConfigError(
                    f"vqgan.hidden_channels ({self.vqgan.hidden_channels}) gives a layer of {channels} "
                    f"channels, which {self.vqgan.norm_groups} norm groups do not divide"
                )
        if self.masked_gpt.d_model % self.masked_gpt.n_head:
            raise ConfigError(
                f"masked_gpt.d_model ({self.masked_gpt.d_model}) must be a multiple of masked_gpt.n_head "
                f"({self.masked_gpt.n_head})"
            )
        if self.masked_gpt.trains_encoder:
            for name, needed in TRAINED_ENCODER_NEEDS.items():
                if self.value(name) != needed:
                    raise ConfigError(
                        f"{name} is {self.value(name)}, but the encoder of a masked pretraining is only "
                        f"trained where it is {needed}; set masked_gpt.encoder=frozen too"
                    )
        if not 0 < self.data.label_fraction <= 1:
            raise ConfigError(f"data.label_fraction must lie in (0, 1], not {self.data.label_fraction}")
        if not 0 < self.masked_gpt.mask_ratio < 1:
            raise ConfigError(f"masked_gpt.mask_ratio must lie in (0, 1), not {self.masked_gpt.mask_ratio}")
        for stage in ("vqgan", "masked_gpt", "segmentation"):
            section = getattr(self, stage)
            for key in ("epochs", "batch_size", "images_per_epoch", "learning_rate"):
                value = getattr(section, key)
                if value is not None and value <= 0:
                    raise ConfigError(f"{stage}.{key} must be positive, not {value}")

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image."""
        return self.data.image_size // 2**self.vqgan.n_stages

    def value(self, name: str) -> Any:
        """The setting that `--set` calls ``stage.key``."""
        stage, key = name.split(".")
        return getattr(getattr(self, stage), key)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`. Raises ConfigError for an unknown key."""
        # models saved before there was a choice
        flat = {"segmentation.encoder": "frozen", "masked_gpt.encoder": "frozen"} | {
            f"{stage}.{key}": value for stage in STAGES for key, value in values.get(stage, {}).items()
        }
        head = {key: values[key] for key in ("preset", "recipe", "seed") if key in values}
        return dataclasses.replace(cls(**head), **_sections(cls(), flat))

    def with_recipe(self, recipe: str) -> Config:
        """The same settings under another recipe: every switch is that recipe's."""
        return dataclasses.replace(self, recipe=recipe).override(RECIPES[recipe])

    def override(self, values: dict[str, Any]) -> Config:
        """A copy with `stage.key` values replaced; strings are read as the field's type.

        Raises ConfigError for an unknown stage or key (listing the known ones) or a value of the wrong type.
        """
        return dataclasses.replace(self, **_sections(self, values))


_LEAST = dict.fromkeys(
    (
        "data.image_size",
        "vqgan.hidden_channels",
        "vqgan.norm_groups",
        "vqgan.code_dim",
        "vqgan.codebook_size",
        "vqgan.n_stages",
        "vqgan.disc_channels",
        "vqgan.perceptual_size",
        "vqgan.perceptual_every",
        "masked_gpt.n_head",
        "masked_gpt.d_model",
        "evaluation.bootstrap_draws",
        "evaluation.batch_size",
        "evaluation.lpips_images",
        "ablation.images_per_epoch",
        "ablation.seeds",
        "ablation.deviation_seeds",
    ),
    1,
) | {"vqgan.n_res_blocks": 0, "masked_gpt.n_layer": 0}
"""The smallest value of each size and count."""
TRAINED_ENCODER_NEEDS = {"segmentation.encoder": "fine_tuned", "masked_gpt.inputs": "tokens_and_vectors"}
"""Without these nothing would go on with, or learn from, an encoder that the masked pretraining trains."""
STAGES = {
    name: typing.get_type_hints(Config)[name]
    for name in ("data", "vqgan", "masked_gpt", "segmentation", "evaluation", "ablation")
}


@functools.cache
def _types() -> dict[str, Any]:
    """``stage.key`` → the field's type."""
    hints = {stage: typing.get_type_hints(cls) for stage, cls in STAGES.items()}
    return {f"{stage}.{f.name}": hints[stage][f.name] for stage, cls in STAGES.items() for f in dataclasses.fields(cls)}


def known_keys() -> list[str]:
    """Every ``stage.key`` that `--set` accepts."""
    return list(_types())


def _sections(config: Config, values: dict[str, Any]) -> dict[str, Any]:
    by_stage: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in _types():
            close = difflib.get_close_matches(name, known_keys(), n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"unknown setting {name!r}. {hint}Known: {', '.join(known_keys())}")
        stage, key = name.split(".")
        by_stage.setdefault(stage, {})[key] = _coerce(name, value, _types()[name])
    return {stage: dataclasses.replace(getattr(config, stage), **keys) for stage, keys in by_stage.items()}


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """Read `value` (a string from the command line, or JSON) as a field's type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{name} must be one of {', '.join(args)}, not {value!r}")
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return _coerce(name, value, next(a for a in args if a is not type(None)))
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{name} must be a list (on the command line: a,b,c), not {value!r}")
        return tuple(_coerce(name, item, args[0]) for item in items)
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
    elif kind is int:
        try:
            if not isinstance(value, bool) and float(value) == int(float(value)):
                return int(float(value))
        except (TypeError, ValueError, OverflowError):
            pass
    elif kind is float:
        try:
            if not isinstance(value, bool) and math.isfinite(float(value)):
                return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind):
        return value
    wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
    raise ConfigError(f"{name} must be {wanted}, not {value!r}")


PRESETS: dict[str, dict[str, Any]] = {
    # seconds, for the tests
    "tiny": {
        "data.image_size": 32,
        "data.synthetic_train": 24,
        "data.synthetic_validation": 8,
        "data.synthetic_test": 12,
        "data.synthetic_unlabelled": 16,
        "vqgan.hidden_channels": 8,
        "vqgan.norm_groups": 4,
        "vqgan.code_dim": 8,
        "vqgan.codebook_size": 16,
        "vqgan.disc_channels": 8,
        "vqgan.perceptual_size": 32,
        "vqgan.perceptual_every": 4,
        "vqgan.disc_start": 2,
        "vqgan.epochs": 2,
        "vqgan.images_per_epoch": 32,
        "masked_gpt.n_layer": 2,
        "masked_gpt.n_head": 2,
        "masked_gpt.d_model": 16,
        "masked_gpt.epochs": 2,
        "masked_gpt.images_per_epoch": 32,
        "segmentation.epochs": 2,
        "evaluation.bootstrap_draws": 200,
        "evaluation.lpips_images": 4,
        "ablation.budget": 0.5,
        "ablation.images_per_epoch": 24,
        "ablation.codebook_sizes": [8, 16],
        "ablation.graph_radii": [0.0, 1.5],
        "ablation.label_fractions": [0.25, 1.0],
        "ablation.deviations": ["segmentation.loss_input"],
    },
    # the default: two CPU cores, minutes, synthetic lesions
    "quick": {},
    # real images; each recipe about an hour on two CPU cores
    "small": {
        "data.image_size": 128,
        "data.synthetic_train": 2000,
        "data.synthetic_validation": 150,
        "data.synthetic_test": 600,
        "data.synthetic_unlabelled": 2000,
        "vqgan.norm_groups": 8,
        "vqgan.code_dim": 64,
        "vqgan.codebook_size": 256,
        "vqgan.disc_channels": 32,
        "vqgan.perceptual_size": 64,
        "vqgan.perceptual_every": 4,
        "vqgan.disc_start": 1000,
        "vqgan.epochs": 8,
        "vqgan.images_per_epoch": 2000,
        "masked_gpt.n_layer": 4,
        "masked_gpt.d_model": 128,
        "masked_gpt.epochs": 12,
        "masked_gpt.images_per_epoch": 2000,
        "segmentation.epochs": 16,
        "segmentation.images_per_epoch": 1000,
        "ablation.images_per_epoch": 300,
        "evaluation.lpips_images": 200,
        "evaluation.rivals": ["otsu", "unet", "released", "described"],
        "ablation.codebook_sizes": [64, 256, 512, 1024],
        "ablation.graph_radii": [0.0, 1.0, 1.5, 2.6, 5.0],
        "ablation.label_fractions": [0.02, 0.05, 0.1, 0.25, 0.5, 1.0],
        "ablation.seeds": 3,
        "ablation.label_recipes": ["released"],
        "ablation.steps": [
            "masked_gpt.inputs",
            "masked_gpt.mask_pattern",
            "segmentation.graph_radius",
            "segmentation.deepcut_loss_weight",
            "segmentation.upsampling",
            "segmentation.encoder",
            "masked_gpt.encoder",
            "segmentation.transformer_lr_scale",
            "segmentation.weight_average",
            "segmentation.batch_size",
            "segmentation.self_training_weight",
        ],
        "ablation.baselines": ["otsu", "unet", "unetplusplus", "fpn", "deeplabv3plus", "segformer", "upernet"],
        "ablation.full_baselines": True,
        # those that change the method most; each of them trains twice, and `full` has more
        "ablation.deviations": [
            "vqgan.input_normalisation",
            "vqgan.codebook_init",
            "masked_gpt.mask_id",
            "masked_gpt.pretraining",
            "segmentation.loss_input",
            "segmentation.deepcut_loss_weight",
            "segmentation.upsampling",
            "segmentation.encoder",
        ],
    },
    # the paper's sizes: 224 px and the hyper-parameters of the authors' README; one GPU
    "full": {
        "data.image_size": 224,
        "data.synthetic_train": 2000,
        "data.synthetic_validation": 150,
        "data.synthetic_test": 600,
        "data.synthetic_unlabelled": 2000,
        "vqgan.hidden_channels": 128,
        "vqgan.n_res_blocks": 2,
        "vqgan.norm_groups": 32,
        "vqgan.code_dim": 256,
        # the README names 64 for the tokenizer, 512 for segmentation and 1024 for the test and the published file
        "vqgan.codebook_size": 1024,
        "vqgan.disc_channels": 64,
        "vqgan.perceptual_size": 224,
        "vqgan.perceptual_every": 1,
        "vqgan.disc_start": 10_000,
        "vqgan.epochs": 100,
        "vqgan.images_per_epoch": None,
        "masked_gpt.n_layer": 12,
        "masked_gpt.n_head": 4,
        "masked_gpt.d_model": 256,
        "masked_gpt.epochs": 100,
        "masked_gpt.images_per_epoch": None,
        "segmentation.epochs": 200,
        "ablation.images_per_epoch": 2000,
        "ablation.full_baselines": True,
        "evaluation.lpips_images": 600,
        "ablation.codebook_sizes": [64, 256, 512, 1024],
        "ablation.graph_radii": [0.0, 1.0, 1.5, 2.6, 5.0],
        "ablation.label_fractions": [0.02, 0.05, 0.1, 0.25, 0.5, 1.0],
        "ablation.seeds": 3,
        "ablation.plain_unet": True,
        "ablation.deviation_seeds": 3,
        "ablation.deviations": [
            "vqgan.n_stages",
            "vqgan.input_normalisation",
            "vqgan.clamped_reconstruction",
            "vqgan.edge_weighted",
            "vqgan.perceptual",
            "vqgan.clamped_adversary",
            "vqgan.codebook_init",
            "vqgan.restart_dead_codes",
            "vqgan.augmented_validation",
            "vqgan.stepping_schedule",
            "vqgan.images",
            "masked_gpt.inputs",
            "masked_gpt.norm",
            "masked_gpt.mask_id",
            "masked_gpt.mask_pattern",
            "masked_gpt.pretraining",
            "segmentation.training_features",
            "segmentation.loss_input",
            "segmentation.class_weighted_dice",
            "segmentation.deepcut_loss_weight",
            "segmentation.affinity",
            "segmentation.graph_radius",
            "segmentation.upsampling",
            "segmentation.encoder",
            "segmentation.self_training_weight",
            "segmentation.frozen_codebook",
            "segmentation.batch_size",
            "evaluation.score_reduction",
        ],
    },
}
for _key in ("evaluation.rivals", "ablation.steps", "ablation.label_recipes", "ablation.baselines"):
    PRESETS["full"][_key] = PRESETS["small"][_key]

_RELEASED: dict[str, Any] = {
    "vqgan.n_stages": 2,
    "vqgan.input_normalisation": "imagenet_then_symmetric",
    "vqgan.clamped_reconstruction": True,
    "vqgan.edge_weighted": True,
    "vqgan.perceptual": "vgg_l1",
    "vqgan.perceptual_weight": 0.8,
    "vqgan.clamped_adversary": True,
    "vqgan.disc_weight": 0.5,
    "vqgan.codebook_init": "uniform",
    "vqgan.restart_dead_codes": False,
    "vqgan.augmented_validation": True,
    "vqgan.stepping_schedule": False,
    "vqgan.batch_size": 4,
    "vqgan.learning_rate": 1e-4,
    "vqgan.images": "labelled",
    "masked_gpt.dropout": 0.1,
    "masked_gpt.inputs": "tokens",
    "masked_gpt.encoder": "frozen",
    "masked_gpt.norm": "post",
    "masked_gpt.positions": "first",
    "masked_gpt.mask_id": "zero",
    "masked_gpt.mask_pattern": "iid",
    "masked_gpt.mask_ratio": 0.15,
    "masked_gpt.pretraining": "joint",
    "masked_gpt.images": "labelled",
    "masked_gpt.batch_size": 1,
    "masked_gpt.learning_rate": 1e-4,
    "masked_gpt.weight_decay": 0.1,
    "segmentation.deepcut_loss_weight": 0.2,
    "segmentation.affinity": "position",
    "segmentation.graph_radius": math.sqrt(2) / 30,
    "segmentation.radius_unit": "image",
    "segmentation.upsampling": "bilinear",
    "segmentation.encoder": "frozen",
    "segmentation.encoder_lr_scale": 1.0,
    "segmentation.transformer_lr_scale": 1.0,
    "segmentation.self_training_weight": 0.0,
    "segmentation.loss_input": "probabilities",
    "segmentation.class_weighted_dice": True,
    "segmentation.cross_entropy_weight": 0.5,
    "segmentation.mlm_weight": 1.0,
    "segmentation.training_features": "masked",
    "segmentation.frozen_codebook": True,
    "segmentation.schedule": "cosine",
    "segmentation.weight_average": False,
    "segmentation.test_time_flips": False,
    "segmentation.batch_size": 1,
    "segmentation.learning_rate": 1e-4,
    "segmentation.weight_decay": 0.1,
    "evaluation.score_reduction": "micro_two_class",
}

_DESCRIBED: dict[str, Any] = _RELEASED | {
    "vqgan.input_normalisation": "symmetric",
    "vqgan.clamped_reconstruction": False,
    "vqgan.edge_weighted": False,
    "vqgan.perceptual": "lpips",
    "vqgan.perceptual_weight": 0.2,
    "vqgan.clamped_adversary": False,
    "vqgan.disc_weight": 0.1,
    "vqgan.codebook_init": "kmeans",
    "vqgan.restart_dead_codes": True,
    "vqgan.augmented_validation": False,
    "vqgan.stepping_schedule": True,
    "vqgan.batch_size": 16,
    "vqgan.learning_rate": 1e-3,
    "vqgan.images": "unlabelled",
    "masked_gpt.norm": "pre",
    "masked_gpt.positions": "interpolated",
    "masked_gpt.mask_id": "own",
    "masked_gpt.pretraining": "separate",
    "masked_gpt.images": "unlabelled",
    "masked_gpt.batch_size": 16,
    "masked_gpt.learning_rate": 5e-4,
    "segmentation.loss_input": "logits",
    "segmentation.class_weighted_dice": False,
    "segmentation.cross_entropy_weight": 1.0,
    "segmentation.mlm_weight": 0.0,
    "segmentation.training_features": "full",
    "segmentation.schedule": "one_cycle",
    "segmentation.batch_size": 16,
    "segmentation.learning_rate": 1e-3,
    "evaluation.score_reduction": "per_image",
}

_REVISED: dict[str, Any] = {
    key: {f"{s}.{f.name}": f.default for s, cls in STAGES.items() for f in dataclasses.fields(cls)}[key]
    for key in _RELEASED
} | {"segmentation.graph_radius": 2.6, "segmentation.radius_unit": "cells"}

RECIPES: dict[str, dict[str, Any]] = {"released": _RELEASED, "described": _DESCRIBED, "revised": _REVISED}


def configure(
    preset: str = "quick", recipe: str = "revised", seed: int = 0, overrides: dict[str, Any] | None = None
) -> Config:
    """The configuration of a preset under a recipe, with the user's overrides last.

    Raises ConfigError for an unknown preset, recipe or key, and for a grid that names an unknown switch or recipe.
    """
    for kind, name, known in (("preset", preset, PRESETS), ("recipe", recipe, RECIPES)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}. Known: {', '.join(known)}")
    values = PRESETS[preset] | RECIPES[recipe] | (overrides or {})
    config = Config(preset=preset, recipe=recipe, seed=seed).override(values)
    # here and not in Config: a saved model opens although the grids of its study named what is gone by now
    for key in ("steps", "deviations", "label_recipes"):
        known = RECIPES if key == "label_recipes" else RECIPES["released"]
        if unknown := [name for name in getattr(config.ablation, key) if name not in known]:
            raise ConfigError(
                f"ablation.{key} names {unknown[0]!r}, which is no "
                f"{'recipe' if known is RECIPES else 'switch'}. Known: {', '.join(known)}"
            )
    return config


def switch_default(switch: str, recipe: str) -> Any:
    """The value that `recipe` gives to `switch`."""
    return RECIPES[recipe][switch]
