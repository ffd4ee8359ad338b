"""Data sources: what is in them, what the pool leaves out, and that label subsets are nested."""

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokencutseg.config import configure
from tokencutseg.data.datasets import POOL_SPLITS
from tokencutseg.data.images import DataError
from tokencutseg.data.source import open_source

REAL = os.environ.get("TOKENCUTSEG_DATA")
CONFIG = configure("tiny")
SIZE = CONFIG.data.image_size


def picture(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (24, 32, 3), np.uint8), rng.integers(0, 2, (24, 32)).astype(bool)


def save(folder, ids, masks=None, offset=0):
    """Random images, and masks where a folder for them is given; image number i is the same wherever it is saved."""
    for place in filter(None, (folder, masks)):
        place.mkdir(parents=True)
    for i in ids:
        image, mask = picture(i + offset)
        Image.fromarray(image).save(folder / f"ISIC_{i:07d}.png")
        if masks:
            Image.fromarray(mask).save(masks / f"ISIC_{i:07d}_segmentation.png")


def own_folder(root, numbers, offset=0):
    save(root / "images", numbers, root / "masks", offset)
    return root


def clinic_with_splits(root):
    for split, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 12))):
        own_folder(root / split, numbers)
    save(root / "unlabelled", range(20, 25))
    return root


@pytest.fixture(scope="module")
def isic_root(tmp_path_factory):
    """2016: training 0-39, test 40-49. 2017: training 30-69, so it shares ids with both; validation, test. HAM10000."""
    root = tmp_path_factory.mktemp("isic")
    old, new = root / "isic2016", root / "isic2017"
    save(old / "ISBI2016_ISIC_Part1_Training_Data", range(40), old / "ISBI2016_ISIC_Part1_Training_GroundTruth")
    save(old / "ISBI2016_ISIC_Part1_Test_Data", range(40, 50), old / "ISBI2016_ISIC_Part1_Test_GroundTruth")
    save(new / "ISIC-2017_Training_Data", range(30, 70), new / "ISIC-2017_Training_Part1_GroundTruth")
    save(new / "ISIC-2017_Validation_Data", range(70, 75), new / "ISIC-2017_Validation_Part1_GroundTruth")
    save(new / "ISIC-2017_Test_v2_Data", range(80, 90), new / "ISIC-2017_Test_v2_Part1_GroundTruth")
    save(root / "ham10000_unlabelled", range(100, 120))
    # the same file under another id: an unlabelled image that is really a test image, and one that is there twice
    ham, test = root / "ham10000_unlabelled", new / "ISIC-2017_Test_v2_Data"
    shutil.copy(test / "ISIC_0000080.png", ham / "ISIC_0000200.png")
    shutil.copy(ham / "ISIC_0000100.png", ham / "ISIC_0000201.png")
    return root


@pytest.fixture(scope="module")
def isic(isic_root):
    return open_source(isic_root, CONFIG)


@pytest.fixture(scope="module")
def synthetic():
    return open_source(None, CONFIG)


def pixels(images):
    return {image.numpy().tobytes() for image in images.images}


def scored(source):
    splits = [(dataset, split) for dataset, splits in source.datasets.items() for split in splits]
    return [source.load(*split) for split in splits if split[1] in ("validation", "test")]


# synthetic


def test_the_synthetic_source(synthetic):
    assert (synthetic.name, synthetic.primary) == ("synthetic", "site_a")
    assert synthetic.rows == [("site_a", "site_a"), ("site_b", "site_b"), ("site_a", "site_b")]
    for site in ("site_a", "site_b"):
        for split, n in (("train", 24), ("validation", 8), ("test", 12)):
            part = synthetic.load(site, split)
            assert part.images.shape == (n, 3, SIZE, SIZE) and part.masks.shape == (n, SIZE, SIZE)
            assert set(part.masks.unique().tolist()) == {0, 1}
            assert part.complete
    assert synthetic.load("site_a", "train") is synthetic.load("site_a", "train")


def test_the_synthetic_pool_is_both_training_splits_and_the_unlabelled_images(synthetic):
    pool = synthetic.unlabelled()
    assert len(pool) == 2 * CONFIG.data.synthetic_train + CONFIG.data.synthetic_unlabelled
    assert pool.masks is None and synthetic.unlabelled_exclusions == []
    every = [pool, *scored(synthetic)]
    assert len(set.union(*map(pixels, every))) == sum(map(len, every)), "no two splits share an image"


def test_synthetic_data_do_not_depend_on_the_seed_of_the_study(synthetic):
    other = open_source("", configure("tiny", seed=5))
    for split in ("train", "unlabelled"):
        assert other.load("site_a", split).fingerprint == synthetic.load("site_a", split).fingerprint


# official


def test_the_isic_source(isic):
    assert (isic.name, isic.primary) == ("isic", "isic2017")
    assert isic.study_name.startswith("isic-")
    years = ("isic2016", "isic2017", "isic2018")
    across = [("isic2016", "isic2017"), ("isic2016", "isic2018"), ("isic2017", "isic2018")]
    assert isic.rows == [(year, year) for year in years] + across
    runnable = [row for row in isic.rows if isic.has(row[0], "train") and isic.has(row[1], "test")]
    assert runnable == [("isic2016", "isic2016"), ("isic2017", "isic2017"), ("isic2016", "isic2017")]
    assert isic.load("isic2017", "test").images.shape == (10, 3, SIZE, SIZE)


def test_missing_images_are_the_official_ones(isic, synthetic):
    missing = isic.missing_images(("isic2017", "validation"), ("isic2017", "test"))
    assert missing == "isic2017 validation partial: 5 of 150; isic2017 test partial: 10 of 600"
    assert isic.missing_images(("isic2017", "train"), ("isic2018", "test")) is None
    assert synthetic.missing_images(("site_a", "train"), ("site_b", "test")) == ""


@pytest.mark.parametrize("there", ["isic2016", "isic2018", "isic2016 isic2018"])
def test_the_primary_set_is_the_first_that_is_there(isic_root, tmp_path, there):
    if "isic2016" in there:
        (tmp_path / "isic2016").symlink_to(isic_root / "isic2016")
    if "isic2018" in there:
        save(tmp_path / "ISIC2018_Task1-2_Training_Input", range(9), tmp_path / "ISIC2018_Task1_Training_GroundTruth")
    assert open_source(tmp_path, CONFIG).primary == there.split()[0]


def test_the_isic_pool_against_sets_of_numbers(isic):
    drawn = {int(i[5:]) for i in isic.load("isic2016", "validation").ids}
    # 200 is test image 80 and 201 is 100 once more; a number is a picture otherwise
    expected = set(range(70)) - drawn - set(range(40, 50)) | set(range(100, 120))
    pool = isic.unlabelled()
    assert sorted(int(i[5:]) for i in pool.ids) == sorted(expected)
    assert pool.masks is None and len(pool.native_sizes) == len(pool)
    for number, image in ((int(i[5:]), image) for i, image in zip(pool.ids, pool.images, strict=True)):
        resized = Image.fromarray(picture(number)[0]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(resized))
    for part in scored(isic):
        assert not set(pool.ids) & set(part.ids) and not pixels(pool) & pixels(part)
    assert len(pixels(pool)) == len(pool)


def test_the_record_of_what_the_pool_leaves_out(isic):
    records = isic.unlabelled_exclusions
    splits = [(dataset, split) for dataset, splits in isic.datasets.items() for split in splits]
    members = sum(len(isic.load(*split)) for split in splits if split[1] in POOL_SPLITS)
    assert len(isic.unlabelled()) + len(records) == members
    reasons = {(r["dataset"], r["split"], r["id"]): r["reason"] for r in records}
    assert reasons["isic2017", "train", "ISIC_0000045"] == "same id as in isic2016/test"
    assert reasons["ham10000", "unlabelled", "ISIC_0000200"] == "same content as in isic2017/test"
    assert reasons["ham10000", "unlabelled", "ISIC_0000201"] == "same content as in ham10000/unlabelled"


def test_a_missing_split_says_which_folders_it_needs(isic, isic_root):
    assert not isic.has("isic2018", "test") and not isic.has("isic2019", "test")
    with pytest.raises(DataError, match=r"isic2018/test is not in .* `tokencutseg fetch isic2018`"):
        isic.load("isic2018", "test")
    with pytest.raises(DataError, match="what is there: isic2016/train"):
        isic.load("isic2019", "test")


def test_data_that_cannot_be_trained_and_scored_on(isic_root, tmp_path):
    (tmp_path / "ham10000_unlabelled").symlink_to(isic_root / "ham10000_unlabelled")
    with pytest.raises(DataError, match="cannot be trained and scored on: there is ham10000/unlabelled"):
        open_source(tmp_path, CONFIG)
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "nowhere", CONFIG)


def test_an_own_folder_beside_official_sets_is_an_external_test_set(isic_root, tmp_path):
    clinic = own_folder(tmp_path / "clinic", range(300, 306))
    source = open_source([isic_root, clinic], CONFIG)
    alone = open_source(isic_root, CONFIG)
    assert source.rows == [*alone.rows, ("isic2016", "clinic"), ("isic2017", "clinic")]
    assert (source.primary, source.name) == ("isic2017", "isic-clinic")
    assert len(source.load("clinic", "test")) == 6
    assert source.unlabelled().ids == alone.unlabelled().ids
    lines = source.describe()
    assert "clinic/test: 6" in lines and "isic2016 → clinic: scored" in lines
    assert "isic2018 → isic2018: not scored, no isic2018/train and isic2018/test" in lines


def test_a_study_is_named_by_what_its_data_hold(tmp_path):
    folders = [own_folder(tmp_path / name, range(40), 100 * k) for k, name in enumerate(("a/data", "皮肤", "病理"))]
    names = [open_source(folder, CONFIG).study_name for folder in folders]
    assert [name.rsplit("-", 1)[0] for name in names] == ["data", "皮肤", "病理"]
    copy = shutil.copytree(folders[0], tmp_path / "b" / "data")
    assert open_source(copy, CONFIG).study_name == names[0], "a copy is the same data"
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    (copy / "images" / ".DS_Store").touch()
    (copy / "Thumbs.db").touch()
    (copy / "old").symlink_to(copy / "gone")
    assert open_source(copy, CONFIG).study_name == names[0]
    for kind, suffix in (("images", ""), ("masks", "_segmentation")):
        (copy / kind / f"ISIC_0000007{suffix}.png").unlink()
    assert open_source(copy, CONFIG).study_name != names[0]


def test_all_problems_are_listed_at_once(tmp_path):
    root = own_folder(tmp_path / "clinic", range(60))
    (root / "masks" / "ISIC_0000003_segmentation.png").unlink()
    for i in (5, 6):
        (root / "images" / f"ISIC_{i:07d}.png").write_bytes(b"x")
    Image.new("1", (20, 30)).save(root / "masks" / "ISIC_0000007_segmentation.png")
    with pytest.raises(DataError, match=r"1 image of .*ISIC_0000003"):
        open_source(root, CONFIG)
    problems = " ".join(open_source(root, CONFIG, strict=False).check())
    assert all(f"ISIC_{i:07d}" in problems for i in (3, 5, 6, 7)) and "ISIC_0000004" not in problems


# a user's own


def test_a_folder_of_the_users_own(tmp_path):
    source = open_source(clinic_with_splits(tmp_path / "clinic"), CONFIG)
    assert (source.name, source.primary, source.rows) == ("clinic", "clinic", [("clinic", "clinic")])
    assert len(source.load("clinic", "validation")) == 3
    assert sorted(source.unlabelled().ids) == [f"ISIC_{i:07d}" for i in (*range(6), *range(20, 25))]
    with pytest.raises(DataError, match="other/train is not in the clinic data"):
        source.load("other", "train")


def test_the_pool_shows_no_patient_of_a_scored_split(tmp_path):
    root = clinic_with_splits(tmp_path / "clinic")
    patients = {0: "P1", 1: "P1", 9: "P2", 20: "P2", 21: "P3", 6: "P3", 22: "P4"}
    (root / "manifest.csv").write_text("id,patient_id\n" + "".join(f"ISIC_{i:07d},{p}\n" for i, p in patients.items()))
    source = open_source(root, CONFIG)
    assert sorted(source.unlabelled().ids) == [f"ISIC_{i:07d}" for i in (*range(6), 22, 23, 24)]
    assert [(out["id"], out["reason"]) for out in source.unlabelled_exclusions] == [
        ("ISIC_0000020", "same patient or lesion as in clinic/test"),
        ("ISIC_0000021", "same patient or lesion as in clinic/validation"),
    ]


def test_the_pool_shows_no_near_duplicate_of_a_scored_image(tmp_path):
    """A test image that was turned and recoloured lies among the training ones under another id."""
    rng, root = np.random.default_rng(0), clinic_with_splits(tmp_path / "a")
    for path in root.rglob("ISIC*.png"):  # whose noise is in the way of what is looked at here
        textured = np.kron(rng.integers(40, 200, (12, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        mask = path.parent.name == "masks"
        Image.fromarray((textured[..., 0] > 120) if mask else textured).save(path)
    with Image.open(root / "test" / "images" / "ISIC_0000010.png") as test:
        copy = Image.fromarray(np.asarray(test) // 2 + 60).transpose(Image.Transpose.ROTATE_90)
    copy.save(root / "train" / "images" / "copy.png")
    copy.convert("1").save(root / "train" / "masks" / "copy.png")
    source = open_source(root, configure("tiny", overrides={"data.image_size": 64}))
    assert sorted(source.unlabelled().ids) == [f"ISIC_{i:07d}" for i in (*range(6), *range(20, 25))]
    left_out = [(left["id"], left["reason"]) for left in source.unlabelled_exclusions]
    assert left_out == [("copy", "near duplicate as in a/test")]


# label subsets


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 5))
def test_label_subsets_of_one_seed_are_nested(synthetic, first, second, seed):
    small, large = (synthetic.train("site_a", fraction, seed) for fraction in sorted((first, second)))
    assert set(small.ids) <= set(large.ids) <= set(synthetic.load("site_a", "train").ids)
    assert len(small) == max(2, round(min(first, second) * 24))


def test_label_subsets_keep_image_and_mask_together_and_differ_by_seed(synthetic):
    whole, part = synthetic.load("site_a", "train"), synthetic.train("site_a", 0.25, 0)
    rows = [whole.ids.index(i) for i in part.ids]
    assert rows == sorted(rows)
    assert torch.equal(part.images, whole.images[rows]) and torch.equal(part.masks, whole.masks[rows])
    assert part.ids != synthetic.train("site_a", 0.25, 1).ids
    assert synthetic.train("site_a") is whole


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range(synthetic, fraction):
    with pytest.raises(DataError, match=r"must lie in \(0, 1\]"):
        synthetic.train("site_a", fraction)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="TOKENCUTSEG_DATA does not point to real data")
def test_the_real_pool_shares_nothing_with_any_scored_split():
    source = open_source(REAL, CONFIG)
    pool = source.unlabelled()
    for part in scored(source):
        assert not set(pool.ids) & set(part.ids) and not pixels(pool) & pixels(part)
    assert len(set(pool.ids)) == len(pixels(pool)) == len(pool)
    members = sum(len(source.load(d, s)) for d, splits in source.datasets.items() for s in splits if s in POOL_SPLITS)
    assert len(pool) + len(source.unlabelled_exclusions) == members
