"""Official and own folder trees, whole and broken, made small in a temporary folder."""

import os
import random
import unicodedata
from pathlib import Path

import pytest

from tokencutseg.data.datasets import DATASETS
from tokencutseg.data.folders import find_datasets, id_fraction, pair_folders
from tokencutseg.data.images import DataError
from tokencutseg.data.pairing import Found

REAL = os.environ.get("TOKENCUTSEG_DATA")

# (image folder, mask folder) as in the archives; None: no masks
LAYOUT = {
    ("isic2016", "train"): ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
    ("isic2016", "test"): ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    ("isic2017", "train"): ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    ("isic2017", "validation"): ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
    ("isic2017", "test"): ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
    ("isic2018", "train"): ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    ("isic2018", "validation"): ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    ("isic2018", "test"): ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    ("ham10000", "unlabelled"): ("HAM10000_images_part_1", None),
}


IDS = [f"case{i:03d}" for i in range(60)]


def datasets_in(*roots):
    found = find_datasets(*roots)
    assert found.problems == []
    return found.datasets


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def make(root: Path, dataset: str, split: str, ids, suffix="_segmentation") -> None:
    """An official split with empty files: `find_datasets` looks at names only."""
    images, masks = LAYOUT[dataset, split]
    touch(root / images, *(f"{i}.jpg" for i in ids))
    if masks:
        touch(root / masks, *(f"{i}{suffix}.png" for i in ids))


def make_own(root: Path, names) -> list[str]:
    touch(root / "images", *(f"{name}.jpg" for name in names))
    touch(root / "masks", *(f"{name}.png" for name in names))
    return list(names)


def isic_ids(n, start=0):
    return [f"ISIC_{i:07d}" for i in range(start, start + n)]


def ids_of(split):
    return [sample.id for sample in split.samples]


@pytest.mark.parametrize("nested", [False, True], ids=["side by side", "one folder per dataset"])
def test_every_official_layout_is_read(tmp_path, nested):
    for number, (dataset, split) in enumerate(LAYOUT):
        suffix = "_Segmentation" if dataset == "isic2016" else "_segmentation"
        make(tmp_path / dataset if nested else tmp_path, dataset, split, isic_ids(40, 100 * number), suffix)
    folder = tmp_path / ("isic2017" if nested else "") / "ISIC-2017_Training_Data"
    touch(folder, "ISIC_0000200_superpixels.png", "ISIC-2017_Training_Data_metadata.csv", "._ISIC_0000200.jpg")
    found = datasets_in(tmp_path)
    assert {(d, s) for d, splits in found.items() for s in splits} == {*LAYOUT, ("isic2016", "validation")}
    for number, (dataset, split) in enumerate(LAYOUT):
        if (dataset, split) != ("isic2016", "train"):
            part = found[dataset][split]
            assert (part.dataset, part.name, ids_of(part)) == (dataset, split, isic_ids(40, 100 * number))
    for sample in (sample for splits in found.values() for split in splits.values() for sample in split.samples):
        assert sample.image.stem == sample.id and sample.image.is_file()
        assert sample.mask is None or sample.mask.stem.lower() == f"{sample.id}_segmentation".lower()


def test_official_counts_and_completeness(tmp_path):
    for dataset, split, count in (("isic2017", "validation", 150), ("isic2018", "validation", 99)):
        make(tmp_path, dataset, split, isic_ids(count))
    found = datasets_in(tmp_path)
    assert found["isic2017"]["validation"].complete
    assert not found["isic2018"]["validation"].complete and found["isic2018"]["validation"].expected == 100


@pytest.mark.parametrize(("count", "complete"), [(900, True), (749, False)])
def test_isic2016_validation_is_drawn_by_id(tmp_path, count, complete):
    make(tmp_path, "isic2016", "train", isic_ids(count), "_Segmentation")
    make(tmp_path, "isic2016", "test", isic_ids(3, 5000), "_Segmentation")
    splits = datasets_in(tmp_path)["isic2016"]
    train, validation = splits["train"], splits["validation"]
    assert sorted(ids_of(train) + ids_of(validation)) == isic_ids(count)
    assert 0.07 * count < len(validation.samples) < 0.13 * count
    assert train.expected + validation.expected == 900
    assert train.complete is validation.complete is complete


def test_a_drawn_split_does_not_depend_on_the_other_images(tmp_path):
    for name in ("all", "some"):
        make(tmp_path / name, "isic2016", "test", isic_ids(3, 5000))
    make(tmp_path / "all", "isic2016", "train", isic_ids(300))
    some = random.Random(0).sample(isic_ids(300), 200)
    make(tmp_path / "some", "isic2016", "train", some)
    whole, part = (set(ids_of(datasets_in(tmp_path / name)["isic2016"]["validation"])) for name in ("all", "some"))
    assert part == whole & set(some)
    assert all(0 <= id_fraction(i) < 1 for i in some)


def test_the_drawn_ids_stay_the_same():
    """Runs of different versions can only be compared while the draw does not change."""
    assert [i for i in isic_ids(40) if id_fraction(i) < 0.1] == ["ISIC_0000013", "ISIC_0000029", "ISIC_0000031"]


def test_a_split_without_published_masks_is_left_out(tmp_path):
    make(tmp_path, "isic2018", "train", isic_ids(60))
    make(tmp_path, "isic2018", "validation", isic_ids(3, 900))
    touch(tmp_path / "ISIC2018_Task1-2_Test_Input", "ISIC_0012169.jpg")
    found = find_datasets(tmp_path)
    splits = found.datasets["isic2018"]
    assert ids_of(splits["test"]) == isic_ids(3, 900) and "validation split stands in" in splits["test"].note
    assert sorted(ids_of(splits["train"]) + ids_of(splits["validation"])) == isic_ids(60)
    assert all(id_fraction(i) < 0.1 for i in ids_of(splits["validation"]))
    assert any("isic2018/test is left out" in note for note in found.notes)


def test_training_images_alone_are_divided(tmp_path):
    make(tmp_path, "isic2017", "train", isic_ids(200))
    splits = datasets_in(tmp_path)["isic2017"]
    assert sorted(i for split in splits.values() for i in ids_of(split)) == isic_ids(200)
    assert "not the published test" in splits["test"].note and not splits["train"].complete
    assert sum(split.expected for split in splits.values()) == 2000


def test_ph2_and_ham10000_are_external_test_sets(tmp_path):
    for i in range(3, 6):
        home = tmp_path / "PH2Dataset" / "PH2 Dataset images" / f"IMD00{i}"
        touch(home / f"IMD00{i}_Dermoscopic_Image", f"IMD00{i}.bmp")
        touch(home / f"IMD00{i}_lesion", f"IMD00{i}_lesion.bmp")
        touch(home / f"IMD00{i}_roi", f"IMD00{i}_R1_Label3.bmp")
    touch(tmp_path / "ham10000_test" / "images", "ISIC_0024306.jpg", "ISIC_0024307.jpg")
    touch(tmp_path / "ham10000_test" / "masks", "ISIC_0024306_segmentation.png", "ISIC_0024307.png")
    table = "image_id,lesion_id,dx\nISIC_0024306,HAM_1,nv\nISIC_0024307,HAM_1,mel\n"
    (tmp_path / "ham10000_test" / "metadata.csv").write_text(table)
    touch(tmp_path / "ham10000_unlabelled", "ISIC_0029306.jpg")
    found = datasets_in(tmp_path)
    ids = {name: {split: ids_of(part) for split, part in splits.items()} for name, splits in found.items()}
    assert ids["ham10000"] == {"test": ["ISIC_0024306", "ISIC_0024307"], "unlabelled": ["ISIC_0029306"]}
    assert ids["ph2"] == {"test": ["IMD003", "IMD004", "IMD005"]} and len(ids) == 2
    assert all(s.mask.parent.name.endswith("_lesion") for s in found["ph2"]["test"].samples)
    assert [(s.cluster, s.group) for s in found["ham10000"]["test"].samples] == [("HAM_1", "nv"), ("HAM_1", "mel")]
    assert ids_of(datasets_in(tmp_path / "ham10000_test")["ham10000"]["test"]) == ["ISIC_0024306", "ISIC_0024307"]


def test_every_folder_name_of_the_registry_is_one_sets_alone():
    names = [name for dataset in DATASETS.values() for name in dataset.folders]
    assert len(names) == len(set(names))
    assert all(test in DATASETS for dataset in DATASETS.values() for test in dataset.also_tested_on)


@pytest.mark.parametrize("folders", [("HAM10000_images_part_1", "HAM10000_images_part_2"), ("ham10000_unlabelled",)])
def test_the_whole_ham10000_with_and_without_its_masks(tmp_path, folders):
    touch(tmp_path / folders[0], "ISIC_0024306.jpg")
    touch(tmp_path / folders[-1], "ISIC_0029306.jpg")
    split, ids = datasets_in(tmp_path)["ham10000"]["unlabelled"], ["ISIC_0024306", "ISIC_0029306"]
    assert ids_of(split) == ids and split.expected == 10_015 and all(sample.mask is None for sample in split.samples)
    touch(tmp_path / "HAM10000_segmentations_lesion_tschandl", *(f"{i}_segmentation.png" for i in ids))
    (tmp_path / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\nHAM_1,ISIC_0024306,nv\n")
    splits = datasets_in(tmp_path)["ham10000"]
    assert {name: ids_of(split) for name, split in splits.items()} == {"test": ids}
    assert [s.group for s in splits["test"].samples] == ["nv", None]


# a user's own folder


@pytest.mark.parametrize("patients", [False, True])
def test_own_images_are_divided_by_id_and_by_patient(tmp_path, patients):
    names = make_own(tmp_path / "clinic", [f"case{i}" for i in range(400)])
    if patients:
        table = "id,patient_id\n" + "".join(f"case{i},P{i // 4}\n" for i in range(0, 300))
        (tmp_path / "clinic" / "manifest.csv").write_text(table)
    splits = datasets_in(tmp_path / "clinic")["clinic"]
    assert sorted(i for split in splits.values() for i in ids_of(split)) == sorted(names)
    shares = {name: len(split.samples) / 400 for name, split in splits.items()}
    assert shares == pytest.approx({"train": 0.70, "validation": 0.15, "test": 0.15}, abs=0.06)
    assert all(split.complete and split.expected is None for split in splits.values())
    shown = [{s.cluster for s in split.samples} - {None} for split in splits.values()]
    assert sum(map(len, shown)) == len(set.union(*shown)) == (75 if patients else 0)


def test_an_own_folder_is_not_taken_for_an_official_set(tmp_path):
    make_own(tmp_path / "isic2017", IDS)
    assert datasets_in(tmp_path / "isic2017")["own_isic2017"]["train"].dataset == "own_isic2017"


def test_a_manifest_says_what_the_files_do_not(tmp_path):
    make(tmp_path, "isic2017", "test", "abcd")
    rows = "a,test,1022x767,L1,P1\nb,test,,L2,\nc,test,640 × 480,,\nISIC_9999999,test,1x1,L9,P9\n"
    (tmp_path / "manifest.csv").write_text(f"id,split,native_size,lesion_id,patient_id\n{rows}")
    known = [(s.id, s.native_size, s.cluster) for s in datasets_in(tmp_path)["isic2017"]["test"].samples]
    assert known == [("a", (767, 1022), "P1"), ("b", None, "L2"), ("c", (480, 640), None), ("d", None, None)]


def test_an_own_folder_beside_a_training_set_is_an_external_test_set(tmp_path):
    make(tmp_path / "official", "isic2017", "train", isic_ids(60))
    for clinic in (tmp_path / "clinic", tmp_path / "official" / "second"):
        make_own(clinic, IDS)
    first = datasets_in(tmp_path / "official", tmp_path / "clinic")
    assert set(first) == {"isic2017", "clinic", "second"}
    assert set(first["clinic"]) == set(first["second"]) == {"test"} and ids_of(first["clinic"]["test"]) == IDS
    own_first = datasets_in(tmp_path / "clinic", tmp_path / "official")
    assert set(own_first["clinic"]) == {"train", "validation", "test"} and set(own_first["second"]) == {"test"}


def test_two_own_folders_of_one_name_are_two_sets(tmp_path):
    one, two = (tmp_path / place / "data" for place in "ab")
    make_own(one, IDS), make_own(two, IDS)
    found = {name: set(splits) for name, splits in datasets_in(one, two).items()}
    assert found == {"data": {"train", "validation", "test"}, "data-2": {"test"}}
    assert set(datasets_in(one, one)) == {"data"}, "named twice, read once"


def test_loose_images_given_beside_a_set_are_unlabelled(tmp_path):
    make(tmp_path / "official", "isic2017", "train", isic_ids(60))
    touch(tmp_path / "photos", "a.jpg", "b.webp", "notes.txt")
    touch(tmp_path / "official" / "screenshots", "c.jpg")
    found = find_datasets(tmp_path / "official", tmp_path / "photos")
    assert {split: ids_of(part) for split, part in found.datasets["photos"].items()} == {"unlabelled": ["a", "b"]}
    assert set(found.datasets) == {"isic2017", "photos"} and found.problems == []
    assert any("screenshots is not read" in note for note in found.notes)
    assert any("1 .txt file (notes.txt)" in note for note in found.notes)


# tables


def clinic(root: Path, ids, table: str, encoding: str = "utf-8") -> Found:
    make_own(root, ids)
    (root / "manifest.csv").write_bytes(table.encode(encoding))
    return find_datasets(root)


def clusters(found: Found) -> dict[str, str | None]:
    return {s.id: s.cluster for splits in found.datasets.values() for part in splits.values() for s in part.samples}


@pytest.mark.parametrize("name", ["case{:03d}.jpg", "CASE{:03d}", "case{}", " case{:03d} "])
@pytest.mark.parametrize("layout", ["id,patient_id\n{}", "Image ID;Patient-ID;x\n{}", "isic_id\tPatient\n{}"])
def test_ids_of_a_table_are_compared_as_they_look(tmp_path, name, layout):
    comma = ";" if ";" in layout else "\t" if "\t" in layout else ","
    rows = "".join(f"{name.format(i)}{comma}P{i // 3}\n" for i in range(60))
    found = clinic(tmp_path / "clinic", IDS, layout.format(rows))
    assert found.problems == [] and clusters(found) == {own: f"P{i // 3}" for i, own in enumerate(IDS)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "utf-16"])
def test_encodings_of_a_table(tmp_path, encoding):
    one, other = unicodedata.normalize("NFC", "Müller"), unicodedata.normalize("NFKD", "Müller")
    names = [one] * 30 + [one if encoding == "cp1252" else other] * 30
    rows = "".join(f"{i},{name}{n % 30},Köln\n" for n, (i, name) in enumerate(zip(IDS, names, strict=True)))
    found = clusters(clinic(tmp_path / "clinic", IDS, f"id,patient_id,ort\n{rows}", encoding))
    assert found["case001"] == found["case031"] == "Müller1"


def test_missing_values_are_missing(tmp_path):
    missing = ["NA", "nan", "None", "-", "unknown", "", " N/A ", "?"]
    table = "id,patient_id\n" + "".join(f"{i},{missing[n % 8]}\n" for n, i in enumerate(IDS[:59])) + "case059,P9\n"
    found = clinic(tmp_path / "clinic", IDS, table)
    assert {own for own, cluster in clusters(found).items() if cluster} == {"case059"}
    assert any("no patient or lesion of 59 of 60 images" in note for note in found.notes)


def test_a_patient_with_half_of_the_images_is_told(tmp_path):
    table = "id,patient_id\n" + "".join(f"{i},{'P' if n < 30 else n}\n" for n, i in enumerate(IDS))
    assert any("30 of 60 images to P" in note for note in clinic(tmp_path / "clinic", IDS, table).notes)


UNUSABLE = [
    ("patient,native_size\na,3x4\n", "has no column id, only patient, native_size"),
    ("id,native_size\ncase001,767\n", "gives the native_size of case001 as '767'; write WIDTHxHEIGHT"),
    ("id,patient_id\nbild1,P1\n", "names no image that is there: it has bild1, the images are case000"),
    ("id,patient_id\ncase001,P1\ncase001,P2\n", "has two rows for case001 that differ"),
]


@pytest.mark.parametrize(("table", "said"), UNUSABLE)
def test_a_table_that_cannot_be_used(tmp_path, table, said):
    [message] = clinic(tmp_path / "clinic", IDS, table).problems
    assert said in message and "manifest.csv" in message


# what cannot be used: (what is there, what the message must say)


def error_for(*roots):
    problems = find_datasets(*roots).problems
    assert problems and not any("\n" in problem or "delete" in problem for problem in problems)
    return "; ".join(problems)


PAIR = "ISIC-2017_Training_Data/a.jpg ISIC-2017_Training_Part1_GroundTruth/a.png"
TWICE = "train/images/x.jpg train/masks/x.png val/images/x.jpg val/masks/x.png test/images/x.jpg test/masks/x.png"
WRONG = [
    ("", "", "ISIC-2017_Training_Data, |images/ and masks/|tokencutseg fetch isic2017"),
    ("", "nowhere", "nowhere does not exist|tokencutseg fetch isic2017"),
    (PAIR, "ISIC-2017_Training_Data", "give the folder that holds it"),
    ("ISIC-2017_Training_Data/a.jpg", "", "has no mask folder ISIC-2017_Training_Part1_GroundTruth|fetch isic2017"),
    (
        "ISIC-2017_Training_Data/a.jpg ISIC-2017_Training_GroundTruth/a.png",
        "",
        "ISIC-2017_Training_GroundTruth meant to be",
    ),
    ("ISIC-2017_Test_v2_Part1_GroundTruth/a.png", "", "no image folder ISIC-2017_Test_v2_Data"),
    (f"{PAIR} isic2018/pictures/a.jpg", "", "isic2018 holds none of|tokencutseg fetch isic2018"),
    (f"{PAIR} x/ISIC-2017_Training_Data/a.jpg", "", "ISIC-2017_Training_Data is there twice"),
    (f"{PAIR} ISIC-2017_Training_Data/a.png", "", "two files have the id a|a.jpg"),
    (PAIR.replace(".jpg", ".txt"), "", "ISIC-2017_Training_Data holds no image"),
    ("images/x.jpg images/y.jpg masks/x.png masks/y.png", "", "too few images"),
    ("images/x.jpg mak/x.png", "", "has no masks/ folder|mak meant to be masks"),
    ("clinic/images/x.jpg notes/x.txt", "", "did you mean|clinic?"),
    ("a.jpg a_mask.png b.jpg b_mask.png", "", "mixes images and masks"),
    (TWICE, "", "1 ids in two splits: x"),
]


@pytest.mark.parametrize(("files", "root", "said"), WRONG)
def test_what_cannot_be_used_is_said_in_words(tmp_path, files, root, said):
    for file in map(Path, files.split()):
        touch(tmp_path / file.parent, file.name)
    message = error_for(tmp_path / root)
    assert all(part in message for part in said.split("|")), message


@pytest.mark.parametrize("wrong", ["ISIC2017_Training_Data", "isic-2017_training_data", "ISIC-2017_Trainin_Data"])
def test_a_misnamed_folder_is_recognised(tmp_path, wrong):
    touch(tmp_path / "downloads" / wrong, "ISIC_0000000.jpg")
    assert f"{wrong} meant to be ISIC-2017_Training_Data?" in error_for(tmp_path)


def test_images_and_masks_without_partner_are_counted_and_named(tmp_path):
    make(tmp_path, "isic2017", "test", isic_ids(9))
    for sample_id in isic_ids(5, 2):
        (tmp_path / "ISIC-2017_Test_v2_Part1_GroundTruth" / f"{sample_id}_segmentation.png").unlink()
    (tmp_path / "ISIC-2017_Test_v2_Data" / "ISIC_0000001.jpg").rename(tmp_path / "ISIC-2017_Test_v2_Data" / "a.heic")
    without_mask, without_image = find_datasets(tmp_path).problems
    assert without_mask.startswith("5 images of ") and "ISIC_0000004.jpg, …" in without_mask
    assert without_image.startswith("1 mask of ") and "ISIC_0000001_segmentation.png" in without_image
    assert "1 .heic file (a.heic)" in without_image and "named like ISIC_0000000.jpg" in without_image


def test_links(tmp_path):
    make_own(tmp_path / "clinic", IDS)
    (tmp_path / "clinic" / "images").rename(tmp_path / "real")
    (tmp_path / "clinic" / "images").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    (tmp_path / "clinic" / "old").symlink_to(tmp_path / "gone")
    assert sum(len(part.samples) for part in datasets_in(tmp_path / "clinic")["clinic"].values()) == 60
    (tmp_path / "real" / "case007.jpg").unlink()
    (tmp_path / "real" / "case007.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "case007.jpg is a link to a file that is not there" in error_for(tmp_path / "clinic")


@pytest.mark.skipif(not REAL, reason="TOKENCUTSEG_DATA does not point to real data")
def test_the_real_folders():
    found = find_datasets(REAL)
    assert found.problems == []
    for dataset, splits in found.datasets.items():
        for name, split in splits.items():
            assert split.samples and (split.expected is None or len(split.samples) <= split.expected), (dataset, name)
            assert all((s.mask is None) == (name == "unlabelled") for s in split.samples)
    if {"isic2016", "isic2017"} <= set(found.datasets):
        shared = {*ids_of(found.datasets["isic2016"]["test"])} & {*ids_of(found.datasets["isic2017"]["train"])}
        assert len(shared) > 300, "the years overlap"


def test_two_folders_of_any_name_are_a_split(tmp_path):
    touch(tmp_path / "photos", "b.jpg", "a.jpg")
    touch(tmp_path / "truth", "a_segmentation.png", "b.png")
    split = pair_folders("mine", "train", tmp_path / "photos", tmp_path / "truth")
    files = [(s.id, s.image.name, s.mask.name) for s in split.samples]
    assert files == [("a", "a.jpg", "a_segmentation.png"), ("b", "b.jpg", "b.png")]
    assert split.complete and all(s.mask is None for s in pair_folders("mine", "x", tmp_path / "photos", None).samples)
    with pytest.raises(DataError, match="gone does not exist; give the one that holds the masks of the train split"):
        pair_folders("mine", "train", tmp_path / "photos", tmp_path / "gone")
