"""The commands of the authors' README: pasted flags, from nothing to a printed score."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

import tokencutseg
from tokencutseg.cli import main
from tokencutseg.config import RECIPES
from tokencutseg.data import synthetic
from tokencutseg.data.images import DataError, read_image, read_mask
from tokencutseg.models.checkpoint import save_half, save_weights
from tokencutseg.models.upstream import load_segmenter

FIXTURE = Path(__file__).parent / "fixtures" / "tiny_seg.ckpt"
SIZES = ["--vq-embed-dim", "8", "--vq-n-embed", "16", "--vq-hidden-channels", "32", "--vq-n-res-blocks", "1"]
GPT = ["--gpt-n-layer", "1", "--gpt-n-head", "2", "--gpt-n-embd", "16"]


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return leave.code


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six training, three validation and four test lesions, as files of 60 × 40 pixels and larger."""
    root = tmp_path_factory.mktemp("isic")
    for seed, (split, n) in enumerate((("train", 6), ("val", 3), ("test", 4))):
        images, masks = synthetic.generate("site_a", n, 96, seed)
        for kind in ("data", "mask"):
            (root / f"{split}-{kind}").mkdir()
        for i in range(n):
            size = (60 + 7 * i, 40 + 5 * i)
            Image.fromarray(images[i].transpose(1, 2, 0)).resize(size).save(root / f"{split}-data" / f"ISIC_{i}.jpg")
            Image.fromarray(masks[i] * np.uint8(255)).resize(size, 0).save(
                root / f"{split}-mask" / f"ISIC_{i}_segmentation.png"
            )
    return root


def data(root, *splits):
    return [
        part
        for split in splits
        for kind in ("data", "mask")
        for part in (f"--{split}-{kind}-dir", root / f"{split}-{kind}")
    ]


def train_vq(folders, out, *more):
    return run(
        "train-vq",
        *data(folders, "train", "val"),
        "--batch-size",
        4,
        "--num-workers",
        4,
        "--learning-rate",
        "1e-4",
        "--max-epochs",
        2,
        "--gpus",
        0,
        "--precision",
        32,
        *SIZES,
        "--disc-start",
        1,
        "--disc-weight",
        0.5,
        "--perceptual-weight",
        0.8,
        "--codebook-weight",
        1.0,
        "--output-dir",
        out,
        "--experiment-name",
        "vq",
        "--image-size",
        32,
        "--set",
        "vqgan.perceptual_size=32",
        *more,
    )


def train_seg(folders, out, tokenizer, *more):
    return run(
        "train-seg",
        *data(folders, "train", "val"),
        "--image-size",
        32,
        "--batch-size",
        1,
        "--num-workers",
        4,
        "--learning-rate",
        "1e-4",
        "--max-epochs",
        2,
        "--gpus",
        0,
        "--precision",
        16,
        "--vqgan-checkpoint",
        tokenizer,
        *SIZES,
        *GPT,
        "--deepcut-loss-weight",
        0.2,
        "--output-dir",
        out,
        "--experiment-name",
        "seg",
        *more,
    )


def only(folder, pattern):
    (found,) = sorted(folder.glob(pattern))
    return found


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """The first two commands, one after the other: the folder that they wrote."""
    out = tmp_path_factory.mktemp("out")
    assert train_vq(folders, out) == 0
    assert train_seg(folders, out, out / "vq", "--use-deepcut", "True") == 0
    return out


def test_the_three_commands_end_in_the_score_that_torchmetrics_gives(folders, trained, tmp_path, capsys):
    segmenter = only(trained, "seg/runs/segmentation-*")
    assert (
        run(
            "test-seg",
            *data(folders, "test"),
            "--image-size",
            32,
            "--checkpoint-path",
            segmenter,
            "--batch-size",
            2,
            "--num-workers",
            4,
            *SIZES,
            *GPT,
            "--records",
            tmp_path / "records.csv",
        )
        == 0
    )
    shown = capsys.readouterr().out
    iou, dice = re.search(r"mIoU (\S+) .*DSC (\S+) .*micro_two_class", shown).groups()
    model = tokencutseg.load(segmenter)
    files = sorted((folders / "test-data").iterdir())
    images = torch.stack([torch.from_numpy(read_image(file, 32)).permute(2, 0, 1) for file in files]).float() / 255
    target = torch.stack(
        [torch.from_numpy(read_mask(folders / "test-mask" / f"{file.stem}_segmentation.png", 32)) for file in files]
    ).long()
    with torch.no_grad():
        prediction = model(images).mask
    assert float(iou) == pytest.approx(MulticlassJaccardIndex(2)(prediction, target).item(), abs=1e-6)
    assert float(dice) == pytest.approx(MulticlassF1Score(2, average="macro")(prediction, target).item(), abs=1e-6)
    assert list(pd.read_csv(tmp_path / "records.csv")["id"]) == [file.stem for file in files]


def test_flags_are_settings_of_ordinary_runs(trained):
    tokenizer, segmenter = only(trained, "vq/runs/vqgan-*"), only(trained, "seg/runs/segmentation-*")
    about = json.loads((tokenizer / "config.json").read_text())["config"]
    assert about["recipe"] == "released" and about["data"]["image_size"] == 32
    wanted = {
        "batch_size": 4,
        "learning_rate": 1e-4,
        "epochs": 2,
        "embed_dim": 8,
        "n_embed": 16,
        "hidden_channels": 32,
        "n_res_blocks": 1,
        "disc_start": 1,
        "disc_weight": 0.5,
        "perceptual_weight": 0.8,
        "codebook_weight": 1.0,
        "perceptual_size": 32,
        "clamped_adversary": RECIPES["released"]["vqgan.clamped_adversary"],
    }
    assert {key: about["vqgan"][key] for key in wanted} == wanted
    about = json.loads((segmenter / "config.json").read_text())
    seg, gpt = about["config"]["segmentation"], about["config"]["masked_gpt"]
    assert (seg["batch_size"], seg["epochs"], seg["use_deepcut"], seg["deepcut_loss_weight"]) == (1, 2, True, 0.2)
    assert (gpt["n_layer"], gpt["n_head"], gpt["n_embd"], gpt["pretraining"]) == (1, 2, 16, "joint")
    assert len(pd.read_csv(segmenter / "history.csv")) == 2
    adopted = only(trained, "seg/runs/vqgan-*")
    assert json.loads((adopted / "metrics.json").read_text())["adopted_from"] == str(trained / "vq")
    assert about["inputs"]["tokenizer"] == adopted.name


def test_the_tokenizer_inside_is_the_adopted_one(trained):
    tokenizer = tokencutseg.load(only(trained, "vq/runs/vqgan-*")).state_dict()
    inside = tokencutseg.load(only(trained, "seg/runs/segmentation-*")).vqgan.state_dict()
    assert all(torch.equal(value, inside[key]) for key, value in tokenizer.items())


def test_the_same_command_again_trains_nothing(folders, trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    assert train_vq(folders, trained) == 0
    assert "epoch" not in capsys.readouterr().out.replace("epochs", "")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")} == before


def test_without_the_graph_module(folders, trained, tmp_path):
    exported = tmp_path / "vq.ckpt"
    assert run("export", only(trained, "vq/runs/vqgan-*"), "--released", exported) == 0
    assert train_seg(folders, tmp_path, exported, "--use-deepcut", "False") == 0
    model = tokencutseg.load(only(tmp_path, "seg/runs/segmentation-*"))
    assert type(model.head).__name__ == "LinearHead"
    history = pd.read_csv(only(tmp_path, "seg/runs/segmentation-*/history.csv"))
    assert "train_deepcut" not in history and "train_masked_tokens" in history


def test_export_can_be_tested_as_theirs(folders, trained, tmp_path, capsys):
    segmenter = only(trained, "seg/runs/segmentation-*")
    assert run("export", segmenter, "--released", tmp_path / "seg.ckpt") == 0
    scores = []
    for checkpoint in (segmenter, trained / "seg", tmp_path / "seg.ckpt"):
        capsys.readouterr()
        assert run("test-seg", *data(folders, "test"), "--image-size", 32, "--checkpoint-path", checkpoint) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1] == scores[2] and "4 images at 32×32" in scores[0]
    state = tokencutseg.load(segmenter).state_dict()
    assert all(
        torch.equal(value, state[key]) for key, value in load_segmenter(tmp_path / "seg.ckpt").state_dict().items()
    )


def test_export_at_half_the_size_opens_as_the_same_model(trained, tmp_path, capsys):
    segmenter = only(trained, "seg/runs/segmentation-*")
    assert run("export", segmenter, "--half", tmp_path / "half") == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (segmenter, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0] and "MiB)" in capsys.readouterr().out
    one, two = (tokencutseg.load(folder) for folder in (segmenter, tmp_path / "half"))
    assert one.config == two.config
    for (key, value), halved in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert value.dtype == halved.dtype, key
        torch.testing.assert_close(halved, value, rtol=1e-3, atol=1e-4)


def test_a_model_is_not_written_over_the_settings_of_a_study(trained, tmp_path):
    (tmp_path / "config.json").write_text("of a study")
    with pytest.raises(DataError, match="has settings of its own, as a study has"):
        save_half(only(trained, "seg/runs/segmentation-*"), tmp_path)
    assert (tmp_path / "config.json").read_text() == "of a study"


def test_what_half_precision_cannot_hold_is_refused(trained, tmp_path):
    state = tokencutseg.load(only(trained, "seg/runs/segmentation-*")).state_dict()
    (tmp_path / "config.json").write_text((only(trained, "seg/runs/segmentation-*") / "config.json").read_text())
    save_weights(state | {"vqgan.quantize.cluster_size": state["vqgan.quantize.cluster_size"] + 1e6}, tmp_path)
    with pytest.raises(DataError, match=r"beyond half precision in vqgan\.quantize\.cluster_size"):
        save_half(tmp_path, tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_their_checkpoint_counts_where_flags_contradict_it(folders, capsys):
    assert run("test-seg", *data(folders, "test"), "--image-size", 96, "--checkpoint-path", FIXTURE) == 0
    shown = capsys.readouterr()
    assert "note: --vq-n-embed is 1024, but" in shown.err and "has 24: going on with 24" in shown.err
    assert "was trained at" not in shown.err
    assert "4 images at 96×96" in shown.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["test-seg", "--checkpoint-path", "gone.ckpt"], "checkpoint gone.ckpt does not exist"),
        (["test-seg", "--checkpoint-path", "gone"], "gone holds no saved model"),
        (["test-seg", "--checkpoint-path", FIXTURE, "--image-size", 30], "stride 4, not 30"),
        (["export", FIXTURE.parent, "--released", "x.ckpt"], "holds no saved model"),
        (["test-seg", "--checkpoint-path", FIXTURE, "--records", "."], "--records . is a folder"),
        (["train-seg", "--use-deepcut", "maybe"], "must be True or False, not 'maybe'"),
        (["train-vq", "--precision", "64"], "invalid choice: '64'"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(folders, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    more = data(folders, "test") if arguments[0] == "test-seg" else []
    assert run(*arguments, *more) == 2
    shown = capsys.readouterr()
    assert words in shown.err and "Traceback" not in shown.err
    assert not list(tmp_path.iterdir()), "nothing may have been started"


def test_an_image_without_mask_is_named_before_training(folders, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    assert (
        run(
            "train-seg",
            "--train-data-dir",
            folders / "train-data",
            "--train-mask-dir",
            tmp_path / "masks",
            *data(folders, "val"),
            "--vqgan-checkpoint",
            FIXTURE,
            "--output-dir",
            tmp_path / "out",
        )
        == 2
    )
    assert "6 images without mask" in capsys.readouterr().err
    assert run("train-vq", "--train-data-dir", tmp_path / "gone", *data(folders, "val")) == 2
    assert "gone does not exist; give the one that holds the images of the train split" in capsys.readouterr().err


def test_a_training_checkpoint_is_not_taken_for_theirs(folders, trained, tmp_path, capsys):
    last = only(trained, "vq/runs/vqgan-*/last.ckpt")
    assert train_seg(folders, tmp_path, last) == 2
    assert f"is for going on with a training; give the run's folder {last.parent}" in capsys.readouterr().err


def test_more_gpus_than_there_are_is_refused(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert train_vq(folders, tmp_path, "--gpus", 2) == 2
    assert "--gpus 2, but there are 1 here" in capsys.readouterr().err


def test_another_image_size_than_in_training_is_said(folders, trained, capsys):
    assert run("test-seg", *data(folders, "test"), "--image-size", 24, "--checkpoint-path", trained / "seg") == 0
    assert "--image-size is 24, but" in capsys.readouterr().err


def test_an_experiment_with_two_runs_asks_which(folders, trained, tmp_path, capsys):
    assert train_vq(folders, tmp_path, "--seed", 0) == 0
    assert train_vq(folders, tmp_path, "--seed", 1) == 0
    capsys.readouterr()
    assert train_seg(folders, tmp_path, tmp_path / "vq") == 2
    assert "holds 2 finished vqgan runs; give one run's folder" in capsys.readouterr().err


def test_an_interrupted_training_goes_on(folders, tmp_path):
    """Ctrl-C in a process of its own, after the first epoch; the same command then ends where it would have."""

    def command(epochs, out):
        return [
            sys.executable,
            "-m",
            "tokencutseg.cli",
            "train-vq",
            *map(str, data(folders, "train", "val")),
            "--max-epochs",
            str(epochs),
            "--gpus",
            "0",
            "--image-size",
            "32",
            *SIZES,
            "--output-dir",
            str(out),
            "--experiment-name",
            "vq",
            "--set",
            "vqgan.perceptual=none",
        ]

    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command(40, tmp_path / "a"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "epoch 1/" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted; the same command goes on where this one stopped" in errors and "Traceback" not in errors
    done = sum(re.match(r"vqgan-\w+ epoch", line) is not None for line in [*seen, *rest.splitlines()])
    assert 1 <= done < 40
    run_folder = only(tmp_path, "a/vq/runs/vqgan-*")
    assert not (run_folder / "metrics.json").exists()
    again = subprocess.run(command(40, tmp_path / "a"), capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    first = re.search(r"vqgan-\w+ epoch (\d+)/40", again.stdout).group(1)
    assert int(first) in (done, done + 1)  # an epoch may be printed and not yet saved
    assert len(pd.read_csv(run_folder / "history.csv")) == 40 and (run_folder / "metrics.json").exists()


def test_recipes_shows_every_switch(capsys):
    assert run("recipes") == 0
    shown = capsys.readouterr().out
    header, *lines = shown.splitlines()
    assert header.split() == ["switch", "released", "described", "revised"]
    rows = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith(" ")}
    assert rows.keys() == RECIPES["released"].keys()
    assert rows["segmentation.loss_input"] == ["probabilities", "logits", "logits"]
    for line, below in itertools.pairwise(lines):
        assert line.startswith("    ") or below.startswith("    "), f"no reason for {line}"
