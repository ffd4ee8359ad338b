"""A kept study has its tables and the runs behind them, and no weights."""

import json
import runpy

import pandas as pd
import pytest
import torch

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import DECIMALS, native_scores, score
from tokencutseg.experiments.runs import RECORDS, read_records
from tokencutseg.files import CHECKOUT

keep = runpy.run_path(str(CHECKOUT / "scripts/keep_study.py"))["keep"]


def run(store, name, **dependencies):
    (store / name).mkdir(parents=True)
    (store / name / "config.json").write_text(json.dumps({"dependencies": dependencies}))
    for file in ("metrics.json", "environment.json", "scored.json", "model.safetensors", "last.ckpt", ".lock"):
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
    tables = {f"tables/{name}.csv" for name in ("main", "seeds", "published")}
    merged = {"runs/environment.json", "runs/scored.json"}
    assert files == runs | tables | merged
    (study / "tables" / "seeds.csv").unlink()
    keep(study, kept)
    assert not (kept / "tables" / "seeds.csv").exists() and not (kept / "runs" / "unet-1").exists(), (
        "brought up to date"
    )
    (study / "tables" / "seeds.csv").write_text("method,runs\nunet,unet-1 segmentation-1\n")
    keep(study, kept)
    for name in merged:
        assert set(json.loads((kept / name).read_text())) == {"segmentation-1", "unet-1", "vqgan-1"}


def test_kept_records_lack_what_follows_from_the_rest_and_are_left_while_they_are_the_same(tmp_path):
    store, study, kept = tmp_path / "runs", tmp_path / "small", tmp_path / "reference" / "isic"
    run(store, "unet-1")
    (study / "tables").mkdir(parents=True)
    (study / "tables" / "main.csv").write_text("runs\nunet-1\n")
    margins, masks = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    images = ImageSet("x", "test", ["1", "2", "3"], torch.zeros(3, 3, 8, 8), (masks > 0).byte(), None, [(8, 8)] * 3)
    records = score(margins > 0, images.masks, images.ids, dataset="x", split="test")
    records = records.join(native_scores(margins, images)).round(DECIMALS)
    own, copy = store / "unet-1", kept / "runs" / "unet-1"
    records.to_csv(own / RECORDS, index=False)
    keep(study, kept)
    lines = [line.split(",") for line in (copy / RECORDS).read_text().splitlines()]
    assert ["id", "1", "2", "3"] in lines and not {"iou", "dice"} & {name for name, *_ in lines}
    pd.testing.assert_frame_equal(read_records(copy / RECORDS)[list(records)], records, rtol=1e-12)

    records.to_csv(copy / RECORDS, index=False)  # as kept by another version: the same, with all columns
    keep(study, kept)
    assert "iou" in pd.read_csv(copy / RECORDS)
    records[1:].to_csv(own / RECORDS, index=False)
    keep(study, kept)
    assert read_records(copy / RECORDS)["id"].tolist() == ["2", "3"]
