"""Our scores against the tool that scores the ISIC challenges, on masks as `segment` writes them."""

import sys
import types

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tokencutseg.cli import main
from tokencutseg.data.images import read_mask
from tokencutseg.data.synthetic import generate
from tokencutseg.evaluation.per_image import score
from tokencutseg.evaluation.statistics import summarise

SIDES = ((96, 96), (128, 96), (80, 120), (96, 96))


@pytest.fixture
def official():
    """`SegmentationScore` of isic-challenge-scoring; what it opens archives and thins curves with is not needed."""
    for name in ("zipfile_deflate64", "rdp"):  # there are no wheels of them, and the lock leaves them out
        sys.modules.setdefault(name, types.ModuleType(name)).rdp = None
    return pytest.importorskip("isic_challenge_scoring.segmentation").SegmentationScore


def square(path):
    """A mask (1, S, S) with background added to its shorter side, which changes neither measure."""
    mask = read_mask(path)
    S = max(mask.shape)
    return np.pad(mask, [(0, S - side) for side in mask.shape])[None]


def test_scores_equal_those_of_the_official_tool(official, tmp_path):
    images, truth, out, predicted = (tmp_path / name for name in ("images", "truth", "out", "predicted"))
    for folder in (images, truth, predicted):
        folder.mkdir()
    pixels, masks = generate("site_a", 4, 96, seed=0)
    masks[3] = 0  # a photograph without lesion
    for i, side in enumerate(SIDES):
        photo = Image.fromarray(pixels[i].transpose(1, 2, 0)).resize(side)
        photo.save(images / f"ISIC_000000{i}.png")
        Image.fromarray(masks[i] * np.uint8(255)).resize(side, 0).save(truth / f"ISIC_000000{i}_segmentation.png")
    assert main(["segment", str(images), "--out", str(out)]) == 0
    for mask in out.glob("*_mask.png"):
        mask.rename(predicted / mask.name)
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(predicted / "ISIC_0000000_mask.png")  # a missed lesion
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(predicted / "ISIC_0000003_mask.png")  # rightly nothing

    records = pd.concat(
        score(square(mask), square(truth / f"{mask.stem[:12]}_segmentation.png"), [mask.stem], boundary=False)
        for mask in sorted(predicted.iterdir())
    )
    theirs = official.from_dir(truth, predicted).macro_average
    for name, reduction, measure in (
        ("jaccard", "per_image", "iou"),
        ("threshold_jaccard", "per_image_thr65", "iou"),
        ("dice", "per_image", "dice"),
    ):
        assert summarise(records, reduction, measure, draws=1).mean == pytest.approx(theirs[name], abs=1e-6), name
    assert 0 < theirs["jaccard"] < 1
