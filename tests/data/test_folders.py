"""Official and own folder trees, whole and broken, made small in a temporary folder."""

import os
import random
import re
from pathlib import Path

import pytest

from tokencutseg.data.folders import expected_folders, find_datasets, id_fraction, pair_folders
from tokencutseg.data.images import DataError

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


def isic_ids(n, start=0):
    return [f"ISIC_{i:07d}" for i in range(start, start + n)]


def ids_of(split):
    return [sample.id for sample in split.samples]


@pytest.mark.parametrize("nested", [False, True], ids=["side by side", "one folder per dataset"])
def test_every_official_layout_is_read(tmp_path, nested):
    for number, (dataset, split) in enumerate(LAYOUT):
        suffix = "_Segmentation" if dataset == "isic2016" else "_segmentation"
        make(tmp_path / dataset if nested else tmp_path, dataset, split, isic_ids(40, 100 * number), suffix)
    touch(
        tmp_path / ("isic2017" if nested else "") / "ISIC-2017_Training_Data",
        "ISIC_0000200_superpixels.png",
        "ISIC-2017_Training_Data_metadata.csv",
        "._ISIC_0000200.jpg",
    )
    found = datasets_in(tmp_path)
    assert {(d, s) for d, splits in found.items() for s in splits} == {*LAYOUT, ("isic2016", "validation")}
    for number, (dataset, split) in enumerate(LAYOUT):
        if (dataset, split) != ("isic2016", "train"):
            part = found[dataset][split]
            assert (part.dataset, part.name, ids_of(part)) == (dataset, split, isic_ids(40, 100 * number))
    for splits in found.values():
        for split in splits.values():
            for sample in split.samples:
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
    splits = datasets_in(tmp_path)["isic2016"]
    train, validation = splits["train"], splits["validation"]
    assert sorted(ids_of(train) + ids_of(validation)) == isic_ids(count)
    assert 0.07 * count < len(validation.samples) < 0.13 * count
    assert train.expected + validation.expected == 900
    assert train.complete is validation.complete is complete


def test_a_drawn_split_does_not_depend_on_the_other_images(tmp_path):
    make(tmp_path / "all", "isic2016", "train", isic_ids(300))
    some = random.Random(0).sample(isic_ids(300), 200)
    make(tmp_path / "some", "isic2016", "train", some)
    whole, part = (set(ids_of(datasets_in(tmp_path / name)["isic2016"]["validation"])) for name in ("all", "some"))
    assert part == whole & set(some)
    assert all(0 <= id_fraction(i) < 1 for i in some)


def test_the_drawn_ids_stay_the_same():
    """Runs of different versions can only be compared while the draw does not change."""
    assert [i for i in isic_ids(40) if id_fraction(i) < 0.1] == ["ISIC_0000013", "ISIC_0000029", "ISIC_0000031"]


def test_both_ham10000_archives_are_put_together(tmp_path):
    touch(tmp_path / "HAM10000_images_part_1", "ISIC_0024306.jpg")
    touch(tmp_path / "HAM10000_images_part_2", "ISIC_0029306.jpg")
    split = datasets_in(tmp_path)["ham10000"]["unlabelled"]
    assert ids_of(split) == ["ISIC_0024306", "ISIC_0029306"] and split.expected == 10_015
    assert all(sample.mask is None for sample in split.samples)


def test_a_split_without_published_masks_is_left_out(tmp_path):
    make(tmp_path, "isic2018", "train", isic_ids(3))
    touch(tmp_path / "ISIC2018_Task1-2_Test_Input", "ISIC_0012169.jpg")
    assert set(datasets_in(tmp_path)["isic2018"]) == {"train"}
    touch(tmp_path / "isic2016" / "ISBI2016_ISIC_Part1_Test_Data", "ISIC_0000003.jpg")
    assert set(datasets_in(tmp_path)) == {"isic2018"}


def test_expected_folders_are_those_of_the_archives():
    for (dataset, split), (images, masks) in LAYOUT.items():
        assert images in expected_folders(dataset, split) and (masks or "") in expected_folders(dataset, split)
    assert expected_folders("isic2016", "validation") == expected_folders("isic2016", "train")
    assert expected_folders("mine", "train") == ""


# a user's own folder


@pytest.mark.parametrize("suffix", ["", "_segmentation", "_Segmentation", "_mask"])
def test_own_images_and_masks_are_divided_by_id(tmp_path, suffix):
    root = tmp_path / "clinic"
    names = [f"case{i}" for i in range(400)]
    touch(root / "images", *(f"{n}.jpg" for n in names))
    touch(root / "masks", *(f"{n}{suffix}.png" for n in names))
    splits = datasets_in(root)["clinic"]
    assert sorted(i for split in splits.values() for i in ids_of(split)) == sorted(names)
    shares = {name: len(split.samples) / 400 for name, split in splits.items()}
    assert shares == pytest.approx({"train": 0.70, "validation": 0.15, "test": 0.15}, abs=0.06)
    assert all(split.complete and split.expected is None for split in splits.values())


def test_own_images_of_one_patient_lie_in_one_split(tmp_path):
    root = tmp_path / "clinic"
    names = [f"case{i}" for i in range(400)]
    touch(root / "images", *(f"{n}.jpg" for n in names))
    touch(root / "masks", *(f"{n}.png" for n in names))
    (root / "manifest.csv").write_text("id,patient_id\n" + "".join(f"case{i},P{i // 4}\n" for i in range(0, 300)))
    splits = datasets_in(root)["clinic"]
    patients = [{s.cluster for s in split.samples} - {None} for split in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 75 and all(patients)
    assert sorted(i for split in splits.values() for i in ids_of(split)) == sorted(names)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_own_split_folders_are_kept(tmp_path, validation):
    root = tmp_path / "clinic"
    for number, folder in enumerate(("train", validation, "test")):
        touch(root / folder / "images", f"{number}.png")
        touch(root / folder / "masks", f"{number}.png")
    touch(root / "unlabelled", "more.jpg")
    splits = datasets_in(root)["clinic"]
    assert {name: ids_of(split) for name, split in splits.items()} == {
        "train": ["0"],
        "validation": ["1"],
        "test": ["2"],
        "unlabelled": ["more"],
    }
    assert splits["unlabelled"].samples[0].mask is None


def test_an_own_folder_is_not_taken_for_an_official_set(tmp_path):
    names = [f"case{i}" for i in range(60)]
    touch(tmp_path / "isic2017" / "images", *(f"{n}.jpg" for n in names))
    touch(tmp_path / "isic2017" / "masks", *(f"{n}.png" for n in names))
    found = datasets_in(tmp_path / "isic2017")
    assert set(found) == {"own_isic2017"} and found["own_isic2017"]["train"].dataset == "own_isic2017"


def test_a_manifest_says_what_the_files_do_not(tmp_path):
    ids = isic_ids(4)
    make(tmp_path, "isic2017", "test", ids)
    (tmp_path / "manifest.csv").write_text(
        "id,split,native_size,lesion_id,patient_id\n"
        f"{ids[0]},test,1022x767,L1,P1\n{ids[1]},test,,L2,\n{ids[2]},test,640 × 480,,\nISIC_9999999,test,1x1,L9,P9\n"
    )
    samples = datasets_in(tmp_path)["isic2017"]["test"].samples
    assert [(s.id, s.native_size, s.cluster) for s in samples] == [
        (ids[0], (767, 1022), "P1"),
        (ids[1], None, "L2"),
        (ids[2], (480, 640), None),
        (ids[3], None, None),
    ]


# bad input: (what is there, what the message must say)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,native_size\na,3x4\n", "has no column id, only image, native_size; add the images' names"),
        ("id,native_size\nISIC_0000001,767\n", "gives the native_size of ISIC_0000001 as '767'; write WIDTHxHEIGHT"),
        ("id,native_size\nISIC_0000001,0x767\n", "as '0x767'; write WIDTHxHEIGHT"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path, text, said):
    make(tmp_path, "isic2017", "test", isic_ids(3))
    (tmp_path / "manifest.csv").write_text(text)
    assert said in error_for(tmp_path)


def error_for(*roots):
    [message] = find_datasets(*roots).problems
    assert "\n" not in message
    return message


def test_a_missing_root(tmp_path):
    message = error_for(tmp_path / "nowhere")
    assert "nowhere does not exist" in message and "tokencutseg fetch isic2017" in message


def test_an_empty_root_lists_what_is_expected(tmp_path):
    message = error_for(tmp_path)
    for name in (
        "ISBI2016_ISIC_Part1_Training_Data",
        "ISIC-2017_Training_Data",
        "ISIC2018_Task1-2_Training_Input",
        "HAM10000_images_part_1",
        "images/",
        "masks/",
        "tokencutseg fetch isic2017",
    ):
        assert name in message


@pytest.mark.parametrize("wrong", ["ISIC2017_Training_Data", "isic-2017_training_data", "ISIC-2017_Trainin_Data"])
@pytest.mark.parametrize("inside", ["", "isic2017", "downloads"])
def test_a_misnamed_folder_is_recognised(tmp_path, wrong, inside):
    touch(tmp_path / inside / wrong, "ISIC_0000000.jpg")
    assert re.search(rf"\(is \S*{wrong} meant to be ISIC-2017_Training_Data\?\)", error_for(tmp_path))


def test_a_dataset_folder_with_nothing_official_in_it(tmp_path):
    make(tmp_path, "isic2017", "test", isic_ids(2))
    touch(tmp_path / "isic2018" / "pictures", "a.jpg")
    message = error_for(tmp_path)
    assert "isic2018 holds none of" in message and "ISIC2018_Task1_Training_GroundTruth" in message
    assert "tokencutseg fetch isic2018" in message


def test_one_official_folder_given_as_root(tmp_path):
    make(tmp_path, "isic2017", "train", isic_ids(2))
    assert "give the folder that holds it" in error_for(tmp_path / "ISIC-2017_Training_Data")


def test_training_images_without_their_mask_folder(tmp_path):
    touch(tmp_path / "ISIC-2017_Training_Data", "ISIC_0000000.jpg")
    touch(tmp_path / "ISIC-2017_Training_GroundTruth", "ISIC_0000000_segmentation.png")
    message = error_for(tmp_path)
    assert "has no mask folder ISIC-2017_Training_Part1_GroundTruth" in message
    assert "ISIC-2017_Training_GroundTruth meant to be" in message and "fetch isic2017" in message


def test_masks_without_their_image_folder(tmp_path):
    touch(tmp_path / "ISIC-2017_Test_v2_Part1_GroundTruth", "ISIC_0000000_segmentation.png")
    touch(tmp_path / "ISIC-2017_Test_Data", "ISIC_0000000.jpg")
    message = error_for(tmp_path)
    assert "no image folder ISIC-2017_Test_v2_Data" in message and "ISIC-2017_Test_Data meant to be" in message


def test_a_folder_that_is_there_twice(tmp_path):
    make(tmp_path, "isic2017", "train", isic_ids(2))
    make(tmp_path / "isic2017", "isic2017", "train", isic_ids(2))
    assert "ISIC-2017_Training_Data is there twice" in error_for(tmp_path)


def test_images_without_masks_are_named_up_to_three(tmp_path):
    make(tmp_path, "isic2017", "train", isic_ids(9))
    for sample_id in isic_ids(5, 2):
        (tmp_path / "ISIC-2017_Training_Part1_GroundTruth" / f"{sample_id}_segmentation.png").unlink()
    message = error_for(tmp_path)
    assert "5 images without mask in" in message and "ISIC-2017_Training_Part1_GroundTruth" in message
    assert "ISIC_0000002, ISIC_0000003, ISIC_0000004, …" in message and "ISIC_0000005" not in message


def test_a_mask_without_image_is_named(tmp_path):
    make(tmp_path, "isic2017", "train", isic_ids(9))
    (tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000004.jpg").unlink()
    message = error_for(tmp_path)
    assert "1 mask without image in" in message and "ISIC-2017_Training_Data: ISIC_0000004;" in message


def test_two_files_with_one_id(tmp_path):
    make(tmp_path, "isic2017", "train", isic_ids(3))
    touch(tmp_path / "ISIC-2017_Training_Data", "ISIC_0000001.png")
    message = error_for(tmp_path)
    assert "two files have the id ISIC_0000001" in message and "ISIC_0000001.jpg" in message


def test_two_masks_with_one_id(tmp_path):
    touch(tmp_path / "clinic" / "images", "a.jpg")
    touch(tmp_path / "clinic" / "masks", "a.png", "a_mask.png")
    assert "two files have the id a" in error_for(tmp_path / "clinic")


def test_an_empty_split(tmp_path):
    make(tmp_path, "isic2017", "train", [])
    assert "ISIC-2017_Training_Data holds no image" in error_for(tmp_path)


def test_too_few_images_to_draw_a_split_from(tmp_path):
    make(tmp_path / "a", "isic2016", "train", isic_ids(1))
    assert "too few images (1)" in error_for(tmp_path / "a")
    touch(tmp_path / "b" / "images", "x.jpg")
    touch(tmp_path / "b" / "masks", "x.png")
    assert "too few to draw" in error_for(tmp_path / "b")


def test_own_folder_without_masks_or_with_a_misnamed_one(tmp_path):
    touch(tmp_path / "images", "x.jpg")
    touch(tmp_path / "mask", "x.png")
    message = error_for(tmp_path)
    assert "has no masks/ folder (is it mask/?)" in message


def test_own_folder_one_level_too_high(tmp_path):
    touch(tmp_path / "clinic" / "images", "x.jpg")
    assert f"did you mean {tmp_path / 'clinic'}?" in error_for(tmp_path)


def test_own_split_folders_must_all_be_there(tmp_path):
    for folder in ("train", "test"):
        touch(tmp_path / folder / "images", f"{folder}.jpg")
        touch(tmp_path / folder / "masks", f"{folder}.png")
    assert "has no validation/ folder" in error_for(tmp_path)


def test_one_id_in_two_own_splits(tmp_path):
    for folder in ("train", "val", "test"):
        touch(tmp_path / folder / "images", "same.jpg")
        touch(tmp_path / folder / "masks", "same.png")
    assert "id same is in two splits" in error_for(tmp_path)


@pytest.mark.skipif(not REAL, reason="TOKENCUTSEG_DATA does not point to real data")
def test_the_real_folders_have_their_known_counts():
    found = datasets_in(REAL)
    counts = {split: len(part.samples) for split, part in found["isic2017"].items()}
    assert counts == {"train": 2000, "validation": 150, "test": 600}
    assert all(part.complete for part in found["isic2017"].values())
    old = found["isic2016"]
    assert len(old["train"].samples) + len(old["validation"].samples) == 749 and len(old["test"].samples) == 305
    assert not any(part.complete for part in old.values())
    assert set(ids_of(old["test"])) <= set(ids_of(found["isic2017"]["train"]))


def test_two_folders_of_any_name_are_a_split(tmp_path):
    touch(tmp_path / "photos", "b.jpg", "a.jpg")
    touch(tmp_path / "truth", "a_segmentation.png", "b.png")
    split = pair_folders("mine", "train", tmp_path / "photos", tmp_path / "truth")
    assert [(s.id, s.image.name, s.mask.name) for s in split.samples] == [
        ("a", "a.jpg", "a_segmentation.png"),
        ("b", "b.jpg", "b.png"),
    ]
    assert split.complete and all(s.mask is None for s in pair_folders("mine", "x", tmp_path / "photos", None).samples)
    with pytest.raises(DataError, match="gone does not exist; give the one that holds the masks of the train split"):
        pair_folders("mine", "train", tmp_path / "photos", tmp_path / "gone")
