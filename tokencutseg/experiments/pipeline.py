"""The stages: which builds on which, what decides a training's outcome, how it is trained, and how it is scored.

tokenizer (`vqgan`) → masked transformer (`masked_gpt`) → segmenter (`segmentation`); baselines stand beside the last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tokencutseg.config import RECIPES, Config
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.source import DataSource
from tokencutseg.evaluation.inference import predict_lesion_scores
from tokencutseg.evaluation.per_image import contrast, native_scores, score
from tokencutseg.experiments.runs import Run, RunSpec, RunStore, Trained
from tokencutseg.models.baselines import declaration, otsu, self_trains
from tokencutseg.models.checkpoint import PRETRAINED_PARTS, build
from tokencutseg.models.hardware import Hardware, choose_device
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN

OURS = "tokencutseg"
"""The method under study, in columns `method`."""
BASELINE_SETTINGS = {
    *("epochs", "images_per_epoch", "batch_size", "learning_rate", "weight_decay", "schedule", "weight_average"),
    *("augmentation", "class_weighted_dice", "cross_entropy_weight", "test_time_flips"),
}
"""What of stage 3's settings a baseline shares; the others are about our own model."""
SELF_TRAINING = {f"self_training_{name}" for name in ("weight", "share", "mix", "hidden")}
"""What a baseline with self-training shares beyond that."""


@dataclass(frozen=True)
class Training:
    """One training, by what decides it; small, hashable and picklable."""

    stage: str  # vqgan, masked_gpt, segmentation or baseline
    config: Config
    train_set: str  # whose training split it learns from; no matter to a stage that learns from unlabelled images
    baseline: str | None = None  # which one; `otsu` learns nothing
    seed: int | None = None  # replaces the configuration's for this stage alone, and not for those that it builds on
    pretrained: bool = True  # False: the segmenter's transformer starts untrained, and learns at the full rate
    score_on: tuple[tuple[str, str], ...] = ()  # (dataset, split) pairs to be scored on; they decide nothing

    @property
    def section(self) -> str:
        """The section of the configuration with its loop."""
        return "segmentation" if self.stage == "baseline" else self.stage


class Pipeline:
    """Trains and scores what is asked for, with a configuration, a data source and a run store.

    `tokenizer`, `transformer`, `segmenter` and `baseline` return finished runs, training what is missing, by default
    with the pipeline's configuration and on the primary dataset; `seed=` and `pretrained=` are those of `Training`.
    `records` scores one of them on a split.
    """

    def __init__(self, config: Config, source: DataSource, store: RunStore, hardware: Hardware | None = None) -> None:
        self.config, self.source, self.store, self.hardware = config, source, store, hardware or Hardware()
        self.adopted: RunSpec | None = None
        self._specs: dict[tuple[Training, str], RunSpec] = {}

    def tokenizer(self, config: Config | None = None, train_set: str | None = None) -> Run:
        """Stage 1."""
        return self.run(self.training("vqgan", config, train_set))

    def transformer(self, config: Config | None = None, train_set: str | None = None) -> Run:
        """Stage 2; for a recipe that trains it jointly, the segmentation run that it is part of."""
        joint = (config or self.config).masked_gpt.pretraining == "joint"
        return self.run(self.training("segmentation" if joint else "masked_gpt", config, train_set))

    def segmenter(self, train_set: str | None = None, config: Config | None = None, **options: Any) -> Run:
        """Stage 3, trained on the (labelled share of the) training split of `train_set`."""
        return self.run(self.method(OURS, train_set, config, **options))

    def baseline(self, name: str, train_set: str | None = None, config: Config | None = None, **options: Any) -> Run:
        """A baseline network under stage 3's loop: same images, budget, augmentation, loss and choice of epoch."""
        return self.run(self.method(name, train_set, config, **options))

    def method(self, name: str, train_set: str | None = None, config: Config | None = None, **options: Any) -> Training:
        """The supervised training of a method: `tokencutseg`, another recipe of it by name, or a baseline."""
        if name in RECIPES:
            return self.method(OURS, train_set, (config or self.config).with_recipe(name), **options)
        options |= {} if name == OURS else {"baseline": name}
        return self.training("segmentation" if name == OURS else "baseline", config, train_set, **options)

    def training(self, stage: str, config: Config | None = None, train_set: str | None = None, **more: Any) -> Training:
        """A declaration, for `run` and the engine."""
        return Training(stage, config or self.config, train_set or self.source.primary, **more)

    def adopt_tokenizer(self, vqgan: VQGAN, origin: str) -> Run:
        """Make a tokenizer trained elsewhere (`origin` says where), and its settings, what everything builds on."""
        self.config, digest = dataclasses.replace(self.config, vqgan=vqgan.config), hashlib.sha256()
        self._specs.clear()  # which may name the tokenizer of before
        for key, value in vqgan.state_dict().items():
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        settings = {"image_size": self.config.data.image_size, "vqgan": self.config.non_default("vqgan")}
        self.adopted = RunSpec("vqgan", self.config, settings, {"weights": digest.hexdigest()})
        return self.store.get_or_train(self.adopted, lambda _: (vqgan.state_dict(), {"adopted_from": origin}))

    # ---- the graph of stages ----------------------------------------------------------------------------------------

    def run(self, training: Training) -> Run:
        """The finished run of a training, which is done, resumed or started with those that it builds on."""
        spec = self.spec(training)
        if not Run(self.store.folder / spec.id).done:
            for parent in self.parents(training).values():
                self.run(parent)
        return self.store.get_or_train(spec, lambda folder: self._train(training, spec.config, folder))

    def parents(self, training: Training) -> dict[str, Training]:
        """The trainings whose outcome a training starts from, by their part in it."""
        config, parents = training.config, {}
        if training.stage in ("masked_gpt", "segmentation"):
            parents["tokenizer"] = Training("vqgan", config, training.train_set)
        if training.stage == "segmentation" and training.pretrained and config.masked_gpt.pretraining == "separate":
            parents["transformer"] = Training("masked_gpt", config, training.train_set)
        return parents

    def spec(self, training: Training) -> RunSpec:
        """What decides the outcome of a training; nothing is trained for that."""
        if training.stage == "vqgan" and self.adopted is not None:
            return self.adopted
        name = training.baseline
        key = training, json.dumps(declaration(name)) if name and name != "otsu" else ""  # a notebook may change it
        found = self._specs[key] = self._specs.get(key) or self._spec(training)
        return found

    def _spec(self, training: Training) -> RunSpec:
        config, size = training.config, {"image_size": training.config.data.image_size}
        if training.baseline == "otsu":
            own = size | {"data": config.non_default("data")}
            return RunSpec("baseline", config, own, {"data": self.source.study_name}, "otsu")
        data = self._data(training)
        config = self._settings(training, len(data["train"]))
        own = config.non_default(training.section)
        if training.stage == "baseline":
            shared = BASELINE_SETTINGS | (SELF_TRAINING if self_trains(training.baseline) else set())
            own = {key: value for key, value in own.items() if key in shared}
        settings: dict[str, Any] = {**size, "seed": config.seed, training.section: own}
        if training.section == "segmentation":
            settings["score_reduction"] = config.evaluation.score_reduction
        if training.stage == "segmentation":
            settings["masked_gpt"] = config.non_default("masked_gpt")
        elif "self_training_hidden" in own:
            settings["hidden_cells"] = [config.grid_size, config.masked_gpt.mask_pattern]
        dependencies = {name: images.fingerprint for name, images in data.items()}
        dependencies |= {name: self.spec(parent).id for name, parent in self.parents(training).items()}
        declared = None if training.baseline is None else declaration(training.baseline)
        return RunSpec(training.stage, config, settings, dependencies, training.baseline, declared)

    def _settings(self, training: Training, images: int) -> Config:
        """The configuration that a training runs with. Supervised epochs are as long as for the largest training set of
        the source, where they are shorter: training on a small set then takes as many steps."""
        config = training.config if training.seed is None else dataclasses.replace(training.config, seed=training.seed)
        if not training.pretrained:
            config = config.override({"segmentation.frozen_transformer": False, "segmentation.transformer_lr_scale": 1})
        if training.section == "segmentation" and config.segmentation.images_per_epoch is None:
            sets = {train for train, _ in self.source.rows if self.source.has(train, "train")}
            longest = max((len(self.source.load(train, "train")) for train in sets), default=0)
            if images < longest:
                config = config.override({"segmentation.images_per_epoch": longest})
        return config

    def _data(self, training: Training) -> dict[str, ImageSet]:
        """The images that a training learns from, and those that its epochs are scored on."""
        config, source, name = training.config, self.source, training.train_set
        kind = (config.vqgan if training.stage == "vqgan" else config.masked_gpt).images
        if training.section != "segmentation":
            images = source.unlabelled() if kind == "unlabelled" else source.load(name, "train")
            return {"train": images, "validation": source.load(source.primary, "validation")}
        seed = config.seed if training.seed is None else training.seed
        labelled = source.train(name, config.data.label_fraction, seed)
        data = {"train": labelled, "validation": source.load(name, "validation")}
        learns_alone = training.baseline is None or self_trains(training.baseline)
        if learns_alone and config.segmentation.self_training_weight > 0:
            data["unlabelled"] = source.unlabelled() if kind == "unlabelled" else source.load(name, "train")
        return data

    def _train(self, training: Training, config: Config, folder: Path) -> Trained:
        if training.baseline == "otsu":
            return {}, {"images_seen": 0, "training_images": 0, "seconds": 0.0, "pretrained_weights": "none"}
        from tokencutseg.training import modules
        from tokencutseg.training.batches import EvalLoader, TrainLoader
        from tokencutseg.training.fit import fit  # Lightning is slow to import

        data, stage = self._data(training), training.stage
        before = {name: self.run(parent).model() for name, parent in self.parents(training).items()}
        torch.manual_seed(config.seed)  # after the parents are opened, which draws from it
        if stage == "vqgan":
            module = modules.VQGANModule(config)
        elif stage == "baseline":
            model = build("baseline", config, training.baseline)
            module = modules.SegmenterModule(config, model, data.get("unlabelled"))
        else:
            model = TokenCutSeg(config)
            model.vqgan.load_state_dict(before["tokenizer"].state_dict())
            if "transformer" in before:
                model.masked_gpt.load_state_dict(before["transformer"].masked_gpt.state_dict())
            if stage == "masked_gpt":
                module = modules.MaskedGPTModule(config, model)
            else:
                module = modules.TokenCutSegModule(config, model, data.get("unlabelled"))
        loop = getattr(config, training.section)
        train = TrainLoader(data["train"], loop.batch_size, loop.images_per_epoch, config.seed)
        validation = EvalLoader(data["validation"], config.evaluation.batch_size)
        state, facts = fit(module, train, validation, loop.epochs, folder, self.hardware)
        if stage == "vqgan":
            perceptual = None if module.perceptual is None else module.perceptual.lpips.weights_name
            return module.vqgan.state_dict(), facts | {"perceptual_weights": perceptual}
        if stage == "masked_gpt":
            return {key: value for key, value in model.state_dict().items() if key.startswith(PRETRAINED_PARTS)}, facts
        if stage == "baseline":
            facts["pretrained_weights"] = module.model.initialisation
        if "unlabelled" in data:
            facts["unlabelled_seen"] = int(module.unlabelled_seen)
        return state, facts

    # ---- scores -----------------------------------------------------------------------------------------------------

    def records(self, run: Run, dataset: str, split: str) -> pd.DataFrame:
        """Per-image records of a segmentation or baseline run on a split, scored on first use: one row per image with
        what `score` and `native_scores` give, the lesion's `contrast`, and `cluster` (the patient or lesion, else the
        image itself) where it is known."""
        images, name = self.source.load(dataset, split), run.metadata["name"]

        def compute() -> pd.DataFrame:
            if name == "otsu":
                margins = torch.cat([2.0 * otsu(chunk.float() / 255) - 1 for chunk in images.images.split(64)])
            else:
                model = run.model().to(choose_device(self.hardware.device))
                margins = predict_lesion_scores(model, images, self.config.evaluation.batch_size)
            rows = score(margins > 0, images.masks, images.ids, method=name or OURS).assign(contrast=contrast(images))
            if images.units is not None:
                rows["cluster"] = images.units
            return rows.join(native_scores(margins, images))

        return run.records(images, compute)
