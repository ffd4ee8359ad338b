import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage
from scipy.spatial import distance
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import NSD_TOLERANCE, contrast, native_scores, score


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
    files = files and [(file, 127) for file in files]
    return ImageSet("x", "test", [f"{i}" for i in range(len(masks))], pixels, masks, None, [native] * len(masks), files)


def written(folder, targets):
    """Masks as PNG files."""
    files = [folder / f"{i}.png" for i in range(len(targets))]
    for file, target in zip(files, targets, strict=True):
        Image.fromarray(target.astype(np.uint8) * 255).save(file)
    return files


def masks():
    return st.integers(1, 14).flatmap(lambda S: hnp.arrays(np.uint8, (2, S, S), elements=st.integers(0, 1)))


@settings(deadline=None, max_examples=60)
@given(masks())
def test_boundary_scores_equal_brute_force(pair):
    prediction, target = pair
    row = score(prediction[None], target[None], ["a"]).iloc[0]
    if not prediction.any() or not target.any():
        agree = prediction.any() == target.any()
        expected = (1.0, 0.0) if agree else (0.0, math.sqrt(2) * len(target))
    else:
        expected = brute_force_boundary_scores(prediction, target)
    assert (row.nsd, row.hd95) == pytest.approx(expected)


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


@pytest.mark.parametrize(("height", "width"), [(24, 32), (9, 40), (16, 16), (5, 5)])
def test_native_scores_are_those_of_the_stretched_prediction_against_the_file(tmp_path, height, width):
    """Against Pillow-read files, torch's own stretching of probabilities, torchmetrics and brute-force boundaries."""
    rng, S, n = np.random.default_rng(height), 16, 4
    smooth = ndimage.gaussian_filter(rng.random((n, S, S)), (0, 2, 2))
    probability = (smooth - smooth.min()) / np.ptp(smooth)
    targets = ndimage.gaussian_filter(rng.random((n, height, width)), (0, 3, 3)) > 0.5
    targets[1] = False
    p = torch.from_numpy(probability).float()
    images = image_set(np.zeros((n, S, S)), (height, width), written(tmp_path, targets))
    rows = native_scores(2 * p - 1, images)
    for row, one, target in zip(rows.itertuples(), p, targets, strict=True):
        both = torch.stack([1 - one, one])[None]
        prediction = F.interpolate(both, (height, width), mode="bilinear", align_corners=False).argmax(1)[0]
        assert (row.height, row.width) == (height, width)
        assert row.tp_native + row.fp_native + row.fn_native + row.tn_native == height * width
        assert row.tp_native + row.fn_native == target.sum()
        assert row.tp_native + row.fp_native == prediction.sum()
        if target.any():
            theirs = binary_jaccard_index(prediction, torch.from_numpy(target).long()).item()
            assert row.iou_native == pytest.approx(theirs, abs=1e-6)
            edges = [np.argwhere(m & ~ndimage.binary_erosion(m)) for m in (prediction.bool().numpy(), target)]
            far = distance.cdist(*edges)
            near = np.concatenate([far.min(1), far.min(0)]) <= NSD_TOLERANCE * math.hypot(height, width)
            assert row.nsd_native == pytest.approx(near.mean())
            assert row.hd95_native == pytest.approx(max(np.percentile(far.min(i), 95) for i in (0, 1)))
        else:
            assert (row.iou_native, row.hd95_native) == (0, math.hypot(height, width))


def test_native_scores_of_masks_without_files_are_those_at_their_size():
    prediction, target = np.random.default_rng(0).random((2, 5, 12, 12)) < 0.4
    images = image_set(target, (12, 12))
    rows = native_scores(torch.from_numpy(prediction).float() * 2 - 1, images)
    plain = score(prediction, target, images.ids)
    for name in ("tp", "fp", "fn", "tn", "iou", "dice", "nsd", "hd95"):
        assert rows[f"{name}_native"].tolist() == plain[name].tolist()


@pytest.mark.parametrize(("native", "shape"), [((767, 1022), (24, 32)), ((600, 400), (36, 24)), ((50, 50), (24, 24))])
def test_a_squashed_mask_is_scored_in_the_shape_of_its_photograph(tmp_path, native, shape):
    """torch stretches mask and prediction, plain loops measure the distances."""
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.random((24, 24)), 3) > 0.5
    margin = torch.from_numpy(ndimage.gaussian_filter(rng.random((24, 24)), 3) - 0.5).float()
    images = image_set(np.zeros((1, 24, 24)), native, written(tmp_path, target[None]))
    row = native_scores(margin[None], images).iloc[0]
    assert (row.height, row.width) == shape
    stretched = F.interpolate(torch.from_numpy(target)[None, None].float(), shape, mode="nearest")[0, 0].numpy() > 0
    prediction = F.interpolate(margin[None, None], shape, mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    assert (row.tp_native, row.fp_native, row.fn_native) == (
        (prediction & stretched).sum(),
        (prediction & ~stretched).sum(),
        (~prediction & stretched).sum(),
    )
    assert (row.nsd_native, row.hd95_native) == pytest.approx(brute_force_boundary_scores(prediction, stretched))


def test_contrast_is_the_distance_of_means_over_the_spread():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 6), dtype=np.uint8)
    masks_ = np.zeros((3, 6, 6), np.uint8)
    masks_[:2, 1:4, 2:5] = 1
    images = ImageSet("x", "test", list("abc"), torch.from_numpy(pixels), torch.from_numpy(masks_), None, [(6, 6)] * 3)
    found = contrast(images)
    assert np.isnan(found[2]), "no lesion, no contrast"
    for image, mask, value in zip(pixels[:2] / 255, masks_[:2].astype(bool), found[:2], strict=True):
        lesion, skin = image[:, mask], image[:, ~mask]
        spread = np.concatenate([part - part.mean(1, keepdims=True) for part in (lesion, skin)], 1)
        expected = np.linalg.norm(lesion.mean(1) - skin.mean(1)) / np.sqrt((spread**2).mean(1).sum())
        assert value == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(masks())
def test_overlap_equals_torchmetrics_and_counts_add_up(pair):
    prediction, target = torch.from_numpy(pair)
    row = score(prediction[None], target[None], ["a"]).iloc[0]
    assert row.tp + row.fp + row.fn + row.tn == target.numel()
    assert row.lesion_fraction == pytest.approx(target.float().mean().item())
    if prediction.any() or target.any():
        assert row.iou == pytest.approx(binary_jaccard_index(prediction, target).item(), abs=1e-6)
        assert row.dice == pytest.approx(binary_f1_score(prediction, target).item(), abs=1e-6)


def test_empty_masks():
    empty, lesion = np.zeros((8, 8), dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8)
    lesion[2:5, 2:5] = 1
    records = score(np.stack([empty, empty, lesion]), np.stack([empty, lesion, empty]), ["both", "missed", "invented"])
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


@pytest.mark.parametrize(
    ("prediction", "target", "ids", "said"),
    [
        (np.zeros((1, 4, 4)), np.zeros((1, 5, 5)), ["a"], "same size"),
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), ["a", "b"], "2 ids"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), ["a", "a"], "'a' occurs twice"),
        (np.full((1, 4, 4), 0.4), np.zeros((1, 4, 4)), ["a"], "predictions must hold 0"),
        (np.zeros((1, 4, 4)), np.full((1, 4, 4), 255), ["a"], "targets must hold 0"),
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)), ["a"], "(N, S, S)"),
    ],
)
def test_bad_input_is_named(prediction, target, ids, said):
    with pytest.raises(ValueError) as error:
        score(prediction, target, ids)
    assert said in str(error.value)
