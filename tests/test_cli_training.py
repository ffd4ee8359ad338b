"""`tokencutseg train`: a study's models beforehand, also by several processes together."""

import argparse
import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch import nn

from tokencutseg.cli import main
from tokencutseg.cli.training import hardware
from tokencutseg.config import Config, configure
from tokencutseg.experiments.study import Study
from tokencutseg.experiments.tables import main_results
from tokencutseg.training import fit
from tokencutseg.training.modules import VQGANModule

# dropout inside attention is each process's own; the rest is the same however many there are
SETTINGS = [
    "masked_gpt.dropout=0",
    "vqgan.perceptual=none",
    "segmentation.batch_size=8",
    "vqgan.batch_size=7",
    "vqgan.images_per_epoch=24",
]
COMMAND = ["train", "--preset", "tiny", "--gpus", "0", "--stages", "segmenter", "--set", *SETTINGS]


def trained(folder, recipe):
    assert main([*COMMAND, "--recipe", recipe, "--results", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), "released")


def histories(folder):
    return {path.parent.name: pd.read_csv(path).drop(columns="seconds") for path in folder.glob("*/runs/*/history.csv")}


@pytest.mark.parametrize("recipe", ["released", "revised"])
def test_two_processes_train_what_one_trains(recipe, tmp_path, request):
    one = request.getfixturevalue("alone") if recipe == "released" else trained(tmp_path / "one", recipe)
    two = tmp_path / "two"
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tokencutseg.cli",
            *COMMAND,
            "--recipe",
            recipe,
            "--results",
            str(two),
            "--devices",
            "2",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
    )
    assert process.returncode == 0, process.stderr
    ours, expected = histories(two), histories(one)
    assert sorted(ours) == sorted(expected)
    assert len(ours) == 4, "two sites, for each a tokenizer and a segmenter, or for both one tokenizer and transformer"
    for run, history in expected.items():
        pd.testing.assert_frame_equal(ours[run], history, rtol=2e-3, atol=2e-3)
        metrics = json.loads(next(two.glob(f"*/runs/{run}/metrics.json")).read_text())
        assert metrics["processes"] == 2
    lines = [line for line in process.stdout.splitlines() if re.search(r"epoch \d+/", line)]
    assert len(lines) == sum(len(history) for history in expected.values()), "only the first process speaks"


def test_the_notebooks_find_what_train_has_trained(alone):
    settings = dict(setting.split("=") for setting in SETTINGS)
    study = Study.open("tiny", "released", results=str(alone), overrides=settings)
    before = {path: path.stat().st_mtime_ns for path in alone.glob("*/runs/*/metrics.json")}
    assert study.segmenter("site_b").done
    assert study.tokenizer().done
    assert {path: path.stat().st_mtime_ns for path in alone.glob("*/runs/*/metrics.json")} == before


def test_a_single_table(alone, capsys):
    """Made of the runs that are there, and the same as the study's own."""
    settings = dict(setting.split("=") for setting in SETTINGS)
    study = Study.open("tiny", "released", results=str(alone), overrides=settings)
    trained = sorted(alone.glob("*/runs/*/metrics.json"))
    assert (
        main(
            [
                "tables",
                "main_results,efficiency",
                "--preset",
                "tiny",
                "--recipe",
                "released",
                "--results",
                str(alone),
                "--set",
                *SETTINGS,
            ]
        )
        == 0
    )
    path = study.folder / "tables" / "main_results.csv"
    assert {figure.name for figure in (study.folder / "figures").iterdir()} == {"efficiency.png", "efficiency.pdf"}
    assert Config.from_dict(json.loads((study.folder / "config.json").read_text())) == study.config
    assert f"main_results: {path}" in capsys.readouterr().out
    assert sorted(alone.glob("*/runs/*/metrics.json")) == trained
    pd.testing.assert_frame_equal(pd.read_csv(path).fillna(""), main_results(study).fillna(""), check_dtype=False)


def test_without_training_only_tables_of_done_trainings_are_made(alone, capsys):
    before = sorted(alone.glob("*/runs/*"))
    assert (
        main(
            [
                "tables",
                "codebook_size,budgets",
                "--no-training",
                "--preset",
                "tiny",
                "--recipe",
                "released",
                "--results",
                str(alone),
                "--set",
                *SETTINGS,
            ]
        )
        == 1
    )
    told = capsys.readouterr()
    missing = re.search(r"codebook_size was not made: it needs the training (vqgan-\w{10}) \(recipe r", told.err)
    assert missing and not list(alone.glob(f"*/runs/{missing[1]}"))
    assert "budgets.csv" in told.out, "those that can be made are made"
    assert sorted(alone.glob("*/runs/*")) == before


def test_tables_train_in_the_precision_that_is_asked_for(tmp_path):
    assert (
        main(
            [
                "tables",
                "budgets",
                "--precision",
                "bf16",
                "--preset",
                "tiny",
                "--results",
                str(tmp_path),
                "--set",
                "vqgan.perceptual=none",
                "evaluation.train_sets=site_a",
            ]
        )
        == 0
    )
    trained = [json.loads(path.read_text())["precision"] for path in tmp_path.glob("*/runs/*/metrics.json")]
    assert trained == ["bf16-mixed"] * 3


def test_two_jobs_make_the_table_that_one_makes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tokencutseg.cli",
        "tables",
        "label_efficiency,budgets",
        "--preset",
        "tiny",
        "--set",
        "vqgan.perceptual=none",
    ]
    for jobs in "12":
        process = subprocess.run(
            [*command, "--results", str(tmp_path / jobs), "--jobs", jobs], capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stderr
    one, two = (sorted((tmp_path / jobs).glob("*/runs/*")) for jobs in "12")
    assert [run.name for run in one] == [run.name for run in two] and len(one) > 4
    for name in ("label_efficiency", "budgets"):
        tables = [pd.read_csv(next((tmp_path / jobs).glob(f"*/tables/{name}.csv"))) for jobs in "12"]
        # other numbers of threads add in another order
        pd.testing.assert_frame_equal(
            *(table.drop(columns=["seconds", "p", "p_holm"], errors="ignore") for table in tables), atol=2e-2
        )
    lines = [line.split()[0] for line in process.stdout.splitlines() if " epoch 1/" in line]
    assert len(lines) == len(set(lines)) == len([run for run in two if run.name != "otsu"]), "none is trained twice"


def test_an_unknown_table_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert main(["tables", "stages,stage", "--preset", "tiny", "--results", str(tmp_path)]) == 2
    assert "unknown table stage. Known: main_results, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--stages", "tokenizer,decoder"],
            "unknown stage decoder. Known: tokenizer, transformer, segmenter, baselines",
        ),
        (
            ["--devices", "4", "--gpus", "0", "--set", "vqgan.batch_size=3", "--stages", "tokenizer"],
            "too few for 4 processes; change vqgan.batch_size or vqgan.images_per_epoch",
        ),
    ],
)
def test_bad_usage(tmp_path, capsys, arguments, message):
    assert main(["train", "--preset", "tiny", "--results", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "gpus", "precision", "expected"),
    [
        (0, None, "auto", ("cpu", "auto", 1)),
        (0, 2, "16", ("cpu", "32-true", 1)),
        (0, 0, "bf16", ("cpu", "bf16-mixed", 1)),
        (4, None, "auto", ("gpu", "auto", 1)),
        (4, 3, "16", ("gpu", "16-mixed", 3)),
        (4, 0, "32", ("cpu", "32-true", 1)),
    ],
)
def test_the_hardware_that_options_mean(monkeypatch, there, gpus, precision, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    arguments = argparse.Namespace(
        gpus=gpus, precision=precision, devices=None, num_nodes=1, strategy="auto", compile=False
    )
    found = hardware(arguments)
    assert (found.accelerator, found.precision, found.devices) == expected


def test_precision_follows_the_device(monkeypatch):
    assert fit.precision(fit.Hardware("cpu")) == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_bf16=has_bf16, **_: has_bf16)
        assert fit.precision(fit.Hardware("gpu")) == expected
    assert fit.precision(fit.Hardware("gpu", precision="16-mixed")) == "16-mixed"


def test_without_a_working_compiler_it_says_so_and_goes_on(monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nlong trace")

    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    monkeypatch.setattr(torch, "compile", broken)
    module = VQGANModule(configure("tiny", overrides={"vqgan.perceptual": "none"}))
    fit.compile_networks(module)
    assert compiled == []
    assert "torch.compile does not work here (no C++ compiler): going on without" in capsys.readouterr().err
    monkeypatch.setattr(torch, "compile", lambda function: function)
    fit.compile_networks(module)
    assert sorted(compiled) == ["Decoder", "Discriminator", "Encoder"]
