"""Images, masks, tokens and tables that the figures are drawn from."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection

from tokencutseg.config import configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.codebook import codebook_table
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.models.tokencutseg import TokenCutSeg

N, S, K, H = 5, 32, 16, 4


@pytest.fixture(scope="session")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (N, 3, S, S), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(N, S, S, dtype=torch.uint8)
    masks[:, 8:24, 8:16] = 1  # an eighth of the image, and whole tokens
    return ImageSet("site", "test", [str(n) for n in range(N)], pixels, masks, None, [(S, S)] * N)


@pytest.fixture(scope="session")
def tokens():
    """Codes 0 to 13 are assigned; code 13 exactly to the lesion; 14 and 15 never."""
    drawn = torch.randint(13, (N, H, H), generator=torch.Generator().manual_seed(1))
    drawn[:, 1:3, 1:2] = 13
    return drawn


@pytest.fixture(scope="session")
def usage(images, tokens):
    return codebook_table(tokens, downsample_mask(images.masks, (H, H)), K)


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return TokenCutSeg(configure("tiny")).eval()


def scored(data):
    """A table of these columns with random scores, differences to the first row, and intervals of both."""
    table = pd.DataFrame(data)
    rng = np.random.default_rng(len(table))
    mean, diff = rng.uniform(0.4, 0.9, len(table)), rng.normal(0, 0.05, len(table))
    diff[0] = np.nan
    table = table.assign(diff=diff, diff_low=diff - 0.02, diff_high=diff + 0.03)
    return table.assign(mean=mean, low=mean - 0.03, high=mean + 0.02)


def shown(axes):
    """The array of each image on these axes, in their order."""
    return [np.asarray(image.get_array()) for axis in axes for image in axis.images]


def assert_drawn(axis, table, columns=("mean", "low", "high")):
    """`dot_interval` has drawn these values and intervals of the table, whose rows are in the order of the axis."""
    table = table[list(columns)].dropna()
    points = np.concatenate([part.get_offsets() for part in axis.collections if isinstance(part, PathCollection)])
    lines = [line for part in axis.collections if isinstance(part, LineCollection) for line in part.get_segments()]
    np.testing.assert_allclose(points[np.argsort(points[:, 1], kind="stable"), 0], table[columns[0]])
    if len(columns) > 1:
        ends = [line[:, 0] for line in sorted(lines, key=lambda line: line[0, 1])]
        np.testing.assert_allclose(ends, table[list(columns[1:])])


def rows(axis):
    return [label.get_text() for label in axis.get_yticklabels()]
