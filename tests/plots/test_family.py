"""The rules that make all figures one family, checked on the figures as drawn, at the sizes of the largest study.

A figure's text is what the renderer really draws, with the boxes that it gives it.
"""

import itertools
import re
from functools import partial

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.legend import Legend
from matplotlib.text import Text

from tokencutseg.config import RECIPES, configure
from tokencutseg.data.audit import COLUMNS
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.codebook import codebook_table
from tokencutseg.evaluation.inference import downsample_mask
from tokencutseg.evaluation.statistics import REDUCTIONS
from tokencutseg.experiments.study import Study
from tokencutseg.models.tokencutseg import Segmentation, TokenCutSeg
from tokencutseg.models.vqgan import VQGAN
from tokencutseg.plots import ablations, evaluation, segmentation, style, tokenizer, transformer
from tokencutseg.report.outputs import OUTPUTS

SMALL = configure("small")
SETS = ("isic2016", "isic2017", "ham10000")
METHODS = ["tokencutseg", *SMALL.ablation.baselines]
RNG = np.random.default_rng(0)
S, K, GRID = 32, 256, (8, 8)


# ---- the figures -----------------------------------------------------------------------------------------------------


def spread(n, low=0.3, high=0.9, width=0.03):
    mean = RNG.uniform(low, high, n)
    return {"mean": mean, "low": mean - width, "high": mean + width}


def grid_table(column, values, **more):
    return pd.DataFrame({column: values, **spread(len(values)), **more})


def codebook_sizes():
    psnr = RNG.uniform(20, 26, 4)
    return ladder(
        "codebook_size",
        list(SMALL.ablation.codebook_sizes),
        usage=RNG.uniform(0.3, 1, 4),
        psnr=psnr,
        perplexity=[50.0, 130.0, 190.0, 300.0],
        psnr_low=psnr - 0.4,
        psnr_high=psnr + 0.4,
    )


def ladder(column, names, **more):
    change = RNG.uniform(-0.03, 0.06, len(names))
    change[0] = np.nan
    return grid_table(column, names, change=change, change_low=change - 0.02, change_high=change + 0.02, **more)


def stage_table():
    return ladder(
        "stages",
        [
            "tokenizer",
            "+ transformer",
            "+ masked pretraining",
            "+ graph module",
            "+ fine-tuned encoder",
            "+ self-training",
        ],
    )


def steps_table():
    steps = list(SMALL.ablation.steps)
    return ladder(
        "step",
        ["described", *steps, "revised"],
        kept=[i % 3 != 1 for i in range(len(steps) + 2)],
        also=[
            ["", "masked_gpt.learning_rate = 0.002, masked_gpt.batch_size = 32"][i % 4 == 1]
            for i in range(len(steps) + 2)
        ],
        setting=[None, *(RECIPES["described"][name] for name in steps), None],
        instead=[None, *(RECIPES["revised"][name] for name in steps), None],
    )


def feature_table():
    names = [
        "colour",
        "untrained CNN",
        "tokenizer",
        *(f"transformer block {i}" for i in range(1, 12)),
        "transformer",
        "supervised U-Net",
    ]
    parts = [grid_table("features", names, head=head) for head in ("linear probe", "graph")]
    return pd.concat(parts, ignore_index=True).rename(columns={"mean": "iou", "low": "iou_low", "high": "iou_high"})


def label_table():
    fractions = list(SMALL.ablation.label_fractions)
    return pd.concat(
        [
            grid_table(
                "fraction",
                fractions,
                method=method,
                labels=[int(2000 * f) for f in fractions],
                seeds=3,
                seed_low=0.5,
                seed_high=0.6,
            )
            for method in ("tokencutseg", "released", "unet", "unet_plain")
        ],
        ignore_index=True,
    )


def deviation_table():
    parts = []
    for recipe, other in (("released", "revised"), ("revised", "released")):
        switches = list(SMALL.ablation.deviations)
        part = grid_table(
            "switch",
            switches,
            recipe=recipe,
            seeds=3,
            setting=[RECIPES[recipe].get(name) for name in switches],
            instead=[RECIPES[other].get(name) for name in switches],
        )
        difference = RNG.normal(0, 0.05, len(switches))
        parts.append(part.assign(difference=difference, low=difference - 0.04, high=difference + 0.04))
    return pd.concat(parts, ignore_index=True)


def cost_table():
    methods = [name for name in METHODS if name != "otsu"]
    return pd.DataFrame(
        {
            "method": methods,
            "parameters": RNG.uniform(1e6, 8e7, len(methods)),
            "flops": RNG.uniform(1e8, 9e9, len(methods)),
            "latency_seconds": RNG.uniform(0.01, 0.3, len(methods)),
            "peak_memory_bytes": RNG.uniform(1e6, 9e8, len(methods)),
        }
    )


def score_table(methods, by):
    rows = [
        dict(zip(by, key, strict=True)) | {"method": method, "reduction": reduction, "measure": measure}
        for key in itertools.product(*by.values())
        for method in methods
        for reduction in REDUCTIONS
        for measure in ("iou", "dice")
    ]
    return pd.DataFrame(rows).assign(**spread(len(rows)))


def baseline_table():
    return score_table(METHODS, {}).assign(
        weights=lambda table: table["method"].map(
            lambda name: {"otsu": "none", "tokencutseg": "self-supervised"}.get(name, "imagenet")
        )
    )


PAIRS = [
    ("isic2016", "isic2016"),
    ("isic2017", "isic2017"),
    ("isic2016", "isic2017"),
    ("isic2017", "isic2016"),
    ("isic2017", "ham10000"),
]


def cross_table():
    table = score_table(["tokencutseg"], {"pair": PAIRS})
    table["train"], table["test"] = zip(*table.pop("pair"), strict=True)
    return table.assign(change=-0.1, published=np.where(table["reduction"] == "micro_two_class", 0.8, np.nan))


def records(pairs=PAIRS, n=80):
    parts = [
        pd.DataFrame(
            {
                "train": train,
                "test": test,
                "method": method,
                "iou": RNG.beta(5, 2, n),
                "lesion_fraction": RNG.uniform(0.002, 0.9, n),
            }
        )
        for train, test in pairs
        for method in ("tokencutseg", *SMALL.evaluation.rivals)
    ]
    return pd.concat(parts, ignore_index=True)


def home_records():
    table = records(PAIRS[:1])
    return table.assign(tp=1, fp=1, fn=1, tn=1, dice=table["iou"], id=range(len(table)))


def group_table():
    groups = [("lesion size", name) for name in ("small", "medium", "large")]
    groups += [("contrast", name) for name in ("low", "medium", "high")]
    rows = [
        {"train": "isic2017", "test": "isic2017", "method": method, "grouping": grouping, "group": group, "n": 1000}
        for grouping, group in groups
        for method in ("tokencutseg", *SMALL.evaluation.rivals)
    ]
    rows += [
        row | {"test": name, "grouping": "site", "group": name}
        for name in SETS
        for row in rows
        if row["group"] == "small"
    ]
    return pd.DataFrame(rows).assign(**spread(len(rows)))


def tokenizer_history():
    names = ["reconstruction", "perceptual", "commitment", "discriminator"]
    columns = [f"train_{name}" for name in names] + ["validation_l1", "validation_usage"]
    return pd.DataFrame(RNG.uniform(0.1, 0.9, (8, 6)), columns=columns).assign(
        epoch=range(1, 9), validation_perplexity=RNG.uniform(10, 200, 8)
    )


def gpt_tables():
    history = pd.DataFrame(
        {
            "epoch": range(1, 9),
            "train_loss": RNG.uniform(2, 5, 8),
            "validation_loss": 3.0,
            "train_accuracy": 0.2,
            "validation_accuracy": 0.1,
        }
    )
    prediction = pd.DataFrame(
        [
            {"pattern": pattern, "mask_ratio": ratio, "accuracy": 0.2, "low": 0.18, "high": 0.21, "chance": 0.1}
            for pattern in transformer.PATTERNS
            for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)
        ]
    )
    return history, prediction


def probe_table():
    names = ["colour", "tokenizer", "code", "embedding", *(f"block {i}" for i in range(1, 12)), "output"]
    return grid_table("features", names).rename(columns={"mean": "balanced_accuracy"})


def segmentation_history():
    columns = [
        "train_cross_entropy",
        "train_deepcut",
        "train_dice",
        "train_masked_tokens",
        "train_self_training",
        "validation_cross_entropy",
        "validation_per_image_iou",
        "validation_micro_two_class_iou",
    ]
    parts = [
        pd.DataFrame(RNG.uniform(0, 1, (16, len(columns))), columns=columns).assign(
            train=name, epoch=range(1, 17), chosen_by="validation_per_image_iou"
        )
        for name in SETS[:2]
    ]
    return pd.concat(parts, ignore_index=True)


def blobs(n):
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    return torch.stack([((y - 14) ** 2 + (x - 17) ** 2 < (5 + i % 7) ** 2) for i in range(n)]).to(torch.uint8)


def image_set(name="isic2017", split="test", n=12, masks=True):
    pixels = torch.from_numpy(RNG.integers(0, 256, (n, 3, S, S), dtype=np.uint8))
    return ImageSet(
        name, split, [f"ISIC_{i:07d}" for i in range(n)], pixels, blobs(n) if masks else None, None, [(S, S)] * n
    )


@pytest.fixture(scope="module")
def drawn():
    """Every figure function of the family on the largest study's shapes, and the least: name → Figure."""
    torch.manual_seed(0)
    model = TokenCutSeg(configure("tiny")).eval()
    vqgan = VQGAN(configure("tiny").vqgan).eval()
    images = image_set()
    x, masks = images.images / 255, images.masks
    tokens = torch.randint(K, (12, *GRID))
    codes = codebook_table(tokens, downsample_mask(masks, GRID), K)
    scores = np.linspace(0.95, 0.05, 12)
    maps = torch.rand(4, 2, S, S)
    said = Segmentation(tokens[:4].flatten(1), torch.zeros(4, 64, 3), torch.rand(4, 64, 2), maps, maps, torch.zeros(()))
    hidden = torch.rand(3, *GRID) < 0.6
    filled = transformer.Inpainting(
        x[:3], tokens[:3], hidden, tokens[:3].roll(1, 1), x[:3], torch.rand(3, *GRID), torch.rand(3, *GRID, K)
    )
    sets = [image_set(name, split, masks=split == "train") for name in SETS for split in ("train", "unlabelled")]
    pairs = pd.DataFrame(
        [
            ("isic2016", "train", f"ISIC_{i:07d}", "isic2017", "train", f"ISIC_{i + 1:07d}", "near duplicate", 40.0)
            for i in range(7)
        ],
        columns=COLUMNS,
    )
    few = codebook_table(tokens % 3, downsample_mask(masks, GRID), 8)
    makers = {
        "dataset_preview": partial(tokenizer.dataset_preview, sets),
        "vqgan_curves": partial(tokenizer.vqgan_curves, tokenizer_history(), K),
        "reconstructions": partial(tokenizer.reconstructions, x[:6], x[:6].flip(0)),
        "codebook_usage": partial(tokenizer.codebook_usage, codes),
        "codebook_usage, few codes": partial(tokenizer.codebook_usage, few),
        "token_maps": partial(
            tokenizer.token_maps, x[:3], tokens[:3], x[:3], masks[:3], codes["lesion_share"].to_numpy()
        ),
        "codebook_embedding": partial(tokenizer.codebook_embedding, torch.randn(K, 4), codes, torch.rand(K, 3, 4, 4)),
        "code_explorer": partial(tokenizer.code_explorer, 3, vqgan, images, tokens % 16),
        "masking": partial(transformer.masking, x[0], GRID, configure("tiny").masked_gpt),
        "masked_gpt_curves": partial(transformer.masked_gpt_curves, *gpt_tables(), K, 0.6),
        "token_inpainting": partial(transformer.token_inpainting, filled, K),
        "attention_maps": partial(transformer.attention_maps, model, x[0], masks[0], torch.tensor([5, 15])),
        "linear_probe": partial(transformer.linear_probe, probe_table()),
        "graph_stencil": partial(segmentation.graph_stencil, (16, 16), 2.6, "cells", torch.randn(1, 3, 16, 16)),
        "segmentation_curves": partial(segmentation.segmentation_curves, segmentation_history()),
        "predictions": partial(segmentation.predictions, x[:4], masks[:4], said, GRID, K, scores[:4]),
        "best_median_worst": partial(segmentation.best_median_worst, x, masks, masks.roll(2, 1), scores),
        "failures": partial(segmentation.failures, x, masks, masks.roll(2, 1), scores[::-1]),
        "by_rank": partial(segmentation.by_rank, x, masks, masks.roll(2, 1), scores, 3),
        "per_image_scores": partial(evaluation.per_image_scores, records()),
        "per_image_scores, one pair": partial(evaluation.per_image_scores, records(PAIRS[:1])),
        "cross_dataset": partial(evaluation.cross_dataset, cross_table()),
        "score_by_lesion_size": partial(evaluation.score_by_lesion_size, home_records(), draws=20),
        "score_by_group": partial(evaluation.score_by_group, group_table()),
        "contact_sheet": partial(evaluation.contact_sheet, pairs, {(s.dataset, s.split): s for s in sets}),
        "codebook_size": partial(ablations.codebook_size, codebook_sizes()),
        "stages": partial(ablations.stages, stage_table()),
        "graph_radius": partial(
            ablations.graph_radius, ladder("radius", list(SMALL.ablation.graph_radii), neighbours=[0, 4, 8, 20, 80])
        ),
        "feature_quality": partial(ablations.feature_quality, feature_table()),
        "label_efficiency": partial(ablations.label_efficiency, label_table()),
        "deviations": partial(ablations.deviations, deviation_table()),
        "deviations, one switch": partial(ablations.deviations, deviation_table().groupby("recipe").head(1)),
        "revised_steps": partial(ablations.revised_steps, steps_table()),
        "efficiency": partial(ablations.efficiency, cost_table()),
        "baselines": partial(ablations.baselines, baseline_table()),
        "baselines, one cell": partial(
            ablations.baselines, baseline_table().query("method == 'otsu' and reduction == 'per_image'")
        ),
        "pipeline": partial(ablations.pipeline, model, x[0]),
    }
    return {name: Drawn(make()) for name, make in makers.items()}


class Drawn:
    """A figure with what its renderer has drawn: the texts and their boxes in pixels, at 100 dots per inch."""

    def __init__(self, figure):
        self.figure = figure
        figure.set_dpi(100)
        FigureCanvasAgg(figure)
        figure.canvas.draw()  # settles the layout
        self.renderer = figure.canvas.get_renderer()
        self.boxes, draw = {}, Text.draw

        def noted(text, renderer, *args, **kwargs):
            if text.get_visible() and text.get_text().strip():
                self.boxes[text] = Text.get_window_extent(text, renderer)
            return draw(text, renderer, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "draw", noted)
            figure.canvas.draw()

    def inches(self):
        return tuple(self.figure.get_size_inches())

    def outside(self):
        """Texts that leave the canvas."""
        width, height = self.figure.canvas.get_width_height()
        return [
            text.get_text()
            for text, box in self.boxes.items()
            if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5
        ]

    def overlapping(self):
        """Pairs of texts that lie on each other by more than a pixel each way."""
        return [
            (a.get_text(), b.get_text())
            for (a, one), (b, two) in itertools.combinations(self.boxes.items(), 2)
            if min(one.x1, two.x1) - max(one.x0, two.x0) > 1 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1
        ]

    def small(self):
        return [text.get_text() for text in self.boxes if text.get_fontsize() < style.SMALL]

    def legends_over_axes(self):
        return [
            legend.get_texts()[0].get_text()
            for legend in self.figure.findobj(Legend)
            for axis in self.figure.axes
            if legend.get_window_extent(self.renderer).padded(-1).overlaps(axis.get_window_extent(self.renderer))
        ]

    def bars_not_from_zero(self):
        """Bars that start elsewhere than at zero, and axes whose bars are cut."""
        bad = []
        for axis in self.figure.axes:
            for bars in (part for part in axis.containers if isinstance(part, BarContainer)):
                upright = bars.orientation == "vertical"
                starts = [bar.get_y() if upright else bar.get_x() for bar in bars]
                low, high = sorted(axis.get_ylim() if upright else axis.get_xlim())
                longest = max(bar.get_height() if upright else bar.get_width() for bar in bars)
                if any(starts) or low > 0 or high < longest or axis.get_yscale() != "linear":
                    bad.append(axis.get_ylabel() or axis.get_xlabel())
        return bad


def breaks(drawn):
    return {
        rule: found
        for rule in ("outside", "overlapping", "small", "legends_over_axes", "bars_not_from_zero")
        if (found := getattr(drawn, rule)())
    }


# ---- the rules -------------------------------------------------------------------------------------------------------


def test_the_family_is_complete(drawn):
    assert {name for outputs in OUTPUTS.values() for name in outputs.figures} <= drawn.keys()


def test_there_are_two_widths(drawn):
    assert {float(each.inches()[0]) for each in drawn.values()} == {style.WIDTH, style.NARROW}


@pytest.mark.parametrize("rule", ["outside", "overlapping", "small", "legends_over_axes", "bars_not_from_zero"])
def test_no_figure_breaks(drawn, rule):
    assert {name: found for name, each in drawn.items() if (found := getattr(each, rule)())} == {}


def test_the_rules_can_be_broken():
    figure, ((axis,),) = style.canvas(1, 1, 2, style.NARROW, title="a title")
    axis.bar([0, 1], [3, 2], bottom=1, label="bars")
    axis.text(0.2, 2, "one text")
    axis.text(0.21, 2, "another", fontsize=6)
    figure.text(0.9, 0.9, "a text that leaves the canvas on the right")
    axis.legend(loc="center")
    assert breaks(Drawn(figure)).keys() == {
        "outside",
        "overlapping",
        "small",
        "legends_over_axes",
        "bars_not_from_zero",
    }


def test_every_figure_says_something_and_every_axis_what_it_measures(drawn):
    for name, each in drawn.items():
        assert each.figure.get_suptitle(), name
        shown = [axis for axis in each.figure.axes if axis.axison and axis.get_label() != "<colorbar>"]
        assert all(axis.get_xlabel() for axis in shown), name
        for axis in shown:
            siblings = axis.get_shared_y_axes().get_siblings(axis)
            assert any(one.get_ylabel() or one.get_yticklabels() for one in siblings), name


@pytest.mark.parametrize("text", ["one", "a few short words", "word " * 60, "averyveryverylongname" * 5 + " and more"])
def test_a_title_is_wrapped_and_keeps_its_words(text):
    lines = style.wrapped(text, 3, style.TITLE, "bold").split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(style._inches(line, style.TITLE, "bold") <= 3 for line in lines if " " in line)


@pytest.mark.parametrize(("plain", "set_in_type"), [("-0.152", "−0.152"), ("-0.000", "0.000"), ("0.5", "0.5")])
def test_a_minus_is_a_minus(plain, set_in_type):
    assert style.typeset(plain) == set_in_type


# ---- colours ---------------------------------------------------------------------------------------------------------

BLINDNESS = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""From linear sRGB, white D65."""


def linear(colour):
    rgb = np.array(mpl.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of a linear sRGB colour."""
    t = XYZ @ rgb / XYZ.sum(1)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one, two, blindness):
    """CIE 1976 distance as somebody with this blindness sees two colours; about 2 is just noticeable."""
    seen = [lab((BLINDNESS[blindness] @ linear(colour)).clip(0, 1)) for colour in (one, two)]
    return np.linalg.norm(seen[0] - seen[1])


def test_the_oracle_knows_red_from_green():
    assert lab(np.ones(3)) == pytest.approx([100, 0, 0], abs=1e-6)
    assert lab(linear("#FF0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)  # Lindbloom's calculator
    assert distance("#B03030", "#5A6A1E", "deuteranopia") < 15 < distance("#B03030", "#5A6A1E", "none")


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_are_told_apart_by_everybody(blindness):
    main = [style.METHODS[name] for name in ("tokencutseg", "unet", "otsu", "released", "described", "revised")]
    sets = {
        "main methods": (main, 16),
        "methods": (style.METHODS.values(), 10),
        "beside ours": ([style.BLUE, style.SKY, style.GREY], 16),
        "reductions": ([colour for colour, _ in style.REDUCTIONS.values()], 16),
        "outlines": ([style.REFERENCE, style.PREDICTED], 40),
    }
    for name, (colours, least) in sets.items():
        close = {
            (a, b): round(d, 1)
            for a, b in itertools.combinations(colours, 2)
            if (d := distance(a, b, blindness)) < least
        }
        assert not close, f"{name}: {close}"


def test_colours_stand_out_from_the_paper():
    def luminance(colour):
        return XYZ[1] @ linear(colour)

    for colour in (*style.METHODS.values(), style.GREY, *(colour for colour, _ in style.REDUCTIONS.values())):
        assert 1.05 / (luminance(colour) + 0.05) > 2, colour


def test_every_method_has_its_own_colour_and_marker():
    methods = [*style.METHODS, "mine", "yours"]
    for of in (style.method_colours(methods), style.method_markers(methods)):
        assert list(of) == methods and len(set(of.values())) == len(methods)
    assert set(style.TERMS).isdisjoint(style.METHODS.values())


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    return Study.open("tiny", results=str(tmp_path))


def test_a_figure_is_written_as_picture_and_as_vectors(study):
    def written():
        figure, axes = style.canvas(1, 2, 2, title="a title with − and →")
        axes[0, 0].plot([0, 1], [0, 1])
        style.picture(axes[0, 1], np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
        study.figure("chart", figure)
        return {path.suffix: path.read_bytes() for path in (study.folder / "figures").iterdir()}

    first, second = written(), written()
    assert first.keys() == {".png", ".pdf"}
    assert first == second, "the same figure gives the same bytes"
    pdf = first[".pdf"]
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf, "letters are letters, not drawings"
    assert b"CreationDate" not in pdf
    assert len(pdf) < 60_000
    width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)[1])
    assert width == pytest.approx(72 * style.WIDTH), "as large as its canvas"
    assert int.from_bytes(first[".png"][16:20], "big") == round(150 * style.WIDTH)
