"""A kept study has its tables and the runs behind them, and no weights."""

import json
import runpy

import pytest

from tokencutseg.files import CHECKOUT

keep = runpy.run_path(str(CHECKOUT / "scripts/keep_study.py"))["keep"]


def run(store, name, **dependencies):
    (store / name).mkdir(parents=True)
    (store / name / "config.json").write_text(json.dumps({"dependencies": dependencies}))
    for file in ("metrics.json", "model.safetensors", "last.ckpt", ".lock"):
        (store / name / file).write_text("{}")


def test_a_kept_study_has_the_runs_of_its_tables_and_those_that_they_build_on(tmp_path):
    store, study, kept = tmp_path / "runs", tmp_path / "small", tmp_path / "reference" / "isic"
    run(store, "vqgan-1", train="fingerprint")
    run(store, "segmentation-1", tokenizer="vqgan-1", train="fingerprint")
    run(store, "unet-1")
    run(store, "unet-2")  # of no table
    with pytest.raises(FileNotFoundError, match="small"):
        keep(study, kept)
    (study / "tables").mkdir(parents=True)
    (study / "tables" / "main.csv").write_text("method,runs\ntokencutseg,segmentation-1\notsu,\n")
    (study / "tables" / "seeds.csv").write_text("method,runs\nunet,unet-1 segmentation-1\n")
    (study / "tables" / "published.csv").write_text("iou\n0.8\n")
    for _ in range(2):
        assert sorted(keep(study, kept)) == ["segmentation-1", "unet-1", "vqgan-1"]
    files = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    runs = {f"runs/{run}/{file}" for run in keep(study, kept) for file in ("config.json", "metrics.json")}
    assert files == runs | {f"tables/{name}.csv" for name in ("main", "seeds", "published")}
