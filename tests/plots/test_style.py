"""Colours are told apart by everybody, and outlines follow masks."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from skimage.color import deltaE_cie76, xyz2lab
from skimage.color.colorconv import xyz_from_rgb

from tokencutseg.config import configure
from tokencutseg.evaluation.statistics import REDUCTIONS
from tokencutseg.plots import style

BLINDNESS = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "none": np.eye(3).ravel(),
    "protanopia": [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998],
    "deuteranopia": [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.011820, 0.042940, 0.968881],
    "tritanopia": [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.303900],
}
METHODS = {name: look.colour for name, look in style.METHODS.items()}


def linear(colour):
    rgb = np.array(mpl.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def distance(one, two, blindness):
    """CIE 1976 distance as somebody with this blindness sees two colours; about 2 is just noticeable."""
    seen = [(np.reshape(BLINDNESS[blindness], (3, 3)) @ linear(colour)).clip(0, 1) for colour in (one, two)]
    return deltaE_cie76(*(xyz2lab(xyz_from_rgb @ colour) for colour in seen))


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize(
    ("colours", "least"),
    [
        ([METHODS[name] for name in ("tokencutseg", "unet", "otsu", "released", "described", "revised")], 16),
        (METHODS.values(), 10),
        ([style.BLUE, style.SKY, style.GREY], 16),
        ([look.colour for look in style.REDUCTIONS.values()], 16),
        ([style.REFERENCE, style.PREDICTED], 40),
    ],
    ids=["main methods", "methods", "beside ours", "reductions", "outlines"],
)
def test_colours_are_told_apart(blindness, colours, least):
    assert min(distance(a, b, blindness) for a, b in itertools.combinations(colours, 2)) >= least


def test_colours_stand_out_from_the_paper():
    colours = *METHODS.values(), style.GREY, *(look.colour for look in style.REDUCTIONS.values())
    for colour in colours:
        assert 1.05 / (xyz_from_rgb[1] @ linear(colour) + 0.05) > 2, colour


def test_every_method_and_reduction_has_its_own_look():
    looks = style.looks([*style.METHODS, *configure("small").ablation.baselines, "mine", "yours"])
    assert {"mine", "yours"} == looks.keys() - style.METHODS.keys()
    for part in range(3):
        assert len({look[part] for look in looks.values()}) == len(looks)
    assert style.REDUCTIONS.keys() == REDUCTIONS.keys()
    assert set(style.TERMS).isdisjoint(METHODS.values())


def test_the_outline_of_an_empty_or_full_mask_is_nothing():
    axis = style.make_figure()[1][0, 0]
    for mask in (torch.zeros(4, 4), torch.ones(4, 4)):
        style.outline(axis, mask, style.REFERENCE)
    assert not axis.collections
    mask = torch.zeros(8, 8)
    mask[2:5, 3:6] = 1
    style.outline(axis, mask, style.REFERENCE)
    x, y = axis.collections[0].get_paths()[0].vertices.T
    assert (x.min(), x.max(), y.min(), y.max()) == (2.5, 5.5, 1.5, 4.5)
