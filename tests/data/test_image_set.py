"""Image sets and their cache, against direct reading of the same files."""

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokencutseg.data.datasets import Sample, Split
from tokencutseg.data.image_set import ImageSet, cached_arrays, default_cache, load_split
from tokencutseg.data.images import DataError, read_image, read_mask


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCUTSEG_CACHE", str(tmp_path / "cache"))


def make_split(folder, n=5, expected=None, labelled=True, size=(20, 30)):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    samples = []
    for i in range(n):
        image, mask = folder / f"{i}.png", folder / f"{i}_mask.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 2, size).astype(bool)).save(mask)
        samples.append(Sample(f"id{i}", image, mask if labelled else None))
    return Split("clinic", "train", tuple(samples), expected)


def image_set(n=4, size=8, labelled=True, expected=None, name="a", seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 2, (n, size, size), generator=generator, dtype=torch.uint8) if labelled else None
    return ImageSet(
        name, "train", [f"{name}{i}" for i in range(n)], images, masks, expected, [(i, 1) for i in range(n)]
    )


def test_empty_masks_are_told_and_nothing_is_learnt_from_them(tmp_path):
    split = make_split(tmp_path / "clinic")
    for sample in split.samples:
        Image.new("L", (30, 20)).save(sample.mask)
    images = load_split(replace(split, name="test"), 8)
    assert not images.masks.any() and images.notes == ["clinic/test: 5 of 5 masks are empty"]
    with pytest.raises(DataError, match=r"all 5 masks of clinic/train are empty"):
        load_split(split, 8)


def test_a_loaded_split_holds_what_its_files_hold(tmp_path):
    split = make_split(tmp_path / "files")
    loaded = load_split(split, 16)
    assert loaded.images.dtype == loaded.masks.dtype == torch.uint8
    assert loaded.images.shape == (5, 3, 16, 16) and loaded.masks.shape == (5, 16, 16)
    assert (loaded.dataset, loaded.split, loaded.native_sizes) == ("clinic", "train", [(20, 30)] * 5)
    for i, sample in enumerate(split.samples):
        assert loaded.ids[i] == sample.id
        np.testing.assert_array_equal(loaded.images[i].permute(1, 2, 0), read_image(sample.image, 16))
        np.testing.assert_array_equal(loaded.masks[i], read_mask(sample.mask, 16))
    assert load_split(make_split(tmp_path / "more", labelled=False), 16).masks is None


def test_a_second_load_decodes_nothing_and_is_equal(tmp_path, monkeypatch):
    split = make_split(tmp_path / "files")
    first = load_split(split, 16)
    monkeypatch.setattr("tokencutseg.data.image_set.read_image", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns about read-only memory
        second = load_split(split, 16)
    assert second.fingerprint == first.fingerprint and second.native_sizes == first.native_sizes
    second.images.zero_()  # which leaves the cache alone
    assert load_split(split, 16).fingerprint == first.fingerprint


def test_a_changed_file_or_size_is_decoded_again(tmp_path):
    split = make_split(tmp_path / "files")
    old = load_split(split, 16).fingerprint
    path = split.samples[2].image
    Image.fromarray(255 - read_image(path)).save(path)
    os.utime(path, ns=(1, 1))
    new = load_split(split, 16)
    assert new.fingerprint != old
    np.testing.assert_array_equal(new.images[2].permute(1, 2, 0), read_image(path, 16))
    assert load_split(split, 24).images.shape[-1] == 24


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:200]), Path.unlink])
def test_a_damaged_cache_entry_is_built_again(tmp_path, damage):
    split = make_split(tmp_path / "files")
    fingerprint = load_split(split, 16).fingerprint
    damage(next((tmp_path / "cache").glob("*/images.npy")))
    with pytest.warns(UserWarning, match="damaged"):
        assert load_split(split, 16).fingerprint == fingerprint
    assert load_split(split, 16).fingerprint == fingerprint  # and without a warning now


def test_a_cache_that_cannot_be_written_falls_back_to_memory(tmp_path, monkeypatch):
    split = make_split(tmp_path / "files")
    expected = load_split(split, 16).fingerprint
    (tmp_path / "file").touch()  # a file where the folder should be: not writable for root either
    monkeypatch.setenv("TOKENCUTSEG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="TOKENCUTSEG_CACHE"):
        assert load_split(split, 16).fingerprint == expected


def test_several_builders_of_one_entry_agree(tmp_path):
    """All of them are inside `build` before any may store, the worst case of a race."""
    barrier = threading.Barrier(4)

    def build():
        barrier.wait(timeout=10)
        return {"x": np.arange(1000)}

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("error")
        for arrays in pool.map(lambda _: cached_arrays("key", build), range(4)):
            np.testing.assert_array_equal(arrays["x"], np.arange(1000))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]  # nothing half-built is left behind


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    load_split(make_split(tmp_path / "files"), 16)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.delenv("TOKENCUTSEG_CACHE")
    assert default_cache().name == "tokencutseg"


def test_a_mask_of_another_size_is_an_error_with_both_sizes(tmp_path):
    split = make_split(tmp_path / "files", size=(20, 30))
    Image.fromarray(np.zeros((20, 31), bool)).save(split.samples[3].mask)
    with pytest.raises(DataError, match=r"3_mask\.png is 31×20 pixels, but its image \S*3\.png is 30×20"):
        load_split(split, 16)
    assert not (tmp_path / "cache").exists()


def test_the_fingerprint_sees_every_part():
    reference = image_set()
    assert image_set().fingerprint == reference.fingerprint
    changed = [image_set(seed=1), image_set(name="b"), image_set(labelled=False), image_set(n=3), image_set()]
    changed[-1].masks[-1, -1, -1] ^= 1
    assert len({s.fingerprint for s in [reference, *changed]}) == 6


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_subset_holds_the_chosen_images(data):
    whole = image_set(n=6, expected=6)
    indices = data.draw(st.lists(st.integers(0, 5), max_size=6))
    part = whole.subset(indices)
    assert part.ids == [whole.ids[i] for i in indices] and len(part) == len(indices)
    assert torch.equal(part.images, whole.images[indices]) and torch.equal(part.masks, whole.masks[indices])
    assert part.native_sizes == [whole.native_sizes[i] for i in indices]
    assert part.complete


def test_completeness_is_inherited():
    partial = image_set(n=4, expected=9)
    assert not partial.complete and not partial.subset([0, 1]).complete
    assert image_set(n=4, expected=4).complete and image_set(n=4).complete


def test_what_a_manifest_says_stays_with_its_images(tmp_path):
    split = make_split(tmp_path / "files")
    known = [{"native_size": (300, 400), "cluster": "P1"}, {}, {"cluster": "P2"}, {}, {"native_size": (7, 9)}]
    samples = tuple(replace(sample, **one) for sample, one in zip(split.samples, known, strict=True))
    plain = load_split(split, 16)
    loaded = load_split(replace(split, samples=samples), 16)
    assert loaded.native_sizes == [(300, 400), (20, 30), (20, 30), (20, 30), (7, 9)]
    assert loaded.clusters == ["P1", None, "P2", None, None] and plain.clusters is None
    assert loaded.fingerprint == plain.fingerprint, "nothing is trained anew"
    assert loaded.subset([2, 0]).clusters == ["P2", "P1"]
