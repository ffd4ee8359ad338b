"""The commands of the authors' README: pasted flags, from nothing to a printed score."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

import tokencutseg
from tokencutseg import cli_upstream
from tokencutseg.cli import main
from tokencutseg.cli_upstream import hardware
from tokencutseg.config import RECIPES, ConfigError
from tokencutseg.data import synthetic
from tokencutseg.data.images import read_image, read_mask
from tokencutseg.models.hardware import Hardware, choose_device, gpu_problem
from tokencutseg.models.upstream import load_segmenter

FIXTURE = Path(__file__).parent / "fixtures" / "tiny_seg.ckpt"
SIZES = "--vq-embed-dim 8 --vq-n-embed 16 --vq-hidden-channels 32 --vq-n-res-blocks 1"
GPT = "--gpt-n-layer 1 --gpt-n-head 2 --gpt-n-embd 16"


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
            mask = Image.fromarray(masks[i] * np.uint8(255)).resize(size, 0)
            mask.save(root / f"{split}-mask" / f"ISIC_{i}_segmentation.png")
    return root


def data(root, *splits):
    pairs = [(split, kind) for split in splits for kind in ("data", "mask")]
    return [part for split, kind in pairs for part in (f"--{split}-{kind}-dir", root / f"{split}-{kind}")]


def train_vq(folders, out, *more):
    """The README's flags in its order, with sizes for a test; the perceptual term must not download weights."""
    command = f"""train-vq --batch-size 4 --num-workers 4 --learning-rate 1e-4 --max-epochs 2 --gpus 0 --precision 32
        {SIZES} --disc-start 1 --disc-weight 0.5 --perceptual-weight 0.8 --codebook-weight 1.0 --experiment-name vq
        --image-size 32 --set vqgan.perceptual_size=32 --output-dir"""
    return run(command, out, *data(folders, "train", "val"), *more)


def train_seg(folders, out, tokenizer, *more):
    command = f"""train-seg --image-size 32 --batch-size 1 --num-workers 4 --learning-rate 1e-4 --max-epochs 2 --gpus 0
        --precision 16 {SIZES} {GPT} --deepcut-loss-weight 0.2 --experiment-name seg --output-dir"""
    return run(command, out, *data(folders, "train", "val"), "--vqgan-checkpoint", tokenizer, *more)


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
    segmenter, records = only(trained, "seg/runs/segmentation-*"), tmp_path / "records.csv"
    command = f"test-seg --image-size 32 --batch-size 2 --num-workers 4 {SIZES} {GPT} --checkpoint-path"
    assert run(command, segmenter, *data(folders, "test"), "--records", records) == 0
    iou, dice = re.search(r"mIoU (\S+) .*DSC (\S+) .*micro_two_class", capsys.readouterr().out).groups()
    model = tokencutseg.load(segmenter)
    files = sorted((folders / "test-data").iterdir())
    masks = [folders / "test-mask" / f"{file.stem}_segmentation.png" for file in files]
    images = torch.stack([torch.from_numpy(read_image(file, 32)).permute(2, 0, 1) for file in files]).float() / 255
    target = torch.stack([torch.from_numpy(read_mask(mask, 32)) for mask in masks]).long()
    with torch.no_grad():
        prediction = model(images).mask
    assert float(iou) == pytest.approx(MulticlassJaccardIndex(2)(prediction, target).item(), abs=1e-6)
    assert float(dice) == pytest.approx(MulticlassF1Score(2, average="macro")(prediction, target).item(), abs=1e-6)
    assert list(pd.read_csv(records)["id"]) == [file.stem for file in files]


def test_flags_are_settings_of_ordinary_runs(folders, trained):
    tokenizer, segmenter = only(trained, "vq/runs/vqgan-*"), only(trained, "seg/runs/segmentation-*")
    saved = json.loads((tokenizer / "config.json").read_text())["config"]
    assert saved["recipe"] == "released" and saved["data"]["image_size"] == 32
    wanted = {"batch_size": 4, "learning_rate": 1e-4, "epochs": 2, "code_dim": 8, "codebook_size": 16}
    wanted |= {"hidden_channels": 32, "n_res_blocks": 1, "disc_start": 1, "disc_weight": 0.5, "perceptual_weight": 0.8}
    wanted |= {"codebook_weight": 1.0, "clamped_adversary": RECIPES["released"]["vqgan.clamped_adversary"]}
    assert {key: saved["vqgan"][key] for key in wanted} == wanted
    saved = json.loads((segmenter / "config.json").read_text())
    seg, gpt = saved["config"]["segmentation"], saved["config"]["masked_gpt"]
    assert (seg["batch_size"], seg["epochs"], seg["use_deepcut"], seg["deepcut_loss_weight"]) == (1, 2, True, 0.2)
    assert (gpt["n_layer"], gpt["n_head"], gpt["d_model"], gpt["pretraining"]) == (1, 2, 16, "joint")
    assert len(pd.read_csv(segmenter / "history.csv")) == 2
    adopted = only(trained, "seg/runs/vqgan-*")
    assert json.loads((adopted / "metrics.json").read_text())["adopted_from"] == str(trained / "vq")
    assert saved["dependencies"]["tokenizer"] == adopted.name
    weights, inside = tokencutseg.load(tokenizer).state_dict(), tokencutseg.load(segmenter).vqgan.state_dict()
    assert all(torch.equal(value, inside[key]) for key, value in weights.items())
    written = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    assert train_vq(folders, trained) == 0
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")} == written, "trained again"


@pytest.mark.slow
def test_without_the_graph_module_on_an_exported_tokenizer(folders, trained, tmp_path):
    exported = tmp_path / "vq.ckpt"
    assert run("export", only(trained, "vq/runs/vqgan-*"), "--released", exported) == 0
    assert train_seg(folders, tmp_path, exported, "--use-deepcut", "False") == 0
    assert type(tokencutseg.load(only(tmp_path, "seg/runs/segmentation-*")).head).__name__ == "LinearHead"
    history = pd.read_csv(only(tmp_path, "seg/runs/segmentation-*/history.csv"))
    assert "train_deepcut" not in history and "train_masked_tokens" in history


def test_export(folders, trained, tmp_path, capsys):
    """As the authors' checkpoint it gives the same scores; in half precision it is the same model."""
    segmenter, checkpoint, half = only(trained, "seg/runs/segmentation-*"), tmp_path / "seg.ckpt", tmp_path / "half"
    assert run("export", segmenter, "--released", checkpoint) == 0
    assert run("export", segmenter, "--half", half) == 0
    scores = []
    for path in (segmenter, trained / "seg", checkpoint):
        capsys.readouterr()
        assert run("test-seg --image-size 32 --checkpoint-path", path, *data(folders, "test")) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1] == scores[2] and "4 images at 32×32" in scores[0]
    state = tokencutseg.load(segmenter).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in load_segmenter(checkpoint).state_dict().items())
    kinds = {value.dtype for value in load_file(half / "model.safetensors").values() if value.is_floating_point()}
    assert kinds == {torch.float16}
    for key, value in tokencutseg.load(half).state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-4)
    before = checkpoint.read_bytes(), (half / "model.safetensors").read_bytes()
    assert run("export", segmenter, "--released", checkpoint) == run("export", segmenter, "--half", half) == 2
    assert before == (checkpoint.read_bytes(), (half / "model.safetensors").read_bytes()), "nothing is overwritten"


def test_a_checkpoint_counts_where_flags_contradict_it(folders, trained, capsys):
    assert run("test-seg --image-size 96 --checkpoint-path", FIXTURE, *data(folders, "test")) == 0
    shown = capsys.readouterr()
    assert "note: vqgan.codebook_size is 1024 on the command line" in shown.err and "going on with 24" in shown.err
    assert "was trained at" not in shown.err and "4 images at 96×96" in shown.out
    assert run("test-seg --image-size 24 --checkpoint-path", trained / "seg", *data(folders, "test")) == 0
    assert "--image-size is 24, but" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("test-seg --checkpoint-path gone.ckpt", "checkpoint gone.ckpt does not exist"),
        ("test-seg --checkpoint-path gone", "gone holds no saved model"),
        (f"test-seg --checkpoint-path {FIXTURE} --image-size 30", "stride 4, not 30"),
        ("test-seg --image-size 0", "--image-size: must lie in 1"),
        ("test-seg --batch-size -1", "--batch-size: must lie in 1"),
        ("train-vq --max-epochs 0", "--max-epochs: must lie in 1"),
        (f"test-seg --checkpoint-path {FIXTURE} --records .", "--records . is a folder"),
        ("train-vq --train-data-dir gone --val-data-dir gone", "gone does not exist"),
        ("train-seg --train-data-dir . --val-data-dir .", "required: --train-mask-dir, --val-mask-dir"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(folders, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert run(command, *(data(folders, "test") if command.startswith("test-seg") else ())) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert not list(tmp_path.iterdir()), "nothing may have been started"


def test_what_train_seg_refuses(folders, trained, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    mixed = ["--train-data-dir", folders / "train-data", "--train-mask-dir", tmp_path / "masks", *data(folders, "val")]
    assert run("train-seg --vqgan-checkpoint", FIXTURE, *mixed, "--output-dir", tmp_path / "out") == 2
    assert "masks holds no mask" in capsys.readouterr().err
    last = only(trained, "vq/runs/vqgan-*") / "last.ckpt"
    last.touch()
    assert train_seg(folders, tmp_path, last) == 2
    assert f"is for going on with a training; give the run's folder {last.parent}" in capsys.readouterr().err
    same = [
        part.replace("val-data", "train-data").replace("val-mask", "train-mask") if part[:1] == "/" else part
        for part in map(str, data(folders, "val"))
    ]
    assert run("train-vq", *data(folders, "train"), *same, "--output-dir", tmp_path / "out") == 2
    assert "6 images are of both splits" in capsys.readouterr().err
    (tmp_path / "whole").mkdir()
    for kind in ("images", "masks"):
        (tmp_path / "whole" / kind).symlink_to(folders / "train-data")
    whole = ["--train-data-dir", tmp_path / "whole", "--train-mask-dir", folders / "train-mask", *data(folders, "val")]
    assert run("train-vq", *whole, "--output-dir", tmp_path / "out") == 2
    assert "give the one that holds the images" in capsys.readouterr().err
    for name in ("two/runs/vqgan-a", "two/runs/vqgan-b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text("{}")
    assert train_seg(folders, tmp_path, tmp_path / "two") == 2
    assert "holds 2 finished vqgan runs; give one run's folder" in capsys.readouterr().err


def test_an_adopted_tokenizer_is_no_second_one_of_its_experiment(tmp_path):
    for name, metrics in (("vqgan-a", {}), ("vqgan-b", {"adopted_from": "exp/runs/vqgan-a"})):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.json").write_text(json.dumps(metrics))
    assert cli_upstream._run_folder(tmp_path, "vqgan").name == "vqgan-a"


def machine(monkeypatch, gpus, capability=(9, 0)):
    """A machine with so many GPUs."""
    gpu_problem.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "G")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.fixture(autouse=True)
def real_machine():
    yield
    gpu_problem.cache_clear()


@pytest.mark.parametrize(
    ("there", "device", "gpus", "precision", "expected"),
    [
        (0, "auto", None, "auto", ("cpu", "32-true", 1)),
        (0, "auto", 2, "16", ("cpu", "32-true", 1)),
        (0, "cpu", 0, "bf16", ("cpu", "bf16-mixed", 1)),
        (4, "auto", None, "auto", ("cuda", "bf16-mixed", 1)),
        (4, "gpu", 3, "16", ("cuda", "16-mixed", 3)),
        (4, "auto", 0, "32", ("cpu", "32-true", 1)),
        (4, "cpu", None, "auto", ("cpu", "32-true", 1)),
    ],
)
def test_hardware(monkeypatch, there, device, gpus, precision, expected):
    """On the CPU where there is no GPU, and where it is asked for."""
    machine(monkeypatch, there)
    found = hardware(argparse.Namespace(device=device, gpus=gpus, precision=precision, num_nodes=1))
    assert (found.found()[0].type, found.found()[1], found.devices) == expected
    with pytest.raises(ConfigError, match="--gpus 5, but there are 4 here"):
        machine(monkeypatch, 4)
        hardware(argparse.Namespace(device="auto", gpus=5, precision=precision, num_nodes=1))


def test_choice_of_a_device(monkeypatch):
    """A GPU that is too old, and Apple's, are never taken unasked."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    machine(monkeypatch, 1, (6, 1))
    assert choose_device().type == "cpu" and "too old" in Hardware().describe()
    with pytest.raises(ConfigError, match="G is too old"):
        choose_device("gpu")
    assert choose_device("mps").type == "mps"
    machine(monkeypatch, 1, (7, 5))
    assert choose_device().type == "cuda" and Hardware().describe() == "GPU G, precision: bf16 mixed"
    monkeypatch.setenv("TOKENCUTSEG_DEVICE", "cpu")
    assert choose_device().type == "cpu" and choose_device("gpu").type == "cuda"
    monkeypatch.setenv("TOKENCUTSEG_DEVICE", "tpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, message in (("auto", "not 'tpu'"), ("mps", "needs a Mac")):
        with pytest.raises(ConfigError, match=message):
            choose_device(name)


INTERRUPTED = """
import os, signal, sys
from tokencutseg import cli_upstream
from tokencutseg.cli import main
from tokencutseg.training import fit

def printed(*line, **options):
    print(*line, **options)
    if " epoch 2/" in line[0]:
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a new process may have been told to ignore it
fit.print = printed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_an_interrupted_training_goes_on(folders, tmp_path, capsys):
    """Ctrl-C in a process of its own, after the second epoch; the same command then ends where it would have."""
    options = f"train-vq --max-epochs 5 --gpus 0 --image-size 32 {SIZES} --experiment-name vq --output-dir {tmp_path}"
    command = [*options.split(), *map(str, data(folders, "train", "val")), "--set", "vqgan.perceptual=none"]
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, *command], capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted" in ended.stderr and "Traceback" not in ended.stderr
    folder = only(tmp_path, "vq/runs/vqgan-*")
    assert not (folder / "metrics.json").exists()
    assert main(command) == 0
    shown = [re.findall(r"vqgan-\w+ epoch (\d)/5", out) for out in (ended.stdout, capsys.readouterr().out)]
    assert shown == [["1", "2"], ["2", "3", "4", "5"]]  # an epoch is printed before it is saved
    assert len(pd.read_csv(folder / "history.csv")) == 5 and (folder / "metrics.json").exists()
