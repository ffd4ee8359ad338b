"""Images and masks of one split, joined by id: which files there are, and which of them a name means."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokencutseg.data.datasets import OfficialSplit, Sample, Split
from tokencutseg.data.images import IMAGE_SUFFIXES, some

TABLES = ("manifest.csv", "metadata.csv")
"""How the names of tables beside images end, in small letters."""

_ENDING = re.compile(rf"({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))}|\.0)$")
"""Of a file's name in a table; ".0" is what a spreadsheet makes of a number."""
_HABITS = "segmentations?|masks?|lesion|gt|seg|ground_?truth|labels?|annotations?"
_MASK_HABIT = re.compile(rf"^({_HABITS})[-_ .]|[-_ .]?({_HABITS})$")
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")


@dataclass
class Found:
    """What folders hold."""

    datasets: dict[str, dict[str, Split]] = field(default_factory=dict)
    """Splits by dataset and name, the sets in the order in which they were given."""
    notes: list[str] = field(default_factory=list)
    """What was chosen where more than one reading is possible, and what was skipped."""
    problems: list[str] = field(default_factory=list)
    """What cannot be used, one sentence each."""


def match_ids(names: Iterable[str], ids: Iterable[str], *more: Callable[[str], str]) -> dict[str, str]:
    """Which of `ids` each of `names` means: {name: id} for the names that mean one.

    Text is compared as it looks to the eye. It is tried in turn as it is (in Unicode's composed form), in letters of
    any case, without an image's folder and ending, in the forms of `more`, and with numbers padded in another way; a
    form counts where it tells both the names and the ids apart that are still left.
    """
    forms = [
        lambda text: unicodedata.normalize("NFC", text).strip(),
        str.casefold,
        lambda text: _ENDING.sub("", re.split(r"[/\\]", text)[-1]),
        *more,
        lambda text: re.sub(r"0*(\d+)", r"\1", text),
    ]
    names, ids, found = {name: name for name in names}, {own: own for own in ids}, {}
    for form in forms:
        names, ids = ({text: form(seen) for text, seen in side.items()} for side in (names, ids))
        counts, places = Counter(names.values()), defaultdict(list)
        for own, seen in ids.items():
            places[seen].append(own)
        for name, seen in list(names.items()):
            if counts[seen] == 1 and len(places.get(seen, ())) == 1:
                [found[name]] = places[seen]
                del names[name], ids[found[name]]
    return found


def paired(
    image_folders: list[Path], mask_folder: Path | None, found: Found, official: OfficialSplit | None = None
) -> tuple[Sample, ...]:
    """Images and masks joined by id and sorted by it; the order in which a folder lists them plays no part.

    Files without a partner, or that share an id, are added to the problems of `found`, and files of other kinds to its
    notes.
    """
    patterns = (official.image_pattern, official.mask_pattern) if official else ("*", "*")
    files = {folder: list(visible_files(folder)) for folder in dict.fromkeys([*image_folders, mask_folder]) if folder}
    others = {folder: _others(paths) for folder, paths in files.items()}
    found.notes += [f"{folder} also holds {listed}, which are not read" for folder, listed in others.items() if listed]
    images = _by_id({folder: files[folder] for folder in image_folders}, patterns[0], found)
    if not images:
        found.problems.append(_none(image_folders[0], "image", others[image_folders[0]]))
    if mask_folder is None or not images:
        return tuple(Sample(own, images[own], None) for own in sorted(images))
    masks = _by_id({mask_folder: files[mask_folder]}, patterns[1], found)
    if not masks:
        found.problems.append(_none(mask_folder, "mask", others[mask_folder]))
        return ()
    meant = match_ids(masks, images, without_habit)
    paths = {own: masks[name] for name, own in meant.items()}

    def alone(left: list[Path], what: str, folder: Path, other: str, place: Path, there: dict[str, Path]) -> None:
        if left:
            said = f"{len(left)} {what}{'s' * (len(left) > 1)} of {folder} without {other} in {place}"
            like = f"the {other}s there are named like {min(path.name for path in there.values())}"
            also = f" ({place.name} also holds {others[place]}, which are not read)" if others[place] else ""
            found.problems.append(f"{said}: {some([path.name for path in left])}; {like}{also}")

    folder = image_folders[0]
    alone([path for own, path in images.items() if own not in paths], "image", folder, "mask", mask_folder, masks)
    alone([path for own, path in masks.items() if own not in meant], "mask", mask_folder, "image", folder, images)
    return tuple(Sample(own, images[own], paths[own]) for own in sorted(images) if own in paths)


def without_habit(name: str) -> str:
    """A mask's name without what labelling tools put before or behind the image's, such as `_segmentation`."""
    return _MASK_HABIT.sub("", name.casefold())


def _none(folder: Path, what: str, others: str) -> str:
    return f"{folder} holds no {what}" + (f", but {others}" if others else "") + "; save them as JPEG or PNG"


def _by_id(files: dict[Path, list[Path]], pattern: str, found: Found) -> dict[str, Path]:
    """Image files by the stem of their name, or by their path in the folder where stems repeat in its sub-folders."""
    stems: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for folder, paths in files.items():
        for path in paths:
            if is_image(path) and (pattern == "*" or path.match(pattern)):
                stems[path.stem].append((path, folder))
    if strange := [f"{stem!a}" for stem in stems if not stem.isprintable()]:
        found.problems.append(f"{next(iter(files))} holds names that cannot be printed ({some(strange)}); rename them")
    by_id: dict[str, Path] = {}
    for stem, places in ((stem, places) for stem, places in stems.items() if stem.isprintable()):
        alone = len({path.parent for path, _ in places}) == 1
        for path, folder in places:
            own = stem if alone else "_".join(path.relative_to(folder).with_suffix("").parts)
            own = unicodedata.normalize("NFC", own)
            if own in by_id:
                found.problems.append(f"two files have the id {own}, {by_id[own]} and {path}; keep one of them there")
            elif not path.exists():
                found.problems.append(f"{path} is a link to a file that is not there")
            by_id[own] = path
    return by_id


def is_image(path: Path) -> bool:
    # ISIC 2017 ships the super-pixels of another task among its images
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.stem.endswith("_superpixels")


def is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX" and name not in _SYSTEM_FILES


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names, but for hidden ones and what systems leave behind."""
    seen = {os.path.realpath(folder)}

    def fail(error: OSError) -> None:
        raise error

    for top, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        inner = {name: os.path.realpath(Path(top, name)) for name in sorted(folders) if is_visible(name)}
        folders[:] = [name for name, real in inner.items() if real not in seen]  # links may go round in circles
        seen |= set(inner.values())
        yield from (Path(top, name) for name in sorted(names) if is_visible(name))


def _others(files: Iterable[Path]) -> str:
    """The files that are not read, by kind and count, in words."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in files:
        if not is_image(path) and not path.name.casefold().endswith(TABLES):
            kind = "super-pixel" if path.stem.endswith("_superpixels") else path.suffix.lower() or "unnamed"
            kinds[kind].append(path.name)
    listed = (f"{len(names)} {kind} file{'s' * (len(names) > 1)} ({min(names)})" for kind, names in kinds.items())
    return ", ".join(listed)
