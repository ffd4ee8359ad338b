"""The registry of datasets: one entry per published set, from which everything else that names a set is derived.

A set that is added here is found by its folder names, fetched from its archives, and scored in the rows that it belongs
to. A user's own folder needs no entry (see `tokencutseg.data.folders`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

POOL_SPLITS = ("train", "unlabelled")
"""Splits whose images self-supervised stages use."""


@dataclass(frozen=True)
class OfficialSplit:
    """The folders of one split, by their names in the archive."""

    images: tuple[str, ...]
    """Any of these folders; what they hold is put together. `outer/inner` is a folder in a folder."""
    masks: str | None
    expected: int | None
    """How many images were published."""
    image_pattern: str = "*"
    """Files that are images of this split, where a folder holds others too; matched from the right."""
    mask_pattern: str = "*"


@dataclass(frozen=True)
class Archive:
    """One zip file of the host, and the folder it is unpacked to."""

    path: str
    folder: str
    counts_as_present: tuple[str, ...]
    """Folder names that make this archive unnecessary."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Dataset:
    """One published set."""

    name: str
    splits: Mapping[str, tuple[OfficialSplit, ...]]
    """Of several folders the first counts whose masks are there; a set without "train" is an external test set."""
    archives: tuple[Archive, ...] = ()
    """Empty where a set has to be asked for."""
    also_tested_on: tuple[str, ...] = ()
    """Other official sets that a model trained on this one is scored on: the paper's pairs, and 2017 → 2018."""
    preference: int = 0
    """The set of lowest preference that is there is the one that most of a study is about."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of its folders, the outermost where one lies in another."""
        splits = [split for several in self.splits.values() for split in several]
        names = [name for split in splits for name in (*split.images, split.masks) if name]
        return tuple(dict.fromkeys(name.split("/")[0] for name in names))


def _isic(year: int, images: str, masks: str, **expected: int) -> Dataset:
    """One year of the ISIC challenge's segmentation task; `{}` stands for the archive's name of the split."""
    names = {"train": "Training", "validation": "Validation", "test": "Test_v2" if year == 2017 else "Test"}
    named = {split: (images.format(names[split]), masks.format(names[split])) for split in expected}
    splits = {split: (OfficialSplit((one,), other, expected[split]),) for split, (one, other) in named.items()}
    also = {2016: ("isic2017", "isic2018"), 2017: ("isic2018",)}.get(year, ())
    dataset = Dataset(f"isic{year}", splits, (), also, (2017, 2016, 2018).index(year))
    return replace(dataset, archives=tuple(Archive(f"{year}/{name}.zip", name, (name,)) for name in dataset.folders))


_HAM_POOL = ("HAM10000_images_part_1", "HAM10000_images_part_2", "ham10000_unlabelled")
_PH2 = OfficialSplit(("PH2 Dataset images",), "PH2 Dataset images", 200, "*_Dermoscopic_Image/*", "*_lesion/*")
# Tschandl et al. 2018, doi 10.1038/sdata.2018.161, with Tschandl's masks, CC BY-NC 4.0. The host's archive is that of
# the 2018 challenge's Task 3: the same 10,015 images in one file, whose download can be resumed.
_HAM_TEST = OfficialSplit(("ham10000_test/images",), "ham10000_test/masks", 10_015)
_HAM_WHOLE = OfficialSplit(_HAM_POOL, "HAM10000_segmentations_lesion_tschandl", 10_015)
_HAM_SPLITS = {"test": (_HAM_TEST, _HAM_WHOLE), "unlabelled": (OfficialSplit(_HAM_POOL, None, 10_015),)}
_HAM_ARCHIVE = Archive("2018/ISIC2018_Task3_Training_Input.zip", "ham10000_unlabelled", _HAM_POOL)
_SETS = (
    _isic(2016, "ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth", train=900, test=379),
    _isic(2017, "ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", train=2000, validation=150, test=600),
    _isic(2018, "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", train=2594, validation=100, test=1000),
    Dataset("ham10000", _HAM_SPLITS, (_HAM_ARCHIVE,)),
    # Mendonça et al. 2013, doi 10.1109/EMBC.2013.6610779, for research and education; to be asked for by hand
    Dataset("ph2", {"test": (_PH2,)}),
)
DATASETS = {dataset.name: dataset for dataset in _SETS}


def global_id(dataset: str, own: str) -> str:
    """What a name stands for across datasets: the archive's ids for themselves wherever they are used, and a name of a
    user's own (such as a patient's number) for something in that dataset alone."""
    return own if dataset in DATASETS or re.fullmatch(r"ISIC_\d{7}", own) else f"{dataset}/{own}"


@dataclass(frozen=True)
class Sample:
    """One image and its mask, if it has one."""

    id: str
    image: Path
    mask: Path | None
    native_size: tuple[int, int] | None = None
    """(H, W) of the photograph in pixels, where a table gives it."""
    cluster: str | None = None
    """What it shares with other images, the patient or the lesion, where a table gives it."""
    group: str | None = None
    """Its diagnosis, where a table gives it."""

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
    note: str = ""
    """What has to be said beside every number that comes from it, such as that it stands in for another split."""

    @property
    def complete(self) -> bool:
        return self.expected is None or len(self.samples) == self.expected
