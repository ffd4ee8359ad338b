import itertools
import os

import imagehash
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokencutseg.data import audit
from tokencutseg.data.audit import COLUMNS, appearance, between, both_ways, overlaps
from tokencutseg.data.folders import find_datasets
from tokencutseg.data.image_set import ImageSet, load_split


def textures(n: int, S: int = 48, seed: int = 0) -> torch.Tensor:
    """Random pictures with structure at several scales: uint8 (n, 3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    layers = [F.interpolate(torch.rand(n, 3, k, k, generator=generator), size=S, mode="bicubic") for k in (3, 8, 20)]
    return (sum(layers) / 3).clamp(0, 1).mul(255).byte()


def image_set(dataset: str, split: str, images: torch.Tensor, ids: list[str] | None = None) -> ImageSet:
    ids = ids or [f"{dataset}_{split}_{i}" for i in range(len(images))]
    return ImageSet(dataset, split, ids, images, None, None, [tuple(images.shape[-2:])] * len(images))


def keyed(*sets: ImageSet) -> dict[tuple[str, str], ImageSet]:
    return {(s.dataset, s.split): s for s in sets}


def oriented(image: torch.Tensor, k: int) -> torch.Tensor:
    return torch.rot90(image.flip(-1) if k >= 4 else image, k % 4, (-2, -1))


def test_unrelated_images_do_not_overlap():
    found = overlaps(keyed(image_set("a", "train", textures(40)), image_set("b", "test", textures(40, seed=1))))
    assert found.empty and list(found.columns) == COLUMNS
    assert overlaps({}).empty


def test_each_kind_is_named_once_per_pair():
    a, b = textures(6), textures(6, seed=1)
    b[0], b[1], b[2] = a[0], a[1], oriented(a[2], 5)
    first = image_set("a", "train", a, ["ISIC_0000000", "x1", "x2", "ISIC_0000003", "x4", "x5"])
    second = image_set("b", "test", b, ["ISIC_0000000", "y1", "y2", "ISIC_0000003", "x4", "y5"])
    found = overlaps(keyed(first, second))
    assert found[["id_1", "id_2", "kind"]].values.tolist() == [
        ["ISIC_0000000", "ISIC_0000000", "same id"],
        ["x1", "y1", "same content"],
        ["x2", "y2", "near duplicate"],
        ["ISIC_0000003", "ISIC_0000003", "same id"],  # x4 is a name of a user's own, another one in each set
    ]
    assert set(found.dataset_1) == {"a"} and set(found.split_2) == {"test"}
    assert found.distance[:2].tolist() == [0, 0] and found.distance[2] <= 8
    assert np.isnan(found.distance[3])  # one id, two pictures


def test_the_symmetric_frame():
    a, b = textures(6), textures(6, seed=1)
    b[0], b[1], a[5] = a[0], a[1], a[1]
    pairs = overlaps(keyed(image_set("a", "train", a), image_set("b", "test", b)))
    both = both_ways(pairs)
    assert len(both) == 2 * len(pairs) and both_ways(both).equals(both)
    ids = ["id_1", "id_2"]
    assert {tuple(row) for row in both[ids].to_numpy()} == {tuple(row[::-1]) for row in both[ids].to_numpy()}
    expected = {("a_train_0", "b_test_0"), ("a_train_1", "b_test_1"), ("a_train_5", "b_test_1")}
    there, back = between(pairs, ("a", "train"), ("b", "test")), between(both, ("b", "test"), ("a", "train"))
    assert {tuple(row) for row in there[ids].to_numpy()} == expected
    assert {tuple(row[::-1]) for row in back[ids].to_numpy()} == expected
    assert between(pairs, ("a", "train"), ("a", "train"))[ids].to_numpy().tolist() == [["a_train_1", "a_train_5"]]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 7), S=st.sampled_from([32, 48, 64, 96]))
def test_turned_copies_are_found(seed, k, S):
    a, b = textures(4, S, seed), textures(4, S, seed + 1)
    b[3] = oriented(a[2], k)
    found = overlaps(keyed(image_set("a", "train", a), image_set("b", "test", b)))
    assert found[["id_1", "id_2"]].values.tolist() == [["a_train_2", "b_test_3"]]
    assert found.kind.tolist() == ["near duplicate" if k else "same content"]


EDITS = [
    lambda x: (x.float() * 0.6 + 60).byte(),  # paler
    lambda x: (255 * (x.float() / 255) ** torch.tensor([0.6, 1.0, 1.5]).view(3, 1, 1)).byte(),  # other colours
    lambda x: x.roll(1, -1),  # shifted by a pixel
    lambda x: (x.float() + 8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte(),
]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_found(edit):
    a, b = textures(20, 96), textures(20, 96, seed=1)
    b[7] = edit(a[3])
    found = overlaps(keyed(image_set("a", "train", a), image_set("b", "test", b)))
    assert found[["id_1", "id_2", "kind"]].values.tolist() == [["a_train_3", "b_test_7", "near duplicate"]]


def test_equals_brute_force_over_pairs_and_orientations():
    images = textures(24, 40)
    images[20], images[21], images[22] = oriented(images[0], 3), oriented(images[1], 6), images[2]
    limit = 112  # far above the default, so that unrelated pairs are on both sides of it

    def phash(image: torch.Tensor) -> imagehash.ImageHash:
        return imagehash.phash(Image.fromarray(audit._locally_normalised(image[None])[0]), hash_size=16)

    plain = [phash(image) for image in images]
    turned = [[phash(oriented(image, k)) for k in range(8)] for image in images]
    expected = {}
    for i, j in itertools.combinations(range(24), 2):
        distance = min(h - plain[j] for h in turned[i])
        expected[f"a_train_{i}", f"a_train_{j}"] = distance
    found = overlaps(keyed(image_set("a", "train", images)), max_distance=limit)
    distances = {(row.id_1, row.id_2): row.distance for row in found.itertuples()}
    assert 3 < len(distances) < len(expected)
    for pair, distance in expected.items():
        # turning before or after resizing may round one grey level differently, which can move a few bits
        assert distances.get(pair, limit) == pytest.approx(min(distance, limit), abs=6)
    assert distances["a_train_2", "a_train_22"] == 0


def test_comparison_in_blocks_finds_every_planted_pair():
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, (300, 8, 4), dtype=np.uint64)
    planted = {(0, 299): 0, (127, 128): 5, (130, 131): 60, (200, 290): 3}
    for (i, j), bits in planted.items():
        flipped = np.packbits(np.arange(256) < bits).view(np.uint64)
        hashes[j, 0] = hashes[i, generator.integers(8)] ^ flipped

    def close(limit):
        return {(i, j): d for i, j, d in audit._close_pairs(hashes, hashes[:, 0], limit, progress=False, below=True)}

    found = close(60)
    assert found == planted
    assert (130, 131) not in close(59)


def squeezed(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).round().byte()


FRAMES = [((96, 128), True), ((96, 144), True), ((128, 96), True), ((96, 110), True), ((96, 128), False)]


@pytest.mark.parametrize(("frame", "known"), [*FRAMES, ((96, 144), False)])
def test_central_squares_are_found(frame, known):
    """A photograph that was squashed to a square, and the square cut out of its middle; without the photograph's size
    the usual ones are tried on labelled images."""
    photographs, side, whole = squeezed(textures(6, 160), frame), min(frame), (96, 96)
    top, left = (frame[0] - side) // 2, (frame[1] - side) // 2
    squares = squeezed(photographs[:, :, top : top + side, left : left + side], whole)
    masks, sizes = torch.zeros(6, 96, 96, dtype=torch.uint8), [frame if known else whole] * 6
    labelled = ImageSet("a", "test", [f"a{i}" for i in range(6)], squeezed(photographs, whole), masks, None, sizes)
    mixed = torch.cat([textures(4, 96, seed=7), torch.rot90(squares[2:4], 1, (-2, -1))])
    found = overlaps(keyed(labelled, image_set("b", "unlabelled", mixed)))
    pairs = [["a2", "b_unlabelled_4"], ["a3", "b_unlabelled_5"]]
    assert found[["id_1", "id_2", "kind"]].values.tolist() == [[*pair, "near duplicate"] for pair in pairs]


def test_appearance_starts_with_the_image_as_it_is():
    images = textures(3)
    hashes = appearance(images)
    assert hashes.shape == (3, 8, 4) and hashes.dtype == np.uint64
    bits = imagehash.phash(Image.fromarray(audit._locally_normalised(images)[1]), hash_size=16).hash
    assert np.array_equal(np.unpackbits(hashes[1, 0].view(np.uint8)), bits.ravel())


@pytest.mark.skipif("TOKENCUTSEG_DATA" not in os.environ, reason="TOKENCUTSEG_DATA does not name a data folder")
def test_known_pairs_of_isic_2017_are_found():
    splits = find_datasets(os.environ["TOKENCUTSEG_DATA"]).datasets.get("isic2017", {})
    if not splits.keys() >= {"train", "validation", "test"}:
        pytest.skip("ISIC 2017 is not in TOKENCUTSEG_DATA")
    same = "0012152 0015979, 0012216 0016001, 0012175 0015982, 0012271 0016018, 0012221 0016002, 0012970 0012127"
    recoloured = "0000171 0015124, 0000174 0015071, 0000182 0015395, 0012222 0016003"
    identical, recoloured = ({frozenset(pair.split()) for pair in pairs.split(", ")} for pairs in (same, recoloured))
    wanted = {f"ISIC_{i}" for pair in identical | recoloured for i in pair}
    sets = {}
    for name in ("train", "validation", "test"):
        split = splits[name]
        # the pairs' images and every 20th other keep the test short; decoded through the split, never stored
        part = tuple(s for n, s in enumerate(split.samples) if s.id in wanted or n % 20 == 0)
        sets["isic2017", name] = load_split(type(split)(split.dataset, name, part, None), 96)
    found = overlaps(sets)

    def pairs(kind: str) -> set[frozenset[str]]:
        chosen = found[found.kind == kind]
        return {frozenset(pair) for pair in zip(chosen.id_1, chosen.id_2, strict=True)}

    assert pairs("same content") == {frozenset(f"ISIC_{i}" for i in pair) for pair in identical}
    assert pairs("near duplicate") >= {frozenset(f"ISIC_{i}" for i in pair) for pair in recoloured}
