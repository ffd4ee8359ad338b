"""Two processes that train together, through gloo on the CPU, against one."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tokencutseg.config import configure
from tokencutseg.data.source import open_source
from tokencutseg.data.transforms import Augmentation
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.fit import Hardware, fit
from tokencutseg.training.modules import TokenCutSegModule, VQGANModule

PLAIN = {"vqgan.perceptual": "none", "vqgan.disc_start": 1000, "segmentation.self_training_weight": 0}
TRAININGS = {
    "uniform": PLAIN | {"vqgan.codebook_init": "uniform", "vqgan.restart_dead_codes": False},
    "kmeans": PLAIN,
    "segmentation": PLAIN,
}


def train(folder, devices):
    for name, overrides in TRAININGS.items():
        config = configure("tiny", overrides=overrides)
        source = open_source("", config)
        torch.manual_seed(0)
        stage = "segmentation" if name == "segmentation" else "vqgan"
        module = TokenCutSegModule(config, TokenCutSeg(config)) if stage == "segmentation" else VQGANModule(config)
        module.augment = Augmentation("none")  # which every process draws for itself
        batches = TrainLoader(source.load("site_a", "train"), 8, 20, 0)
        validation = EvalLoader(source.load("site_a", "validation"), 4)
        fit(module, batches, validation, 2, folder / name, Hardware("cpu", devices=devices))
        torch.save(module.state_dict(), folder / f"{name}-{module.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    train(tmp_path / "one", 1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    (tmp_path / "two").mkdir()
    subprocess.run([sys.executable, __file__, str(tmp_path / "two")], check=True, env=environment, timeout=300)

    for name in TRAININGS:
        one, first, second = (
            torch.load(tmp_path / file) for file in (f"one/{name}-0.pt", f"two/{name}-0.pt", f"two/{name}-1.pt")
        )
        for key in one:  # the networks too, and not only the codebook: but no BatchNorm is synchronised on a CPU
            if not key.startswith("discriminator"):
                torch.testing.assert_close(first[key], second[key], msg=f"{name}: {key}", atol=1e-6, rtol=1e-5)
        if name == "uniform":
            for key in one:
                torch.testing.assert_close(first[key], one[key], msg=f"{name}: {key}", atol=2e-4, rtol=1e-3)
        alone, both = (pd.read_csv(tmp_path / kind / name / "history.csv") for kind in ("one", "two"))
        assert both["images"].equals(alone["images"])
        losses = [column for column in alone if column.startswith("train_")]
        pd.testing.assert_frame_equal(both[losses], alone[losses], rtol=0.2, atol=0.02)


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2)
