"""Datasets on disk: the official ISIC folders and a user's own, paired by id and checked before anything is decoded.

- `isic2016`: `ISBI2016_ISIC_Part1_{Training,Test}_Data` and `…_GroundTruth`, 900 / 379 images
- `isic2017`: `ISIC-2017_{Training,Validation,Test_v2}_Data` and `…_Part1_GroundTruth`, 2000 / 150 / 600
- `isic2018`: `ISIC2018_Task1-2_{Training,Validation,Test}_Input` and `ISIC2018_Task1_…_GroundTruth`, 2594 / 100 / 1000
- `ham10000`: `HAM10000_images_part_1` and `HAM10000_images_part_2`, or `ham10000_unlabelled`; no masks, 10015

The folders lie in the root itself or one level down (`isic2017/ISIC-2017_Training_Data`). ISIC 2016 has no validation
split: about 10 % of its training images, drawn by a hash of the id, become one.

A user's own data is a folder with `images/` and `masks/`, either directly (split 70/15/15 by a hash of the id) or
inside each of `train/`, `validation/` (or `val/`) and `test/`. Images without masks may lie in `unlabelled/`.
A mask is named as its image, or with `_segmentation` or `_mask` behind it.

What the files do not say may stand in a table beside the sets, `manifest.csv` in the root: the column `id`, and any of
`native_size` (WIDTHxHEIGHT in pixels, of photographs whose files here have another size or shape), `patient_id` and
`lesion_id` (what images have in common).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokencutseg.data.images import DataError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
VALIDATION_SHARE_2016 = 0.10
MANIFEST = "manifest.csv"
CLUSTERS = ("patient_id", "lesion_id")
"""Columns of a manifest that say which images belong together, the wider first."""
OWN_SHARES = {"test": 0.15, "validation": 0.15, "train": 0.70}


@dataclass(frozen=True)
class Sample:
    """One image and its mask, if it has one."""

    id: str
    image: Path
    mask: Path | None
    native_size: tuple[int, int] | None = None
    """(H, W) of the photograph in pixels, where a manifest gives it."""
    cluster: str | None = None
    """What it shares with other images, the patient or the lesion, where a manifest gives it."""

    @property
    def files(self) -> list[Path]:
        return [file for file in (self.image, self.mask) if file]


@dataclass(frozen=True)
class Split:
    """The samples of one split, in the order of their ids."""

    dataset: str
    name: str
    samples: tuple[Sample, ...]
    expected: int | None
    """How many samples the official split has; None for a user's own data."""

    @property
    def complete(self) -> bool:
        return self.expected is None or len(self.samples) == self.expected


@dataclass(frozen=True)
class _Official:
    images: tuple[str, ...]
    """Any of these folders; what they hold is put together."""
    masks: str | None
    expected: int


def _isic(images: str, masks: str, **expected: int) -> dict[str, _Official]:
    """One year's splits; `{}` stands for the archive's name of the split."""
    names = {"train": "Training", "validation": "Validation", "test": "Test_v2" if "2017" in images else "Test"}
    return {
        split: _Official((images.format(names[split]),), masks.format(names[split]), count)
        for split, count in expected.items()
    }


OFFICIAL: dict[str, dict[str, _Official]] = {
    "isic2016": _isic("ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth", train=900, test=379),
    "isic2017": _isic("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", train=2000, validation=150, test=600),
    "isic2018": _isic(
        "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", train=2594, validation=100, test=1000
    ),
    "ham10000": {
        "unlabelled": _Official(
            ("HAM10000_images_part_1", "HAM10000_images_part_2", "ham10000_unlabelled"), None, 10_015
        )
    },
}


def find_datasets(root: str | Path) -> dict[str, dict[str, Split]]:
    """Every dataset under `root`, as {dataset: {split: Split}}; `root` may also be one dataset of the user's own.

    An official split whose masks were never published (or are not there) is left out, training splits excepted.
    Raises DataError when the folder is missing, misnamed or empty, for an image without mask, a mask without image
    or two files with one id, and for a manifest that cannot be used.
    """
    known = _read_manifest(Path(root) / MANIFEST)
    datasets = _found_datasets(Path(root), {i: fields["cluster"] for i, fields in known.items() if "cluster" in fields})
    if not known:
        return datasets
    return {
        dataset: {
            name: replace(split, samples=tuple(replace(s, **known.get(s.id, {})) for s in split.samples))
            for name, split in splits.items()
        }
        for dataset, splits in datasets.items()
    }


def _found_datasets(root: Path, clusters: dict[str, str]) -> dict[str, dict[str, Split]]:
    if not root.is_dir():
        raise DataError(
            f"data folder {root} does not exist; give the folder that holds {_one_of_each()}, or fetch one "
            f"with `tokencutseg fetch isic2017`"
        )
    folders = _official_folders(root)
    datasets = {name: splits for name in OFFICIAL if (splits := _official_splits(name, root, folders))}
    if datasets:
        return datasets
    name = root.resolve().name
    if name in OFFICIAL:
        name = f"own_{name}"  # a folder of that name without the official folders is not the official set
    return {name: _own_splits(root, name, clusters)}


def pair_folders(dataset: str, name: str, images: str | Path, masks: str | Path | None) -> Split:
    """One split from a folder of images and, where they matter, one of masks, anywhere on disk.

    Raises DataError for a missing or empty folder, an image without mask or the reverse, and two files with one id.
    """
    for folder, what in ((images, "images"), (masks, "masks")):
        if folder is not None and not Path(folder).is_dir():
            raise DataError(f"folder {folder} does not exist; give the one that holds the {what} of the {name} split")
    return Split(dataset, name, _paired([Path(images)], None if masks is None else Path(masks)), None)


def expected_folders(dataset: str, split: str) -> str:
    """The folders in which an official split is looked for, in words; empty for a dataset that is not official."""
    if dataset == "isic2016" and split == "validation":
        split = "train"  # its validation split is drawn from the training folder
    official = OFFICIAL.get(dataset, {}).get(split)
    if official is None:
        return ""
    return " or ".join(official.images) + (f" and {official.masks}" if official.masks else "")


def id_fraction(sample_id: str) -> float:
    """A number in [0, 1) that depends on the id alone: a split drawn with it survives new, lost or reordered files."""
    digest = hashlib.sha256(f"tokencutseg split {sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# official folders ---------------------------------------------------------------------------------------------------


def _official_folders(root: Path) -> dict[str, Path]:
    """Official folder name → where it is, in the root or one level down."""
    known = _names(*OFFICIAL)
    if root.resolve().name in known:
        raise DataError(f"{root} is one folder of an official archive; give the folder that holds it")
    folders: dict[str, Path] = {}
    for folder in _sub_folders(root) + [inner for outer in _sub_folders(root) for inner in _sub_folders(outer)]:
        if folder.name not in known:
            continue
        if folder.name in folders:
            raise DataError(f"{folder.name} is there twice, as {folders[folder.name]} and {folder}; keep one of them")
        folders[folder.name] = folder
    return folders


def _official_splits(dataset: str, root: Path, folders: dict[str, Path]) -> dict[str, Split]:
    splits = {}
    for name, official in OFFICIAL[dataset].items():
        images = [folders[folder] for folder in official.images if folder in folders]
        masks = folders.get(official.masks)
        if masks and not images:
            raise DataError(
                f"{masks} has no image folder {official.images[0]} beside it"
                f"{_near_miss(root, official.images)}; get it with `tokencutseg fetch {dataset}`"
            )
        if images and official.masks and not masks:
            if name == "train":
                raise DataError(
                    f"{images[0]} has no mask folder {official.masks} beside it"
                    f"{_near_miss(root, [official.masks])}; get it with `tokencutseg fetch {dataset}`"
                )
            continue  # the organisers kept the masks of some splits to themselves for years
        if images:
            splits[name] = Split(dataset, name, _paired(images, masks), official.expected)
    home = root / dataset
    if home.is_dir() and not any(folder.parent == home for folder in folders.values()):
        raise DataError(
            f"{home} holds none of the official folders ({', '.join(_names(dataset))})"
            f"{_near_miss(home, _names(dataset))}; restore the official names, or get the data "
            f"with `tokencutseg fetch {dataset}`"
        )
    if dataset == "isic2016" and "train" in splits:
        splits = _validation_drawn(splits)
    return splits


def _validation_drawn(splits: dict[str, Split]) -> dict[str, Split]:
    """ISIC 2016 came without a validation split; about a tenth of its training images become one.

    Where the training folder is incomplete, both parts count as incomplete: the official count is shared among them
    in proportion.
    """
    whole = splits["train"]
    validation = tuple(s for s in whole.samples if id_fraction(s.id) < VALIDATION_SHARE_2016)
    train = tuple(s for s in whole.samples if id_fraction(s.id) >= VALIDATION_SHARE_2016)
    expected = round(whole.expected * len(validation) / len(whole.samples))
    drawn = {
        "train": Split(whole.dataset, "train", train, whole.expected - expected),
        "validation": Split(whole.dataset, "validation", validation, expected),
    }
    for split in drawn.values():
        if not split.samples:
            raise DataError(
                f"{whole.samples[0].image.parent} holds too few images ({len(whole.samples)}) to draw a "
                f"{split.name} split from; get all of them with `tokencutseg fetch isic2016`"
            )
    return drawn | {name: split for name, split in splits.items() if name not in drawn}


# a user's own folder ------------------------------------------------------------------------------------------------


def _own_splits(root: Path, name: str, clusters: dict[str, str]) -> dict[str, Split]:
    if (root / "images").is_dir() or (root / "masks").is_dir():
        splits = _divided(root, _images_and_masks(root), clusters)
    else:
        val = "val" if (root / "val").is_dir() else "validation"
        folders = {"train": root / "train", "validation": root / val, "test": root / "test"}
        if not any(folder.is_dir() for folder in folders.values()):
            inner = [f for f in _sub_folders(root) if (f / "images").is_dir() or (f / "train").is_dir()]
            hint = f" (did you mean {inner[0]}?)" if inner else _near_miss(root, _names(*OFFICIAL))
            raise DataError(
                f"no dataset found in {root}: expected {_one_of_each()}, or images/ and masks/ of your own"
                f"{hint}; fetch an official set with `tokencutseg fetch isic2017`"
            )
        for folder in folders.values():
            if not folder.is_dir():
                raise DataError(
                    f"{root} has no {folder.name}/ folder; give each of train/, validation/ and test/ its "
                    f"own images/ and masks/"
                )
        splits = {split: _images_and_masks(folder) for split, folder in folders.items()}
    own = {split: Split(name, split, samples, None) for split, samples in splits.items()}
    _check_disjoint(own)
    if (root / "unlabelled").is_dir():
        own["unlabelled"] = Split(name, "unlabelled", _paired([root / "unlabelled"], None), None)
    return own


def _images_and_masks(folder: Path) -> tuple[Sample, ...]:
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            close = difflib.get_close_matches(name, [f.name for f in _sub_folders(folder)], n=1)
            hint = f" (is it {close[0]}/?)" if close else ""
            raise DataError(f"{folder} has no {name}/ folder{hint}; put images into images/ and masks into masks/")
    return _paired([folder / "images"], folder / "masks")


def _divided(root: Path, samples: tuple[Sample, ...], clusters: dict[str, str]) -> dict[str, tuple[Sample, ...]]:
    """Shares by a hash of the id, or of the patient or lesion, all of whose images then lie in one split."""
    divided: dict[str, tuple[Sample, ...]] = {}
    low = 0.0
    for split, share in OWN_SHARES.items():
        divided[split] = tuple(s for s in samples if low <= id_fraction(clusters.get(s.id, s.id)) < low + share)
        low += share
        if not divided[split]:
            raise DataError(
                f"the {len(samples)} images in {root / 'images'} are too few to draw a {split} split from; "
                f"put images/ and masks/ into train/, validation/ and test/ yourself"
            )
    return {split: divided[split] for split in ("train", "validation", "test")}


def _check_disjoint(splits: dict[str, Split]) -> None:
    seen: dict[str, Path] = {}
    for split in splits.values():
        for sample in split.samples:
            if sample.id in seen:
                raise DataError(f"id {sample.id} is in two splits, {seen[sample.id]} and {sample.image}; remove one")
            seen[sample.id] = sample.image


def _read_manifest(path: Path) -> dict[str, dict[str, object]]:
    """What `manifest.csv` says of each id, as fields of a `Sample`; nothing where there is no such file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and "id" not in rows[0]:
        raise DataError(
            f"{path} has no column id, only {', '.join(map(str, rows[0]))}; add the images' names without "
            f"ending as id, or give the file another name"
        )
    known: dict[str, dict[str, object]] = {}
    for row in rows:
        fields = known.setdefault(row["id"], {})
        if size := (row.get("native_size") or "").strip():
            if not (parts := re.fullmatch(r"([1-9]\d*) ?[x×] ?([1-9]\d*)", size)):
                raise DataError(
                    f"{path} gives the native_size of {row['id']} as {size!r}; write WIDTHxHEIGHT in "
                    f"pixels, such as 1022x767, or leave it empty"
                )
            fields["native_size"] = int(parts[2]), int(parts[1])
        if cluster := next((row[column] for column in CLUSTERS if row.get(column)), None):
            fields["cluster"] = cluster
    return known


# files --------------------------------------------------------------------------------------------------------------


def _paired(image_folders: list[Path], mask_folder: Path | None) -> tuple[Sample, ...]:
    """Images and masks joined by id and sorted by it; the order in which the folder lists them plays no part."""
    images: dict[str, Path] = {}
    for folder in image_folders:
        _add_by_id(images, folder, mask_ids=False)
    if not images:
        raise DataError(f"{image_folders[0]} holds no image; put .jpg or .png files there, or fetch the set again")
    if mask_folder is None:
        return tuple(Sample(key, images[key], None) for key in sorted(images))
    masks: dict[str, Path] = {}
    _add_by_id(masks, mask_folder, mask_ids=True)
    for missing, there, what, place in (
        (images.keys() - masks.keys(), "image", "mask", mask_folder),
        (masks.keys() - images.keys(), "mask", "image", image_folders[0]),
    ):
        if missing:
            raise DataError(
                f"{len(missing)} {there}{'s' * (len(missing) > 1)} without {what} in {place}: "
                f"{_some(missing)}; add the {what}s or remove the {there}s"
                + (" (of your own data, move them to unlabelled/)" if there == "image" else "")
            )
    return tuple(Sample(key, images[key], masks[key]) for key in sorted(images))


def _add_by_id(files: dict[str, Path], folder: Path, mask_ids: bool) -> None:
    for path in sorted(folder.iterdir()):
        # ISIC 2017 ships the super-pixels of another task among its images; macOS leaves hidden "._" files
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or path.stem.endswith("_superpixels"):
            continue
        key = re.sub(r"_(segmentation|mask)$", "", path.stem, flags=re.IGNORECASE) if mask_ids else path.stem
        if key in files:
            raise DataError(f"two files have the id {key}, {files[key]} and {path}; remove one of them")
        files[key] = path


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".") and os.access(f, os.R_OK | os.X_OK)
    )


def _some(ids: set[str]) -> str:
    return ", ".join(sorted(ids)[:3]) + (", …" if len(ids) > 3 else "")


def _one_of_each() -> str:
    return f"official folders such as {', '.join(_names(dataset)[0] for dataset in OFFICIAL)}"


def _names(*datasets: str) -> list[str]:
    """Every official folder name of these datasets."""
    return [
        name
        for dataset in datasets
        for official in OFFICIAL[dataset].values()
        for name in (*official.images, official.masks)
        if name
    ]


def _near_miss(folder: Path, wanted: Sequence[str]) -> str:
    """A hint at the folder in or below `folder` that looks most like a wanted name but is spelt differently."""
    known = _names(*OFFICIAL)
    best = (0.75, "")
    for there in (inner for outer in (folder, *_sub_folders(folder)) for inner in _sub_folders(outer)):
        if there.name not in known:
            for name in wanted:
                ratio = difflib.SequenceMatcher(None, there.name.lower(), name.lower()).ratio()
                best = max(best, (ratio, f" (is {there} meant to be {name}?)"))
    return best[1]
