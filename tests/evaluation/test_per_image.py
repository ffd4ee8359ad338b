import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import (
    NSD_TOLERANCE,
    contrast,
    native_scores,
    score,
    with_derived,
    without_derived,
)


def brute_force_boundary_scores(prediction, target):
    """NSD and HD95 from the definition: every boundary pixel against every other, in plain loops."""

    def boundary(mask):
        inside = {(y, x) for y, x in np.ndindex(mask.shape) if mask[y, x]}
        return [(y, x) for y, x in sorted(inside) if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= inside]

    a, b = boundary(prediction), boundary(target)
    forth = [min(math.dist(p, q) for q in b) for p in a]
    back = [min(math.dist(p, q) for q in a) for p in b]
    tolerance = NSD_TOLERANCE * math.hypot(*target.shape)
    nsd = sum(d <= tolerance for d in forth + back) / len(forth + back)
    return nsd, max(np.percentile(forth, 95), np.percentile(back, 95))


def image_set(masks, native, files=None):
    masks = torch.as_tensor(masks, dtype=torch.uint8)
    pixels = torch.zeros(len(masks), 3, *masks.shape[1:], dtype=torch.uint8)
    ids = [f"{i}" for i in range(len(masks))]
    return ImageSet("x", "test", ids, pixels, masks, None, [native] * len(masks), files)


masks = st.integers(1, 14).flatmap(lambda S: hnp.arrays(np.uint8, (2, S, S), elements=st.integers(0, 1)))


@settings(max_examples=80)
@given(masks)
def test_scores_equal_torchmetrics_and_brute_force(pair):
    prediction, target = pair
    row = score(prediction[None], target[None], ["a"]).iloc[0]
    assert row.tp + row.fp + row.fn + row.tn == target.size
    assert row.lesion_fraction == pytest.approx(target.mean())
    if prediction.any() or target.any():
        both = torch.from_numpy(pair)
        assert row.iou == pytest.approx(binary_jaccard_index(*both).item(), abs=1e-6)
        assert row.dice == pytest.approx(binary_f1_score(*both).item(), abs=1e-6)
    if prediction.any() and target.any():
        assert (row.nsd, row.hd95) == pytest.approx(brute_force_boundary_scores(prediction, target))


@pytest.mark.parametrize("S", [33, 96])
def test_boundary_scores_equal_monais(S):
    from monai import metrics as monai  # slow to import

    blobs = ndimage.gaussian_filter(np.random.default_rng(S).normal(size=(2, 12, S, S)), (0, 0, 4, 4)) > 0.01
    rows = score(*blobs, [f"{i}" for i in range(12)])
    pair = [torch.from_numpy(masks[:, None]).float() for masks in blobs]
    nsd = monai.compute_surface_dice(*pair, [NSD_TOLERANCE * math.hypot(S, S)], include_background=True)
    hd95 = monai.compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    np.testing.assert_allclose(rows["nsd"], nsd[:, 0], atol=1e-6)
    np.testing.assert_allclose(rows["hd95"], hd95[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "native", "shape"),
    [((H, W), (H, W), (H, W)) for H, W in ((24, 32), (9, 40), (16, 16), (5, 5))]
    + [((24, 24), (767, 1022), (24, 32)), ((24, 24), (600, 400), (36, 24)), ((24, 24), (50, 50), (24, 24))],
)
def test_native_scores_are_those_of_stretched_masks(tmp_path, stored, native, shape):
    """Files written by Pillow; torch stretches probabilities and masks, torchmetrics and plain loops score them."""
    rng, n = np.random.default_rng(stored[0]), 4
    smooth = ndimage.gaussian_filter(rng.random((n, 16, 16)), (0, 2, 2))
    p = torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()
    targets = ndimage.gaussian_filter(rng.random((n, *stored)), (0, 3, 3)) > 0.5
    targets[1] = False
    files = [(tmp_path / f"{i}.png", 127) for i in range(n)]
    for (file, _), target in zip(files, targets, strict=True):
        Image.fromarray(target.astype(np.uint8) * 255).save(file)
    rows = native_scores(2 * p - 1, image_set(np.zeros((n, 16, 16)), native, files))
    stretched = F.interpolate(torch.from_numpy(targets)[:, None].float(), shape)[:, 0].bool()
    both = F.interpolate(torch.stack([1 - p, p], 1), shape, mode="bilinear", align_corners=False)
    for row, prediction, target in zip(rows.itertuples(), both.argmax(1).bool(), stretched, strict=True):
        assert (row.height, row.width) == shape
        cells = (prediction & target, prediction & ~target, ~prediction & target, ~prediction & ~target)
        counts = (row.tp_native, row.fp_native, row.fn_native, row.tn_native)
        assert counts == tuple(int(cell.sum()) for cell in cells)
        if target.any():
            assert row.iou_native == pytest.approx(binary_jaccard_index(prediction, target).item(), abs=1e-6)
            expected = brute_force_boundary_scores(prediction.numpy(), target.numpy())
            assert (row.nsd_native, row.hd95_native) == pytest.approx(expected)
        else:
            assert (row.iou_native, row.hd95_native) == (0, math.hypot(*shape))


def test_native_scores_of_masks_without_files_are_those_at_their_size():
    prediction, target = np.random.default_rng(0).random((2, 5, 12, 12)) < 0.4
    images = image_set(target, (12, 12))
    rows = native_scores(torch.from_numpy(prediction).float() * 2 - 1, images)
    plain = score(prediction, target, images.ids)
    for name in ("tp", "fp", "fn", "tn", "iou", "dice", "nsd", "hd95"):
        assert rows[f"{name}_native"].tolist() == plain[name].tolist()


@pytest.mark.parametrize("sizes", [[(16, 16)] * 6, [(24, 32)] * 6, [(16, 16), (24, 32), (5, 5)] * 2])
def test_what_is_left_out_of_records_comes_back(tmp_path, sizes):
    rng, files = np.random.default_rng(1), []
    margins = torch.rand(6, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    small = rng.random((6, 16, 16)) < 0.4
    small[3] = False
    margins[2:4] = -1  # nothing predicted, once with nothing to be found
    for i, size in enumerate(sizes):
        large = small[i] if size == (16, 16) else rng.random(size) < 0.4
        Image.fromarray(large.astype(np.uint8) * 255).save(tmp_path / f"{i}.png")
        files.append((tmp_path / f"{i}.png", 127))
    images = image_set(small, (1, 1), files)
    images.native_sizes = sizes
    records = score(margins > 0, small, images.ids).join(native_scores(margins, images))
    records = records.assign(contrast=[math.nan, *range(5)], cluster=["a", None] * 3)
    without_derived(records).to_csv(tmp_path / "kept.csv", index=False)
    kept = pd.read_csv(tmp_path / "kept.csv", dtype={"id": str})
    assert not {"iou", "dice_native", "empty_mask"} & set(kept)
    assert kept["tp_native"].isna().tolist() == [size == (16, 16) for size in sizes]
    pd.testing.assert_frame_equal(with_derived(kept)[list(records)], records, rtol=1e-12, check_dtype=False)


def test_contrast_is_the_distance_of_means_over_the_spread():
    pixels, masks = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 6), dtype=np.uint8), np.zeros((3, 6, 6), bool)
    masks[:2, 1:4, 2:5] = True
    images = image_set(masks, (6, 6))
    images.images = torch.from_numpy(pixels)
    found = contrast(images)
    assert np.isnan(found[2]), "no lesion, no contrast"
    for image, mask, value in zip(pixels[:2] / 255, masks[:2], found[:2], strict=True):
        lesion, skin = image[:, mask], image[:, ~mask]
        spread = np.concatenate([part - part.mean(1, keepdims=True) for part in (lesion, skin)], 1)
        expected = np.linalg.norm(lesion.mean(1) - skin.mean(1)) / np.sqrt((spread**2).mean(1).sum())
        assert value == pytest.approx(expected, rel=1e-5)


def test_empty_masks():
    masks = np.zeros((3, 2, 8, 8), dtype=np.uint8)  # prediction and target of three images
    masks[1, 1, 2:5, 2:5] = masks[2, 0, 2:5, 2:5] = 1
    records = score(masks[:, 0], masks[:, 1], ["both", "missed", "invented"])
    assert records.empty_prediction.tolist() == [True, True, False]
    assert records.empty_mask.tolist() == [True, False, True]
    expected = {"iou": [1, 0, 0], "dice": [1, 0, 0], "nsd": [1, 0, 0], "hd95": [0, 128**0.5, 128**0.5]}
    for column, values in expected.items():
        assert records[column].tolist() == pytest.approx(values)


def test_labels_lead_and_boundary_is_optional():
    values = torch.eye(4, dtype=torch.int64)[None].repeat(2, 1, 1)
    records = score(values, values.bool(), ["a", "b"], boundary=False, method="otsu", lesion=["l1", "l2"])
    assert records.columns[:3].tolist() == ["method", "lesion", "id"] and "nsd" not in records
    assert records.lesion.tolist() == ["l1", "l2"]


EMPTY = np.zeros((1, 4, 4))


@pytest.mark.parametrize(
    ("prediction", "target", "ids", "said"),
    [
        (EMPTY, np.zeros((1, 5, 5)), "a", "same size"),
        (EMPTY, EMPTY, "ab", "2 ids"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), "aa", "'a' occurs twice"),
        (EMPTY + 0.4, EMPTY, "a", "predictions must hold 0"),
        (EMPTY, EMPTY + 255, "a", "targets must hold 0"),
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)), "a", r"\(N, S, S\)"),
    ],
)
def test_bad_input_is_named(prediction, target, ids, said):
    with pytest.raises(ValueError, match=said):
        score(prediction, target, list(ids))
