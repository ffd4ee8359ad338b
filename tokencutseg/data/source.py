"""Where a study's images come from: synthetic lesions, official sets, folders of the user's own, or several of them."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tokencutseg.config import Config
from tokencutseg.data import audit, synthetic
from tokencutseg.data.datasets import DATASETS, POOL_SPLITS, Split, global_id
from tokencutseg.data.folders import find_datasets
from tokencutseg.data.image_set import ImageSet, cached_arrays, load_split
from tokencutseg.data.images import DataError, summed_up
from tokencutseg.data.pairing import Found

NEAR = "near duplicate"
Rows = list[tuple[str, str]]
Loaders = Mapping[str, Mapping[str, Callable[[], ImageSet]]]


class DataSource:
    """Everything a study may look at, at one image size.

    Attributes:
        name: "synthetic", "isic" for the official ISIC sets, the name of the user's folder, or several joined by "-".
        study_name: what stands for the data in a study's folder name: letters and digits of any script, and a digest
            of what the data hold, so that two folders of one name are two studies; synthetic is plainly "synthetic".
        primary: the dataset that most of the study is about.
        rows: (train dataset, test dataset) pairs of the main results; `has` tells which of them can be run.
        found: what the folders hold, with notes and problems; empty for other data.
    """

    def __init__(self, name: str, primary: str, rows: Rows, loaders: Loaders, found: Found | None = None) -> None:
        self.name, self.primary, self.rows, self.found = name, primary, rows, found or Found()
        slug = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).strip("_.-")
        digest = _digest([split for parts in self.found.datasets.values() for split in parts.values()])
        self.study_name = "-".join(filter(None, (slug, digest)))
        self._loaders = loaders
        self._loaded: dict[tuple[str, str], ImageSet] = {}

    @property
    def datasets(self) -> dict[str, list[str]]:
        """The splits that are there, by dataset."""
        return {dataset: list(splits) for dataset, splits in self._loaders.items()}

    def has(self, dataset: str, split: str) -> bool:
        return split in self._loaders.get(dataset, {})

    def load(self, dataset: str, split: str) -> ImageSet:
        """One split, kept for the next call; warns of what was chosen or looks wrong in it. Raises DataError when it is
        not there."""
        if not self.has(dataset, split):
            raise DataError(self._missing(dataset, split))
        if (dataset, split) not in self._loaded:
            self._loaded[dataset, split] = images = self._loaders[dataset][split]()
            for note in images.notes:
                warnings.warn(note, stacklevel=2)
        return self._loaded[dataset, split]

    def note(self, dataset: str, split: str) -> str:
        """What has to be said beside every number of a split, such as that it stands in for another; mostly nothing."""
        part = self.found.datasets.get(dataset, {}).get(split)
        return part.note if part else ""

    def missing_images(self, *splits: tuple[str, str]) -> str | None:
        """What of the official images is not there or what stands in for them, by (dataset, split): empty where nothing
        is missing, None where a whole split is."""
        if not all(self.has(*split) for split in splits):
            return None
        partial = [images for images in (self.load(*split) for split in splits) if not images.complete]
        said = [f"{one.dataset} {one.split} partial: {len(one)} of {one.expected}" for one in partial]
        said += [f"{dataset} {split}: {note}" for dataset, split in splits if (note := self.note(dataset, split))]
        return "; ".join(said)

    def train(self, dataset: str, fraction: float = 1.0, seed: int = 0) -> ImageSet:
        """A share of the training split, at least two images, in the split's order.

        It is the beginning of a permutation drawn with `seed`, so a smaller fraction is part of a larger one. Raises
        DataError for a fraction outside (0, 1].
        """
        if not 0 < fraction <= 1:
            raise DataError(f"the fraction of {dataset}/train must lie in (0, 1], not {fraction}")
        whole = self.load(dataset, "train")
        if fraction == 1:
            return whole
        n = min(len(whole), max(2, round(fraction * len(whole))))
        return whole.subset(np.sort(np.random.default_rng(seed).permutation(len(whole))[:n]))

    @cached_property
    def overlaps(self) -> pd.DataFrame:
        """Every pair of images of all splits that is the same by id, content or appearance, as `audit.overlaps` finds
        them; found once and kept on disk for the same images."""
        sets = {(images.dataset, images.split): images for images in self._all()}
        held = [[*key, images.digest] for key, images in sets.items()]
        key = hashlib.sha256(json.dumps([held, inspect.getsource(audit)]).encode()).hexdigest()[:16]

        def build() -> dict[str, np.ndarray]:
            found = audit.overlaps(sets, progress=sys.stderr.isatty())
            return {"pairs": np.array([json.dumps(found.to_numpy(object).tolist())])}

        pairs = json.loads(str(cached_arrays(f"overlaps-{key}", build)["pairs"][0]))
        return pd.DataFrame(pairs, columns=audit.COLUMNS).astype({"distance": float})

    def unlabelled(self) -> ImageSet:
        """The images of self-supervised training, without masks: every training and unlabelled image of every dataset.

        Left out is each image that is also in a validation or test split of any dataset, under any id, as the same
        pixels or as a near duplicate (up to `audit.MAX_DISTANCE`), or that shows a patient or lesion of one there as
        far as that is known; and each but the first of images with the same id or pixels. `unlabelled_exclusions` says
        what was left out and why.
        """
        return self._unlabelled[0]

    @property
    def unlabelled_exclusions(self) -> list[dict[str, str]]:
        """One record (dataset, split, id, reason) for each image that `unlabelled` leaves out."""
        return self._unlabelled[1]

    def check(self) -> list[str]:
        """Read every split, and return all that cannot be used, one sentence each; afterwards all pixels are cached."""
        problems = list(self.found.problems)
        for dataset, splits in self.datasets.items():
            for split in splits:
                try:
                    with warnings.catch_warnings(action="ignore"):  # `describe` lists the notes
                        self.load(dataset, split)
                except DataError as error:
                    problems.append(str(error))
        return problems

    def describe(self) -> list[str]:
        """What is there, one line each: every split with its count and what is missing, the rows that will be scored
        and those that will not, and the notes of what was chosen or skipped."""
        lines = []
        for dataset, splits in self.found.datasets.items():
            for name, split in splits.items():
                of = "" if split.complete else f" of {split.expected}: partial"
                lines.append(f"{dataset}/{name}: {len(split.samples)}{of}{split.note and f' ({split.note})'}")
        for train, test in self.rows:
            absent = [f"{dataset}/{s}" for dataset, s in ((train, "train"), (test, "test")) if not self.has(dataset, s)]
            lines.append(f"{train} → {test}: " + (f"not scored, no {' and '.join(absent)}" if absent else "scored"))
        loaded = [note for images in self._loaded.values() for note in images.notes]
        return lines + [f"note: {note}" for note in (*self.found.notes, *loaded)]

    def _all(self) -> list[ImageSet]:
        return [self.load(dataset, split) for dataset, splits in self.datasets.items() for split in splits]

    @cached_property
    def _unlabelled(self) -> tuple[ImageSet, list[dict[str, str]]]:
        pool = [images for images in self._all() if images.split in POOL_SPLITS]
        reasons = self._reasons_to_leave_out(pool)
        near = {key for key, reason in reasons.items() if reason.startswith(NEAR)}
        if 2 * len(near) > sum(map(len, pool)) - len(reasons) + len(near):
            said = f"{len(near)} images of the {self.name} data look like scored ones, as drawings do"
            warnings.warn(f"{said}: only the same ids and pixels are left out of self-supervised stages", stacklevel=2)
            reasons = {key: reason for key, reason in reasons.items() if key not in near}
        kept = [s.subset([k for k, i in enumerate(s.ids) if (s.dataset, s.split, i) not in reasons]) for s in pool]
        if not any(map(len, kept)):
            raise DataError(f"the {self.name} data hold no image to learn from that is in no scored split")
        records = [{"dataset": d, "split": s, "id": i, "reason": reason} for (d, s, i), reason in reasons.items()]
        images, ids = torch.cat([s.images for s in kept]), [i for s in kept for i in s.ids]
        sizes = [size for s in kept for size in s.native_sizes]
        return ImageSet(self.name, "unlabelled", ids, images, None, None, sizes), records

    def _reasons_to_leave_out(self, pool: list[ImageSet]) -> dict[tuple[str, str, str], str]:
        """{(dataset, split, id): reason} for the images of self-supervised training that `unlabelled` leaves out."""
        pairs = audit.both_ways(self.overlaps)  # the second half has the later image first
        repeats = (np.arange(len(pairs)) >= len(self.overlaps)) & (pairs["kind"] != NEAR)
        scored = ~pairs["split_2"].isin(POOL_SPLITS)
        same: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for *one, dataset, split, _, kind, _ in pairs[scored | repeats].itertuples(index=False):
            same[tuple(one)].append(f"{kind} as in {dataset}/{split}")
        shown = {unit: s for s in self._all() if s.split not in POOL_SPLITS for unit in _clusters(s) if unit}
        reasons: dict[tuple[str, str, str], str] = {}
        for images in pool:
            for own, unit in zip(images.ids, _clusters(images), strict=True):
                key = images.dataset, images.split, own
                if unit in shown:
                    same[key].append(f"same patient or lesion as in {shown[unit].dataset}/{shown[unit].split}")
                if key in same:
                    reasons[key] = min(same[key], key=lambda reason: reason.startswith(NEAR))
        return reasons

    def _missing(self, dataset: str, split: str) -> str:
        get = f"get it with `tokencutseg fetch {dataset}`, or " if dataset in DATASETS else ""
        there = ", ".join(f"{name}/{part}" for name, parts in self.datasets.items() for part in parts)
        return f"{dataset}/{split} is not in the {self.name} data; {get}use what is there: {there}"


def open_source(data: str | Path | Sequence[str | Path] | None, config: Config, strict: bool = True) -> DataSource:
    """The data of a study: synthetic lesions for "" or None, else what lies in the folder or folders `data`.

    Raises DataError that names every problem of the folders (`find_datasets`), or that nothing can be trained and
    scored; with `strict=False` problems are left in `found.problems`.
    """
    roots = [root for root in ([data] if data is None or isinstance(data, str | Path) else data) if root]
    if not roots:
        return _synthetic_source(config)
    found = find_datasets(*roots)
    sets, size = found.datasets, config.data.image_size
    trained = [name for name, splits in sets.items() if "train" in splits]
    rows = _rows(sets, trained)
    scored = any("train" in sets.get(train, {}) and "test" in sets.get(test, {}) for train, test in rows)
    if strict and not scored and not found.problems:
        there = ", ".join(f"{name}/{split}" for name, splits in sets.items() for split in splits) or "nothing"
        said = f"{', '.join(map(str, roots))} cannot be trained and scored on: there is {there}"
        found.problems.append(f"{said}; add images with masks, for example with `tokencutseg fetch isic2017`")
    if strict and found.problems:
        raise DataError(summed_up(found.problems))
    loaders = {
        name: {split: partial(load_split, part, size) for split, part in splits.items()}
        for name, splits in sets.items()
    }
    names = dict.fromkeys("isic" if name in DATASETS and trained else name for name in sets)
    first = next(iter(trained or sets), "")
    if first in DATASETS:
        first = min((name for name in trained or sets if name in DATASETS), key=lambda name: DATASETS[name].preference)
    return DataSource("-".join(names), first, rows, loaders, found)


def folder_source(name: str, image_size: int, splits: list[Split]) -> DataSource:
    """A source of one dataset whose splits lie in folders of any name, as `pair_folders` reads them."""
    loaders = {name: {split.name: partial(load_split, split, image_size) for split in splits}}
    return DataSource(name, name, [(name, name)], loaders)


def _rows(sets: dict[str, dict[str, Split]], trained: list[str]) -> Rows:
    """Each training set on its own test split, the registry's pairs, then every training set on every other test set;
    of two official sets that are both trained on, the registry's pairs alone."""
    official = [name for name in DATASETS if "train" in DATASETS[name].splits]
    rows = [(name, name) for name in trained if name not in DATASETS]
    if any(name in official for name in trained):
        rows += [(name, name) for name in official]
        rows += [(name, test) for name in official for test in DATASETS[name].also_tested_on]
    tested = [name for name, splits in sets.items() if "test" in splits]
    rows += [(train, test) for train in sorted(trained) for test in tested if not {train, test} <= {*official}]
    return list(dict.fromkeys(rows))


def _digest(splits: list[Split]) -> str:
    """8 hex digits of what the splits hold: ids, file lengths and a few bytes, so that a copy has the same, wherever it
    lies."""
    held = [
        f"{split.dataset}/{split.name}/{sample.id} {[file.stat().st_size for file in sample.files if file.exists()]}"
        for split in splits
        for sample in split.samples
    ]
    digest = hashlib.sha256("\n".join(sorted(held)).encode())
    for split in splits:  # uncompressed files of other images may have the same lengths
        for sample in split.samples[:: len(split.samples) // 4 + 1]:
            for path in filter(Path.is_file, sample.files):
                with path.open("rb") as file:
                    file.seek(path.stat().st_size // 2)
                    digest.update(file.read(4096))
    return digest.hexdigest()[:8] if held else ""


def _synthetic_source(config: Config) -> DataSource:
    data = config.data
    counts = {"train": data.synthetic_train, "validation": data.synthetic_validation, "test": data.synthetic_test}
    half = data.synthetic_unlabelled // 2
    loaders = {}
    for site, unlabelled in (("site_a", data.synthetic_unlabelled - half), ("site_b", half)):
        there = {split: n for split, n in (counts | {"unlabelled": unlabelled}).items() if n > 0}
        loaders[site] = {split: partial(_drawn, site, split, n, data.image_size) for split, n in there.items()}
    rows = [("site_a", "site_a"), ("site_b", "site_b"), ("site_a", "site_b")]
    return DataSource("synthetic", "site_a", rows, loaders)


def _drawn(site: str, split: str, n: int, size: int) -> ImageSet:
    # the same for every seed of a study, as real images are
    seed = int.from_bytes(hashlib.sha256(f"2024 {site} {split}".encode()).digest()[:4], "big")
    # the generator's own text is part of the key: images drawn by older code are not taken for new ones
    code = hashlib.sha256(inspect.getsource(synthetic).encode()).hexdigest()[:16]

    def build() -> dict[str, np.ndarray]:
        return dict(zip(("images", "masks"), synthetic.generate(site, n, size, seed), strict=True))

    arrays = cached_arrays(f"{site}-{split}-{n}-{size}-{code}", build)
    masks = None if split == "unlabelled" else torch.from_numpy(arrays["masks"])
    ids = [f"{site}_{split}_{i:05d}" for i in range(n)]
    return ImageSet(site, split, ids, torch.from_numpy(arrays["images"]), masks, None, [(size, size)] * n)


def _clusters(images: ImageSet) -> list[str | None]:
    """The patient or lesion of each image, as far as it is known, by a name that no other dataset uses."""
    return [own and global_id(images.dataset, own) for own in images.clusters or [None] * len(images)]
