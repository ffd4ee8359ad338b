"""Folders as people have them: whatever the layout, the same images, masks, splits and patients are read."""

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokencutseg.config import configure
from tokencutseg.data.images import DataError
from tokencutseg.data.source import open_source

CONFIG = configure("tiny")
SIZE = CONFIG.data.image_size
GREY_SKIN, LESION = (222, 176, 155), (98, 58, 44)


def ellipse(number: int, size: tuple[int, int] = (36, 48)) -> np.ndarray:
    """A lesion bool (H, W) whose place and shape depend on its number."""
    rng = np.random.default_rng(number)
    (h, w), (cy, cx) = size, rng.uniform(0.4, 0.6, 2)
    y, x = np.mgrid[:h, :w] / np.array([h, w]).reshape(2, 1, 1)
    return ((y - cy) / rng.uniform(0.15, 0.3)) ** 2 + ((x - cx) / rng.uniform(0.15, 0.3)) ** 2 < 1


def photo(lesion: np.ndarray) -> np.ndarray:
    return np.where(lesion[..., None], LESION, GREY_SKIN).astype(np.uint8)


@dataclass
class Case:
    """One image with its mask, and how its files are to be written."""

    id: str
    lesion: np.ndarray
    split: str = ""
    patient: str | None = None
    image_suffix: str = ".png"
    values: tuple[int, int] = (0, 255)
    """Of skin and lesion in the mask's file."""
    orientation: int = 1
    """EXIF: how the stored pixels have to be turned."""


@dataclass
class Layout:
    images: str = "images"
    masks: str = "masks"
    split_outside: bool = True
    """train/images, or images/train"""
    mask_name: str = "{}"
    sub_folders: bool = False
    image_form: str = "NFC"
    mask_form: str = "NFC"
    splits: dict[str, str] = field(default_factory=lambda: {name: name for name in ("train", "validation", "test")})
    clutter: bool = False

    def folder(self, root: Path, kind: str, case: Case) -> Path:
        split = self.splits.get(case.split, "")
        folder = root / split / kind if self.split_outside else root / kind / split
        return folder / f"part{len(case.id) % 2}" if self.sub_folders else folder

    def write(self, root: Path, cases: list[Case]) -> None:
        for case in cases:
            image = Image.fromarray(photo(case.lesion))
            exif = Image.Exif()
            if case.orientation == 6:
                exif[274], image = 6, image.transpose(Image.Transpose.ROTATE_90)
            stored = Image.fromarray(np.where(case.lesion, *case.values[::-1]).astype(np.uint8))
            names = unicodedata.normalize(self.image_form, case.id), unicodedata.normalize(self.mask_form, case.id)
            for kind, name, picture in (
                (self.images, names[0] + case.image_suffix, image),
                (self.masks, self.mask_name.format(names[1]) + ".png", stored),
            ):
                folder = self.folder(root, kind, case)
                folder.mkdir(parents=True, exist_ok=True)
                lossless = {"lossless": True} if name.endswith(".webp") else {"quality": 100, "subsampling": 0}
                picture.save(folder / name, exif=exif if kind == self.images else Image.Exif(), **lossless)
                if self.clutter:
                    (folder / "Thumbs.db").touch()
                    (folder / f"._{name}").write_bytes(b"\0\5\x16\7")
                    (folder / "readme.txt").touch()
        if any(case.patient for case in cases):
            rows = "".join(f"{case.id},{case.patient or 'NA'}\n" for case in cases)
            (root / "manifest.csv").write_text("id,patient_id\n" + rows, encoding="utf-8")


def read(root):
    """{id: (split, lesion, patient)} of what `open_source` gives, and the source."""
    source = open_source(root, CONFIG)
    found = {}
    for dataset, splits in source.datasets.items():
        for split in splits:
            images = source.load(dataset, split)
            for k, own in enumerate(images.ids):
                assert own not in found
                shown = images.images[k].permute(1, 2, 0).numpy()
                darker = shown.astype(int).sum(2) < (sum(LESION) + sum(GREY_SKIN)) / 2
                assert (darker == (images.masks[k].numpy() > 0)).mean() > 0.9, "image and mask belong together"
                found[own] = (split, images.native_mask(k), images.clusters and images.clusters[k])
    return found, source


NAMES = st.text("abcxyzäöüéñ皮肤01", min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_random_set_in_a_random_layout_is_read_back(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("layout")
    nested = data.draw(st.sampled_from(["", "set", "set/set"]))
    names = data.draw(st.lists(NAMES, min_size=6, max_size=12, unique_by=str.casefold))
    given_splits = data.draw(st.booleans())
    skin, lesion = data.draw(st.sampled_from([(0, 255), (0, 1), (0, 128), (1, 2)]))
    orientation = data.draw(st.sampled_from([1, 6]))
    has_patients = data.draw(st.booleans())
    cases = [
        Case(
            f"{k}-{name}",  # numbers that differ, so that no padding makes two of one
            ellipse(k),
            ("train", "validation", "test")[k % 3] if given_splits else "",
            f"P{k}" if has_patients and k % 4 else None,
            data.draw(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".jfif", ".tif"]))
            if orientation == 1
            else ".jpg",
            (skin, lesion),
            orientation,
        )
        for k, name in enumerate(names)
    ]
    layout = Layout(
        *data.draw(st.sampled_from([("images", "masks"), ("Images", "Labels"), ("img", "gt")])),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(["{}", "{}_segmentation", "{}_Mask", "{}-lesion", "{}.jpg", "mask_{}", "gt-{}"])),
        data.draw(st.booleans()),
        *data.draw(st.sampled_from([("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])),
        data.draw(st.sampled_from([{"train": "train", "validation": "valid", "test": "test"},
                                   {"train": "Training", "validation": "dev", "test": "testing"}])),
        data.draw(st.booleans()),
    )  # fmt: skip
    layout.write(tmp_path / "set" / nested, cases)
    found, _ = read(tmp_path / "set")
    assert found.keys() == {unicodedata.normalize("NFC", case.id) for case in cases}
    for case in cases:
        split, mask, patient = found[unicodedata.normalize("NFC", case.id)]
        assert split == case.split or not given_splits
        np.testing.assert_array_equal(mask, case.lesion)
        assert patient == case.patient


def clinic(root: Path, n: int = 40, **changes) -> list[Case]:
    cases = [Case(f"case{k:03d}", ellipse(k), **changes) for k in range(n)]
    Layout().write(root, cases)
    return cases


def test_values_that_differ_between_files(tmp_path):
    clinic(tmp_path / "a")
    for k, path in enumerate(sorted((tmp_path / "a" / "masks").iterdir())):
        mask = np.array(Image.open(path)) > 127
        Image.fromarray((mask * (1 + k % 2)).astype(np.uint8)).save(path)
    found, source = read(tmp_path / "a")
    assert all(mask.mean() > 0.05 for _, mask, _ in found.values())
    assert any("values 0, 1, 2" in line for line in source.describe())


def test_exchanged_lesion_and_skin_are_told(tmp_path):
    clinic(tmp_path / "a", values=(255, 0))
    source = open_source(tmp_path / "a", CONFIG)
    assert source.check() == [] and source.load("a", "train").masks.float().mean() > 0.6
    assert sum("exchanged" in line for line in source.describe()) == 3


@pytest.mark.parametrize("fits", ["upright", "stored"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_judged_by_the_masks_of_the_split(tmp_path, orientation, fits):
    """Half turns cannot be told from the shape; they go with the quarter turns of their split."""
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    cases = clinic(tmp_path / "a")
    for k, case in enumerate(cases):
        exif = Image.Exif()
        exif[274] = orientation if k % 2 else 6
        turn = turns[exif[274]]
        image, mask = Image.fromarray(photo(case.lesion)).transpose(turn), Image.fromarray(case.lesion)
        image.save(tmp_path / "a" / "images" / f"{case.id}.png", exif=exif)
        (mask.transpose(turn) if fits == "stored" else mask).save(tmp_path / "a" / "masks" / f"{case.id}.png")
    found, source = read(tmp_path / "a")
    assert len(found) == 40
    word = "turned upright" if fits == "upright" else "left as they are stored"
    assert sum(word in line for line in source.describe()) == 3


def test_images_of_one_name_in_several_sub_folders(tmp_path):
    for place in ("p1", "p2", "p3", "p4"):
        cases = [Case(f"{k}", ellipse(10 * int(place[1]) + k)) for k in (1, 2)]
        Layout(f"images/{place}", f"masks/{place}").write(tmp_path / "a", cases)
    found, _ = read(tmp_path / "a")
    assert set(found) == {f"p{patient}_{k}" for patient in (1, 2, 3, 4) for k in (1, 2)}


def test_an_archive_unpacked_into_its_own_name(tmp_path):
    images, masks = "ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"
    cases = [Case(f"ISIC_{k:07d}", ellipse(k)) for k in range(8)]
    Layout(f"{images}/{images}", f"{masks}/{masks}", mask_name="{}_segmentation").write(tmp_path, cases)
    (tmp_path / "__MACOSX" / images).mkdir(parents=True)
    (tmp_path / "__MACOSX" / images / "._ISIC_0000000.png").write_bytes(b"\0\5\x16\7")
    found, source = read(tmp_path)
    assert len(found) == 8 and set(source.datasets) == {"isic2017"}


def test_train_and_val_without_test(tmp_path):
    cases = [Case(f"{split}{k}", ellipse(k), split) for split in ("train", "validation") for k in range(20)]
    Layout(splits={"train": "train", "validation": "val"}).write(tmp_path / "a", cases)
    found, source = read(tmp_path / "a")
    assert {own for own, (split, *_) in found.items() if split == "test"} == {f"validation{k}" for k in range(20)}
    assert {split for split, *_ in found.values()} == {"train", "validation", "test"}
    assert "stands in" in source.note("a", "test") and source.note("a", "train") == ""


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    clinic(tmp_path / "a")

    def refuse(folder, *_, onerror, **__):
        onerror(PermissionError(13, "Permission denied", str(folder)))

    monkeypatch.setattr("tokencutseg.data.pairing.os.walk", refuse)
    with pytest.raises(DataError, match=r"a/images cannot be read \(Permission denied\)"):
        open_source(tmp_path / "a", CONFIG)
