"""One study: its configuration, its data, its trained stages, and the folder where its results go."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tokencutseg.config import RECIPES, Config, ConfigError, configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.source import DataSource, open_source
from tokencutseg.evaluation.inference import predict_lesion_scores
from tokencutseg.evaluation.per_image import contrast, native_scores, score
from tokencutseg.experiments.names import differences, study_name
from tokencutseg.experiments.runs import ENVIRONMENT, Busy, Run, RunSpec, RunStore, environment
from tokencutseg.files import write_csv, write_json
from tokencutseg.models.checkpoint import CONFIG, PRETRAINED_PARTS, Baseline, build
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots.style import save
from tokencutseg.report.outputs import OUTPUTS
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.fit import Hardware, fit
from tokencutseg.training.modules import MaskedGPTModule, SegmenterModule, TokenCutSegModule, VQGANModule

_LOOP = (
    "epochs",
    "images_per_epoch",
    "class_weighted_dice",
    "cross_entropy_weight",
    "augmentation",
    "schedule",
    "weight_average",
    "test_time_flips",
    "batch_size",
    "learning_rate",
    "weight_decay",
)
"""What of stage 3's settings a baseline shares; the others are about our own model."""


def _check_methods(config: Config) -> None:
    """Raise ConfigError for a method that the tables are to hold and nobody knows."""
    from tokencutseg.models.baselines import BASELINES  # segmentation_models_pytorch is slow to import

    for setting, known in (
        ("evaluation.rivals", ["otsu", *BASELINES, *RECIPES]),
        ("ablation.baselines", ["otsu", *BASELINES]),
    ):
        if unknown := [name for name in config.value(setting) if name not in known]:
            raise ConfigError(f"{setting} names {unknown[0]!r}. Known: {', '.join(known)}")


class Finished(Exception):
    """There is nothing left to help with."""


class Study:
    """What a notebook holds in its hands.

    `tokenizer`, `transformer`, `segmenter` and `baseline` return finished runs, training what is missing (or raising
    NotTrained, where `training` is False); `records` scores one of them on a split; `table` and `figure` write results;
    `finish` is a notebook's last act.
    """

    def __init__(
        self,
        config: Config,
        source: DataSource,
        folder: str | Path,
        notebook: str | None = None,
        hardware: Hardware = Hardware(),
        training: bool = True,
    ) -> None:  # noqa: B008 (frozen)
        self.config, self.source, self.notebook, self.hardware = config, source, notebook, hardware
        self.folder = Path(folder)
        self.store = RunStore(self.folder / "runs", hardware.processes > 1, training)
        self._written: dict[str, set[str]] = {"tables": set(), "figures": set()}
        self._started = time.perf_counter()
        self._adopted: Run | None = None
        self.jobs, self.helping = 1, False

    @classmethod
    def open(
        cls,
        preset: str = "quick",
        recipe: str = "revised",
        seed: int = 0,
        data: str = "",
        results: str = "results",
        overrides: dict[str, Any] | None = None,
        notebook: str | None = None,
        hardware: Hardware = Hardware(),
        training: bool = True,
    ) -> Study:  # noqa: B008 (frozen)
        """Open a study as the notebooks do. Raises ConfigError and DataError, each in one sentence."""
        config = configure(preset, recipe, seed, overrides)
        if {"evaluation.rivals", "ablation.baselines"} & differences(config).keys():
            _check_methods(config)
        source = open_source(data, config)
        return cls(config, source, Path(results) / study_name(config, source.study_name), notebook, hardware, training)

    # ---- trained stages -------------------------------------------------------------------------------------------

    def tokenizer(self, config: Config | None = None, train_set: str | None = None) -> Run:
        """Stage 1. `train_set` matters only to a recipe whose tokenizer sees the labelled images alone."""
        config = config or self.config
        if self._adopted is not None:
            return self._adopted
        images = self._pool(config.vqgan.images, train_set)
        validation = self.source.load(self.source.primary, "validation")
        covers = {"image_size": config.data.image_size, "seed": config.seed, **dataclasses.asdict(config.vqgan)}
        spec = RunSpec("vqgan", config, covers, {"pool": images.fingerprint, "validation": validation.fingerprint})

        def train(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            torch.manual_seed(config.seed)
            module = VQGANModule(config)
            _, facts = self._fit(module, images, validation, config, "vqgan", folder)
            weights = None if module.perceptual is None else module.perceptual.weights_name
            return module.vqgan.state_dict(), facts | {"perceptual_weights": weights}

        return self.store.get_or_train(spec, train)

    def adopt_tokenizer(self, vqgan: VQGAN, origin: str) -> Run:
        """Make a tokenizer trained elsewhere (`origin` says where) a run of this study: `tokenizer` is then that one.

        The study's configuration takes over its sizes and switches.
        """
        self.config = dataclasses.replace(self.config, vqgan=vqgan.config)
        digest = hashlib.sha256()
        for key, value in vqgan.state_dict().items():
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        covers = {"image_size": self.config.data.image_size, **dataclasses.asdict(vqgan.config)}
        spec = RunSpec("vqgan", self.config, covers, {"weights": digest.hexdigest()})
        self._adopted = self.store.get_or_train(spec, lambda _: (vqgan.state_dict(), {"adopted_from": origin}))
        return self._adopted

    def transformer(self, config: Config | None = None, train_set: str | None = None) -> Run:
        """Stage 2; for a recipe that trains it jointly, the segmentation run that it is part of."""
        config = config or self.config
        if config.masked_gpt.pretraining == "joint":
            return self.segmenter(train_set, config)
        tokenizer = self.tokenizer(config, train_set)
        images = self._pool(config.masked_gpt.images, train_set)
        validation = self.source.load(self.source.primary, "validation")
        covers = {"image_size": config.data.image_size, "seed": config.seed, **dataclasses.asdict(config.masked_gpt)}
        spec = RunSpec(
            "masked_gpt",
            config,
            covers,
            {"tokenizer": tokenizer.id, "pool": images.fingerprint, "validation": validation.fingerprint},
        )

        def train(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            torch.manual_seed(config.seed)
            model = TokenCutSeg(config).load_pretrained(tokenizer.model().state_dict())
            _, facts = self._fit(MaskedGPTModule(config, model), images, validation, config, "masked_gpt", folder)
            return {key: value for key, value in model.state_dict().items() if key.startswith(PRETRAINED_PARTS)}, facts

        return self.store.get_or_train(spec, train)

    def segmenter(
        self,
        train_set: str | None = None,
        config: Config | None = None,
        pretrained: bool = True,
        seed: int | None = None,
    ) -> Run:
        """Stage 3, trained on the (labelled share of the) training split of `train_set`, by default the primary one.

        pretrained=False leaves the transformer untrained (and it then learns at the full rate), to measure what stage 2
        is worth. `seed` replaces the study's for this stage alone.
        """
        config, train_set = config or self.config, train_set or self.source.primary
        own = config if seed is None else dataclasses.replace(config, seed=seed)
        images, validation = self._labelled(train_set, own)
        own = self._budgeted(own, images)
        if not pretrained:
            own = own.override({"segmentation.frozen_transformer": False, "segmentation.transformer_lr_scale": 1.0})
        unlabelled = (
            self._pool(config.masked_gpt.images, train_set) if own.segmentation.self_training_weight > 0 else None
        )
        tokenizer = self.tokenizer(config, train_set)
        separate = config.masked_gpt.pretraining == "separate" and pretrained
        inputs = {"tokenizer": tokenizer.id, "train": images.fingerprint, "validation": validation.fingerprint}
        covers = self._supervised_part(own) | {"masked_gpt": dataclasses.asdict(config.masked_gpt)}
        seg = own.segmentation
        if seg.schedule == "cosine" and (
            seg.transformer_lr_scale != 1 or (seg.encoder == "fine_tuned" and seg.encoder_lr_scale != 1)
        ):
            covers["floor"] = "a tenth of each part's rate"  # which was once that of the largest
        transformer = self.transformer(config, train_set) if separate else None
        if transformer is not None:
            inputs["transformer"] = transformer.id
        if unlabelled is not None:
            inputs["unlabelled"] = unlabelled.fingerprint
            if not seg.weight_average:
                covers["own_teacher"] = "with dropout after its first look"  # which was lost once
        spec = RunSpec("segmentation", own, covers, inputs)

        def train(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            torch.manual_seed(own.seed)
            model = TokenCutSeg(own)  # before others are opened: they draw from the seed's numbers too
            before = None if transformer is None else transformer.model()
            model.load_pretrained(
                tokenizer.model().state_dict(),
                before and before.masked_gpt.state_dict(),
                before.encoder.state_dict() if before and own.masked_gpt.trains_encoder else None,
            )
            module = TokenCutSegModule(own, model, unlabelled)
            state, facts = self._fit(module, images, validation, own, "segmentation", folder)
            return state, facts | ({} if unlabelled is None else {"unlabelled_seen": int(module.unlabelled_seen)})

        return self.store.get_or_train(spec, train)

    def baseline(
        self, name: str, train_set: str | None = None, config: Config | None = None, seed: int | None = None
    ) -> Run:
        """A baseline network under stage 3's loop: same images, budget, augmentation, loss and choice of epoch."""
        config, train_set = config or self.config, train_set or self.source.primary
        config = config if seed is None else dataclasses.replace(config, seed=seed)
        images, validation = self._labelled(train_set, config)
        config = self._budgeted(config, images)
        own = {key: value for key, value in dataclasses.asdict(config.segmentation).items() if key in _LOOP}
        covers = self._supervised_part(config) | {"segmentation": own, "averages": "buffers too"}
        inputs = {"train": images.fingerprint, "validation": validation.fingerprint}
        spec = RunSpec("baseline", config, covers, inputs, name)

        def train(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            torch.manual_seed(config.seed)
            model = build("baseline", config, name)
            state, facts = self._fit(SegmenterModule(config, model), images, validation, config, "segmentation", folder)
            return state, facts | {"pretrained_weights": model.network.weights}

        return self.store.get_or_train(spec, train)

    # ---- scores ---------------------------------------------------------------------------------------------------

    def records(self, run: Run, dataset: str, split: str) -> pd.DataFrame:
        """Per-image records of a segmentation or baseline run on a split, scored on first use."""
        images = self.source.load(dataset, split)

        def compute() -> pd.DataFrame:
            model = run.model().to(self._device())
            margins = predict_lesion_scores(model, images, self.config.evaluation.batch_size)
            return self._scored(margins, images, model.name if isinstance(model, Baseline) else "tokencutseg")

        return run.records(images, compute)

    def otsu_records(self, dataset: str, split: str) -> pd.DataFrame:
        """Per-image records of the Otsu threshold, which learns nothing."""
        run = Run(self.store.folder / "otsu")
        run.folder.mkdir(parents=True, exist_ok=True)
        images = self.source.load(dataset, split)

        def compute() -> pd.DataFrame:
            from tokencutseg.models.baselines import otsu  # segmentation_models_pytorch is slow to import

            masks = torch.cat([otsu(chunk.float() / 255) for chunk in images.images.split(64)])
            return self._scored(2.0 * masks - 1, images, "otsu")

        return run.records(images, compute)

    @staticmethod
    def _scored(margins: Tensor, images: ImageSet, method: str) -> pd.DataFrame:
        """One row per image from its margins (N, S, S): `score`, `native_scores`, the lesion's contrast, and `cluster`
        (the patient or lesion, else the image itself) where it is known."""
        records = score(margins > 0, images.masks, images.ids, method=method).assign(contrast=contrast(images))
        if images.units is not None:
            records["cluster"] = images.units
        return records.join(native_scores(margins, images))

    def train_missing(self, cells: Sequence[Callable[[], Run]], split: str) -> None:
        """Train what a table is going to need and score it on a split of the primary set, where several processes
        (`jobs`) are at the same table: each takes what nobody is at. Raises Finished in one that only helps.
        """
        left = list(cells) if self.jobs > 1 else []
        while left:
            before, self.store.waits = left, False
            try:
                left = [cell for cell in before if not self._trained(cell, split)]
            finally:
                self.store.waits = True
            if len(left) == len(before):
                time.sleep(2)
        if self.helping:
            raise Finished

    def _trained(self, cell: Callable[[], Run], split: str) -> bool:
        """Whether a training is done and scored now; not while another process is at it."""
        try:
            self.records(cell(), self.source.primary, split)
        except Busy:
            return False
        return True

    # ---- results --------------------------------------------------------------------------------------------------

    def table(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Write tables/<name>.csv, with the study's config.json and environment.json above it, and return the table.

        Raises ValueError for an empty one.
        """
        if not len(table):
            raise ValueError(f"table {name!r} is empty")
        path = self.folder / "tables" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.config.to_dict(), self.folder / CONFIG)
        write_json(environment(), self.folder / ENVIRONMENT)
        write_csv(table, path)
        self._written["tables"].add(name)
        return table

    def figure(self, name: str, figure: Figure) -> Figure:
        """Write figures/<name>.pdf and .png and return the figure."""
        save(figure, self.folder / "figures", name)
        self._written["figures"].add(name)
        return figure

    def finish(self) -> str:
        """A notebook's last act: check that all of its tables and figures were written, and tell the runner.

        Raises RuntimeError when one is missing.
        """
        expected = OUTPUTS.get(self.notebook or "")
        if expected is not None:
            missing = [
                f"{kind}/{name}"
                for kind in ("tables", "figures")
                for name in getattr(expected, kind)
                if name not in self._written[kind]
            ]
            if missing:
                raise RuntimeError(f"{self.notebook} did not write {', '.join(missing)}")
        seconds = round(time.perf_counter() - self._started, 1)
        if os.environ.get("TOKENCUTSEG_RECORD"):
            record = {
                "token": os.environ.get("TOKENCUTSEG_RUN_TOKEN"),
                "seconds": seconds,
                **{kind: sorted(names) for kind, names in self._written.items()},
            }
            write_json(record, Path(os.environ["TOKENCUTSEG_RECORD"]))
        return (
            f"{len(self._written['tables'])} tables and {len(self._written['figures'])} figures in {self.folder}, "
            f"{seconds:.0f} s"
        )

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _pool(self, kind: str, train_set: str | None) -> ImageSet:
        return (
            self.source.unlabelled()
            if kind == "unlabelled"
            else self.source.load(train_set or self.source.primary, "train")
        )

    def _labelled(self, train_set: str, config: Config) -> tuple[ImageSet, ImageSet]:
        images = self.source.train(train_set, config.data.label_fraction, config.seed)
        return images, self.source.load(train_set, "validation")

    def _budgeted(self, config: Config, images: ImageSet) -> Config:
        """`config` with its supervised epochs as long as for the study's largest training set, where they are shorter:
        training on a small set then takes as many steps."""
        if config.segmentation.images_per_epoch is not None:
            return config
        sets = {train for train, _ in self.source.rows if self.source.has(train, "train")}
        longest = max((len(self.source.load(train, "train")) for train in sets), default=len(images))
        return config if len(images) >= longest else config.override({"segmentation.images_per_epoch": longest})

    def _supervised_part(self, config: Config) -> dict[str, Any]:
        return {
            "image_size": config.data.image_size,
            "seed": config.seed,
            "score_reduction": config.evaluation.score_reduction,
            "segmentation": dataclasses.asdict(config.segmentation),
        }

    def _fit(
        self, module: Any, images: ImageSet, validation: ImageSet, config: Config, stage: str, folder: Path
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        section = getattr(config, stage)
        train = TrainLoader(images, section.batch_size, section.images_per_epoch, config.seed)
        return fit(
            module,
            train,
            EvalLoader(validation, config.evaluation.batch_size),
            section.epochs,
            folder,
            stage,
            self.hardware,
        )

    @staticmethod
    def _device() -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"
