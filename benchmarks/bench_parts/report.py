"""The bench as a whole: all lines, the scaling with the number of tokens, the projection, and the files they go to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tokencutseg.bench import lines as bench_lines
from tokencutseg.bench.loop import training_loop
from tokencutseg.bench.measure import alternate, matmul_rate

from tokencutseg.config import Config
from tokencutseg.experiments.runs import environment
from tokencutseg.files import write_csv, write_json
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.plots.style import BLUE, GREY, ORANGE, PALETTE, SMALL, canvas, legend_below, save

SIDES = (14, 28, 56, 112)
"""Tokens along one side of the image in the scaling table."""


def run(device: str, quick: bool) -> dict[str, Any]:
    """Measure everything and print it: `machine`, `lines`, `scaling`, `exponents`, `projection`, plain JSON types."""
    config = bench_lines.paper_config()
    budget, rate = (1.0 if quick else 10.0), matmul_rate(device)
    machine = environment() | {"device": device, "matmul_flops_per_second": rate}
    print(
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads, {device}: "
        f"{rate / 1e9:.0f} GFLOP/s in fp32 matrix products\n"
    )
    rows = []
    for line in bench_lines.lines(config, device):
        rows.append(measured(line, device, budget, rate))
        print(described(rows[-1]), flush=True)
    rows.append(training_loop(device, *((1, 6) if quick else (4, 20))))
    print(described(rows[-1]), flush=True)
    sides = [side for side in SIDES if not (quick and side > 56)]
    table = scaling(config, device, sides, rate)
    slopes = exponents(table)
    plan = projection(config, rate)
    for title, shown, digits in (
        ("scaling", table, ".4g"),
        ("exponents over the number of tokens", slopes, ".2f"),
        ("projection of `full` on ISIC 2017 (2000 images; arithmetic alone, at 40 % of the rate)", plan, ".4g"),
    ):
        print(f"\n{title}\n{shown.to_string(index=False, float_format=lambda v, digits=digits: format(v, digits))}")
    return {
        "machine": machine,
        "lines": rows,
        "scaling": table.to_dict("records"),
        "exponents": slopes.to_dict("records"),
        "projection": plan.to_dict("records"),
    }


def measured(line: bench_lines.Line, device: str, budget: float, rate: float) -> dict[str, Any]:
    """One line's row; what does not apply to it is None."""
    ours, *plain = alternate([line.ours] if line.plain is None else [line.ours, line.plain], device, budget)
    row: dict[str, Any] = {
        "line": line.name,
        "against": line.against,
        "seconds": ours.median,
        "spread": ours.spread,
        "rounds": len(ours.seconds),
        "peak_bytes": ours.peak_bytes,
    }
    row |= (
        {
            "plain_seconds": plain[0].median,
            "plain_spread": plain[0].spread,
            "plain_peak_bytes": plain[0].peak_bytes,
            "ratio": plain[0].median / ours.median,
            "memory_ratio": plain[0].peak_bytes / ours.peak_bytes if ours.peak_bytes else None,
        }
        if plain
        else dict.fromkeys(("plain_seconds", "plain_spread", "plain_peak_bytes", "ratio", "memory_ratio"))
    )
    return row | {
        "images_per_second": line.images and line.images / ours.median,
        "share_of_matmul_rate": line.flops and line.flops / ours.median / rate,
    }


def described(row: dict[str, Any]) -> str:
    """A row in words, for the terminal."""
    text = f"{row['line']:38s} {_time(row['seconds']):>9s} ±{row['spread']:4.0%} {_megabytes(row['peak_bytes'])}"
    if row["ratio"]:
        text += (
            f"  plain {_time(row['plain_seconds']):>9s} ±{row['plain_spread']:4.0%} "
            f"{_megabytes(row['plain_peak_bytes'])}  {row['ratio']:6.2f}×  ({row['against']})"
        )
    if row["images_per_second"]:
        text += f"  {row['images_per_second']:.3g} images/s"
    if row["share_of_matmul_rate"]:
        text += f"  {row['share_of_matmul_rate']:.0%} of the matmul rate"
    return text


def _megabytes(value: int | None) -> str:
    return " " * 11 if value is None else f"{value / 1e6:8.1f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def scaling(config: Config, device: str, sides: list[int], rate: float) -> pd.DataFrame:
    """Time and peak memory of each part of image → mask over the number of tokens T.

    Columns part, T, seconds, peak_bytes, share_of_matmul_rate.
    """
    rows = [row for side in sides for row in _at_side(bench_lines.at_side(config, side), device, rate)]
    return pd.DataFrame(rows).sort_values(["part", "T"], kind="stable").reset_index(drop=True)


@torch.no_grad()
def _at_side(config: Config, device: str, rate: float) -> list[dict[str, Any]]:
    """The rows of `scaling` at one grid."""
    torch.manual_seed(0)
    model, S, grid = TokenCutSeg(config).to(device).eval(), config.data.image_size, (config.grid_size,) * 2
    images = torch.rand(1, 3, S, S, device=device)
    tokens, encoding = model.encode_to_tokens(images)
    features = model.transformer_features(tokens, encoding)
    encode, decode = bench_lines.tokenizer_flops(config)
    gpt = bench_lines.transformer_flops(config)
    parts = {
        "tokenizer, encode": (lambda: model.vqgan.tokenize(images), encode),
        "tokenizer, decode": (lambda: model.vqgan.detokenize(tokens), decode),
        "transformer": (lambda: model.transformer_features(tokens, encoding), gpt),
        "graph module": (lambda: model.head(features, grid), None),
        "image → mask": (lambda: model(images).mask, encode + gpt),
    }
    rows = []
    for part, (call, flops) in parts.items():
        (timing,) = alternate([call], device, 1.0, least=2, most=10)
        rows.append(
            {
                "part": part,
                "T": config.grid_size**2,
                "seconds": timing.median,
                "peak_bytes": timing.peak_bytes,
                "share_of_matmul_rate": flops / timing.median / rate if flops else None,
            }
        )
    return rows


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """For each part the slopes of log time and of log memory over log T: columns part, time, memory."""
    rows = []
    for part, own in table.groupby("part", sort=False):
        slopes = [np.polyfit(np.log(own["T"]), np.log(own[column]), 1)[0] for column in ("seconds", "peak_bytes")]
        rows.append({"part": part, "time": slopes[0], "memory": slopes[1]})
    return pd.DataFrame(rows)


def projection(config: Config, rate: float, share: float = 0.4, images: int = 2000) -> pd.DataFrame:
    """Operations of the released training schedule, and the hours that they take at `share` of a rate.

    A training step counts three forward passes of what learns and one of what is frozen. The perceptual network is not
    among them. `hours` is for this machine's measured rate, `hours_h100` for an H100's published 990 TFLOP/s in dense
    bf16: a projection, not a measurement.
    """
    encode, decode = bench_lines.tokenizer_flops(config)
    gpt = bench_lines.transformer_flops(config)
    steps = {
        "tokenizer": (3 * (encode + decode), config.vqgan.epochs),
        "transformer + graph": (encode + 3 * gpt, config.segmentation.epochs),
    }
    return pd.DataFrame(
        [
            {
                "stage": stage,
                "flops_per_image": flops,
                "images_seen": epochs * images,
                "hours": flops * epochs * images / (share * rate) / 3600,
                "hours_h100": flops * epochs * images / (share * 990e12) / 3600,
            }
            for stage, (flops, epochs) in steps.items()
        ]
    )


def write(result: dict[str, Any], folder: Path) -> None:
    """`lines.csv`, `scaling.csv`, `exponents.csv`, `projection.csv`, `machine.json`, and as
    `.png` and `.pdf` the figures `ratios` and `scaling`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("lines", "scaling", "exponents", "projection"):
        write_csv(pd.DataFrame(result[name]), folder / f"{name}.csv")
    write_json(result["machine"], folder / "machine.json")
    for name, figure in (
        ("ratios", ratios_figure(pd.DataFrame(result["lines"]))),
        ("scaling", scaling_figure(pd.DataFrame(result["scaling"]), pd.DataFrame(result["exponents"]))),
    ):
        save(figure, folder, name)


def dumped(result: dict[str, Any]) -> str:
    """The result as JSON; what does not apply is null."""
    return json.dumps(_without_nan(result), indent=1, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def ratios_figure(table: pd.DataFrame) -> Figure:
    """How many times faster, and how many times less memory, on log axes; 1 is the plain formulation."""
    rows = table.dropna(subset="ratio").iloc[::-1].reset_index(drop=True)
    best = rows.loc[rows["ratio"].idxmax()]
    figure, axes = canvas(
        1,
        1,
        0.8 + 0.42 * len(rows),
        title=(f"{best['line'].capitalize()}: {_times(best['ratio'])} as fast as its plain formulation"),
    )
    axis = axes[0, 0]
    for column, colour, label, shift in (("ratio", BLUE, "time", 0.17), ("memory_ratio", ORANGE, "memory", -0.17)):
        values = rows[column].astype(float)
        axis.plot(values, rows.index + shift, "o", color=colour, label=label)
        for value, at in zip(values, rows.index, strict=True):
            if np.isfinite(value):
                axis.annotate(_times(value), (value, at + shift), (6, -3), textcoords="offset points", fontsize=SMALL)
    axis.axvline(1, color=GREY, linewidth=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(rows.index, [f"{row.line}\nagainst {row.against}" for row in rows.itertuples()])
    axis.set(xlabel="plain formulation / ours (log scale)", ylim=(-0.6, len(rows) - 0.4))
    axis.margins(x=0.12)
    legend_below(axis)
    return figure


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def scaling_figure(table: pd.DataFrame, slopes: pd.DataFrame) -> Figure:
    """Time and peak memory over the number of tokens, both log, with the fitted exponents."""
    worst = slopes.loc[slopes["memory"].idxmax()]
    figure, axes = canvas(1, 2, 2.9, title=f"Memory grows as $T^{{{worst['memory']:.2f}}}$ at most ({worst['part']})")
    for axis, kind, column, unit, scale in (
        (axes[0, 0], "time", "seconds", "time of one image (ms)", 1e3),
        (axes[0, 1], "memory", "peak_bytes", "activations at peak (MB)", 1e-6),
    ):
        for (part, own), colour in zip(table.groupby("part", sort=False), PALETTE, strict=False):
            slope = slopes.set_index("part").loc[part, kind]
            axis.plot(own["T"], scale * own[column], "o-", color=colour, label=f"{part}: $T^{{{slope:.2f}}}$")
        axis.set(xscale="log", yscale="log", xlabel="tokens T (log scale)", ylabel=f"{unit} (log scale)")
    legend_below(axes[0])
    return figure
