"""Folders of images and masks as people have them: official archives and a user's own, paired by id.

Official folders (the registry, `tokencutseg.data.datasets`) are found by name in the folder itself or up to three
levels below it; an archive that was unpacked into a folder of its own name is one folder.

A user's own data is a folder with `images/` and `masks/`, either directly or inside each of `train/`, `validation/` and
`test/` (`val/`, `valid/` and `dev/` are validation, too). Images without masks may lie in `unlabelled/`. A mask is
named as its image, or with something like `_segmentation`, `_mask` or `-lesion` behind it.

Which split is which, where the folders do not say it:
- An own folder without splits is an external test set where a training set stands before it (also in the same folder),
  else it is divided 70/15/15 by a hash of the id, or of the patient, all of whose images then lie in one split.
- A set without test split is scored on its validation split, which stands in and says so.
- A training split without validation gives about a tenth of its images, drawn by the same hash.
- A set of training images alone is divided like an own folder.

Nothing is passed over in silence: what was chosen or skipped is a note, what cannot be used is a problem.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tokencutseg.data.datasets import DATASETS, Split
from tokencutseg.data.images import DataError, some, summed_up
from tokencutseg.data.manifest import describe_table, fields_of, read_table
from tokencutseg.data.pairing import TABLES, Found, is_image, is_visible, match_ids, paired, without_habit
from tokencutseg.files import note

VALIDATION_SHARE = 0.10
"""Of a training split that has no validation split beside it."""
OWN_SHARES = {"test": 0.15, "validation": 0.15, "train": 0.70}
_VALIDATION, _TEST = ("validation", "val", "valid", "dev"), ("test", "testing")
SPLITS = {"train": ("train", "training"), "validation": _VALIDATION, "test": _TEST}
"""Names of a user's own folders, the first as it is documented; compared in small letters."""
IMAGES = ("images", "image", "imgs", "img")
MASKS = ("masks", "mask", "labels", "label", "annotations", "gt", "groundtruth", "segmentations", "segmentation")
POOLS = ("unlabelled", "unlabeled")
_DEPTH = 3


def find_datasets(*roots: str | Path) -> Found:
    """All sets under the folders; each may hold official sets, be one of the user's own, or both."""
    found = Found()
    for root in {os.path.realpath(root): Path(root) for root in roots}.values():
        try:
            sets = _sets_under(root, found)
            _described(root, sets, found)
            for dataset, splits in sets.items():
                _add(found, dataset, splits, root)
        except OSError as error:  # permissions, a broken disk
            found.problems.append(f"{error.filename or root} cannot be read ({error.strerror or error})")
        except DataError as error:
            found.problems.append(str(error))
    return found


def pair_folders(dataset: str, name: str, images: str | Path, masks: str | Path | None) -> Split:
    """One split from a folder of images and, where they matter, one of masks, anywhere on disk.

    Raises DataError for a missing or empty folder, an image without mask or the reverse, and two files with one id.
    """
    for folder, what in ((images, "images"), (masks, "masks")):
        if folder is not None and not Path(folder).is_dir():
            raise DataError(f"folder {folder} does not exist; give the one that holds the {what} of the {name} split")
        if folder is not None and any(all(pair) for pair in _parts(Path(folder)).values()):
            raise DataError(f"folder {folder} holds folders of images and of masks; give the one that holds the {what}")
    found = Found()
    samples = paired([Path(images)], None if masks is None else Path(masks), found)
    if found.problems:
        raise DataError(summed_up(found.problems))
    for text in found.notes:
        note(text)
    return Split(dataset, name, samples, None)


def id_fraction(sample_id: str) -> float:
    """A number in [0, 1) that depends on the id alone: a split drawn with it survives new, lost or reordered files."""
    digest = hashlib.sha256(f"tokencutseg split {sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# which sets there are -----------------------------------------------------------------------------------------------


def _sets_under(root: Path, found: Found) -> dict[str, dict[str, Split]]:
    """The sets of one folder before splits are drawn; a set without splits has the one split "all"."""
    if root.is_file():
        raise DataError(f"{root} is a file; unpack it, and give the folder")
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; {_WHAT_TO_GIVE}")
    official = official_folders(root, found)
    sets = {name: splits for name in DATASETS if (splits := _official_splits(name, official, found))}
    inside = {home for path in official.values() for home in (path, *path.parents)}
    whole = root in official.values()  # an official folder that holds all of its set
    alone = not official or (not whole and bool(_parts(root)))
    for folder in [_own_root(root)] if alone else [f for f in _sub_folders(root) if f not in inside and not whole]:
        name = unicodedata.normalize("NFC", folder.resolve().name)
        own = f"own_{name}" if name in DATASETS else name  # not the official set, although called so
        if splits := _own_splits(folder, own, found, given=alone):
            sets[own] = splits
        elif official and name in DATASETS:
            wanted = ", ".join(DATASETS[name].folders)
            hint = _near_miss(folder) or f"; get them with `tokencutseg fetch {name}`"
            found.problems.append(f"{folder} holds none of the official folders ({wanted}){hint}")
        elif official:
            found.notes.append(f"{folder} is not read{_near_miss(folder)}")
    if not sets and not found.problems:
        inner = next((f for f in _sub_folders(root) if _parts(f)), None)
        hint = f" (did you mean {inner}?)" if inner else _near_miss(root)
        raise DataError(f"no dataset found in {root}{hint}; {_WHAT_TO_GIVE}")
    return sets


def _add(found: Found, dataset: str, splits: dict[str, Split], root: Path) -> None:
    """Join a set to those before it, with all the splits that it needs."""
    training = any("train" in others for others in found.datasets.values())
    if dataset in found.datasets and dataset not in DATASETS:
        dataset = next(name for n in range(2, 99) if (name := f"{dataset}-{n}") not in found.datasets)
        splits = {name: replace(split, dataset=dataset) for name, split in splits.items()}
    if "all" in splits and training:
        splits = {"test": replace(splits.pop("all"), name="test")} | splits
        found.notes.append(f"{dataset} has no splits of its own: it is an external test set")
    try:
        splits = _with_all_splits(splits, root, found)
    except DataError as error:
        found.problems.append(str(error))
    there = found.datasets.setdefault(dataset, {})
    for name in splits.keys() & there.keys():
        found.problems.append(f"{dataset}/{name} is there twice, the second time under {root}; name one of them")
    there |= splits


def _with_all_splits(splits: dict[str, Split], root: Path, found: Found) -> dict[str, Split]:
    """The same set with the splits drawn or standing in that were not given."""
    splits = dict(splits)
    if splits.keys() - {"unlabelled"} == {"all"}:
        return _drawn(splits.pop("all"), OWN_SHARES, root) | splits
    if splits.keys() - {"unlabelled"} == {"train"}:
        words = "held out of the training split, not the published test"
        found.notes.append(f"{splits['train'].dataset} has training images alone; its test split is {words}")
        parts = _drawn(splits.pop("train"), OWN_SHARES, root)
        return parts | {"test": replace(parts["test"], note=words)} | splits
    if splits.keys() >= {"train", "validation"} and "test" not in splits:
        words = "the validation split stands in for the test split, which is not there"
        splits["test"] = test = replace(splits.pop("validation"), name="test", note=words)
        found.notes.append(f"{test.dataset}: {words}; a validation split is drawn from training")
    if "train" in splits and "validation" not in splits:
        shares = {"validation": VALIDATION_SHARE, "train": 1 - VALIDATION_SHARE}
        splits = _drawn(splits.pop("train"), shares, root) | splits
    return splits


def _drawn(whole: Split, shares: dict[str, float], root: Path) -> dict[str, Split]:
    """Shares by a hash of the id, or of the patient or lesion. Where the official split is incomplete, so are its
    parts: the official count is shared among them in proportion."""
    units = {s: s.cluster or s.id for s in whole.samples}
    ranked = sorted(set(units.values()), key=id_fraction)
    edges = np.cumsum(list(shares.values()))[:-1]
    place = dict(zip(ranked, np.searchsorted(edges, [id_fraction(unit) for unit in ranked], "right"), strict=True))
    if len(set(place.values())) < len(shares) <= len(ranked):  # too few for the hash to fall into each share
        place = {unit: min(rank, len(shares) - 1) for rank, unit in enumerate(ranked)}
    parts, left, n = {}, whole.expected, len(whole.samples)
    for k, name in enumerate(shares):
        samples = tuple(s for s in whole.samples if place[units[s]] == k)
        if not samples:
            few = f"{root} holds too few images of {whole.dataset} ({n}) to draw a {name} split from"
            raise DataError(f"{few}; add more, or put them into train/, validation/ and test/ yourself")
        share = left
        if whole.expected and left and k + 1 < len(shares):
            share = round(whole.expected * len(samples) / n)
            left -= share
        parts[name] = Split(whole.dataset, name, samples, share)
    return {name: parts[name] for name in SPLITS if name in parts}


def _described(root: Path, sets: dict[str, dict[str, Split]], found: Found) -> None:
    """Add to the samples what tables in the root, or beside a set's own images, say of them."""
    firsts = [split.samples[0].image for splits in sets.values() for split in splits.values()]
    homes = {root} | {home for image in firsts for home in image.parents if root in home.parents}
    for path in sorted(p for home in homes for p in home.glob("*.[cC][sS][vV]") if p.name.casefold().endswith(TABLES)):
        under = [(x, name) for x in sets.values() for name in x if path.parent in x[name].samples[0].image.parents]
        ids = list(dict.fromkeys(sample.id for splits, name in under for sample in splits[name].samples))
        known = read_table(path)
        matched = match_ids(known, ids)
        if known and not matched:
            there = f"it has {some(known)}, the images are {some(ids)}"
            found.problems.append(f"{path} names no image that is there: {there}")
        found.notes += describe_table(path, known, ids, matched)
        fields: dict[str, dict[str, Any]] = {own: fields_of(path, row, known[row]) for row, own in matched.items()}
        for splits, name in under:
            samples = tuple(replace(s, **fields.get(s.id, {})) for s in splits[name].samples)
            splits[name] = replace(splits[name], samples=samples)
    for dataset, splits in sets.items():
        pairs = {(s.cluster, split.name) for split in splits.values() for s in split.samples if s.cluster}
        if crossing := [cluster for cluster, count in Counter(c for c, _ in pairs).items() if count > 1]:
            said = f"{len(crossing)} patients or lesions are in several splits ({some(crossing)})"
            found.notes.append(f"{dataset}: {said}")


# official folders ---------------------------------------------------------------------------------------------------


def official_folders(root: Path, found: Found) -> dict[str, Path]:
    """Official folder name → where it is."""
    known = {name for dataset in DATASETS.values() for name in dataset.folders}
    folders: dict[str, Path] = {}
    level = [root]
    for _ in range(_DEPTH + 1):
        for folder in level:
            name = folder.resolve().name if folder == root else folder.name
            if name in folders:
                found.problems.append(f"{name} is there twice, as {folders[name]} and {folder}; keep one of them there")
            elif name in known:
                folders[name] = folder
        level = [inner for folder in level if folder.name not in known for inner in _sub_folders(folder)]
    return folders


def _official_splits(dataset: str, folders: dict[str, Path], found: Found) -> dict[str, Split]:
    def there(name: str | None) -> Path | None:
        outer, *inner = (name or "").split("/")
        path = folders[outer].joinpath(*inner) if outer in folders else None
        return path if path and path.is_dir() else None

    splits: dict[str, Split] = {}
    used: list[Path] = []
    for name, several in DATASETS[dataset].splits.items():
        official = next((split for split in several if there(split.masks)), several[0])
        images = [path for folder in official.images if (path := there(folder)) and path not in used]
        masks = there(official.masks)
        if masks and not images:
            found.problems.append(_without(masks, "image", official.images[0], dataset))
        elif images and official.masks and not masks and name == "train":
            found.problems.append(_without(images[0], "mask", official.masks, dataset))
        elif images and official.masks and not masks:  # the organisers kept the masks of some splits for years
            found.notes.append(f"{images[0]} has no masks {official.masks} beside it: {dataset}/{name} is left out")
        elif images:
            used += images
            splits[name] = Split(dataset, name, paired(images, masks, found, official), official.expected)
    return {name: split for name, split in splits.items() if split.samples}


def _without(there: Path, what: str, wanted: str, dataset: str) -> str:
    if (there.parent / wanted).is_dir():
        return f"{there} is one folder of an official archive; give the folder that holds it, {there.parent}"
    get = f"get it with `tokencutseg fetch {dataset}`" if DATASETS[dataset].archives else "add it"
    return f"{there} has no {what} folder {wanted} beside it{_near_miss(there.parent, wanted)}; {get}"


# a user's own folder ------------------------------------------------------------------------------------------------


def _own_root(root: Path) -> Path:
    """The folder itself, or the only one in it that holds parts: an archive unpacked into a folder of its own."""
    folder = root
    for _ in range(_DEPTH):
        inner = [path for path in folder.iterdir() if is_visible(path.name)]
        if _parts(folder) or len(inner) != 1 or not inner[0].is_dir():
            break
        [folder] = inner
    return folder if _parts(folder) else root


def _parts(folder: Path) -> dict[str, tuple[Path | None, Path | None]]:
    """Where the images and masks of each split of a user's own folder are: {split, or "all": (images, masks)}."""

    def named(outer: Path | None, names: Sequence[str]) -> Path | None:
        inner = {f.name.casefold(): f for f in _sub_folders(outer)} if outer else {}
        return next((inner[name] for name in names if name in inner), None)

    images, masks = named(folder, IMAGES), named(folder, MASKS)
    inside = {split: (named(images, names), named(masks, names)) for split, names in SPLITS.items()}
    if any(images for images, _ in inside.values()):  # images/train and masks/train instead of train/images
        return {split: pair for split, pair in inside.items() if any(pair)}
    if images or masks:
        return {"all": (images, masks)}
    outer = {split: named(folder, names) for split, names in SPLITS.items()}
    return {split: (named(place, IMAGES), named(place, MASKS)) for split, place in outer.items() if place}


def _own_splits(folder: Path, name: str, found: Found, given: bool) -> dict[str, Split]:
    """The splits of a user's own folder; `given`: by name, so that loose images in it are meant, as unlabelled ones."""
    splits: dict[str, Split] = {}
    parts = _parts(folder)
    for split, (images, masks) in parts.items():
        if images and masks:
            splits[split] = Split(name, split, paired([images], masks, found), None)
        else:
            missing, where = ("masks" if images else "images"), (images or masks or folder / split).parent
            put = "put images into images/ and masks into masks/, or images without masks into unlabelled/"
            found.problems.append(f"{where} has no {missing}/ folder{_near_miss(where, missing)}; {put}")
    counts = Counter(sample.id for split in splits.values() for sample in split.samples)
    if twice := [own for own, count in counts.items() if count > 1]:
        found.problems.append(f"{folder} has {len(twice)} ids in two splits: {some(twice)}; keep each in one of them")
    pool = next((folder / name for name in POOLS if (folder / name).is_dir()), folder)
    loose = [] if parts or pool != folder else [f.stem.casefold() for f in folder.iterdir() if is_image(f)]
    if mixed := [stem for stem in loose if without_habit(stem) != stem and without_habit(stem) in loose]:
        found.problems.append(f"{folder} mixes images and masks ({some(mixed)}); put them into images/ and masks/")
    elif pool != folder or (loose and (given or folder.name in POOLS)):
        splits["unlabelled"] = Split(name, "unlabelled", paired([pool], None, found), None)
    used = {f.parent if f.parent != folder else f for pair in parts.values() for f in pair if f} | {pool}
    unread = [f.name for f in folder.iterdir() if is_visible(f.name) and f not in used and not f.name.endswith(TABLES)]
    if unread and parts:
        found.notes.append(f"{folder} also holds {some(unread)}, which {'are' if len(unread) > 1 else 'is'} not read")
    return {split: part for split, part in splits.items() if part.samples}


def _sub_folders(folder: Path) -> list[Path]:
    """The visible folders in a folder that can be opened, links among them."""
    return sorted(f for f in folder.iterdir() if is_visible(f.name) and f.is_dir() and os.access(f, os.R_OK | os.X_OK))


def _near_miss(folder: Path, *wanted: str) -> str:
    """A hint at the folder in or below `folder` that looks most like a wanted one but is spelt differently."""
    known = [name for dataset in DATASETS.values() for name in dataset.folders]
    there = {f.name.lower(): f for outer in (folder, *_sub_folders(folder)) for f in _sub_folders(outer)}
    there = {name: f for name, f in there.items() if f.name not in known}
    for name in wanted or known:
        if close := difflib.get_close_matches(name.lower(), there, 1, 0.75):
            return f" (is {there[close[0]]} meant to be {name}?)"
    return ""


_WHAT_TO_GIVE = (
    f"give the folder that holds official ones such as {', '.join(d.folders[0] for d in DATASETS.values())}, or "
    f"images/ and masks/ of your own, or fetch a set with `tokencutseg fetch isic2017`"
)
