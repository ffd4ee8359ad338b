import json
import re
import shlex

import pandas as pd
import pytest

from tokencutseg.cli import main
from tokencutseg.config import configure
from tokencutseg.study import readme
from tokencutseg.study.claims import RULE
from tokencutseg.study.outputs import OUTPUTS
from tokencutseg.study.readme import (
    ABLATIONS,
    DOCUMENTS,
    REFERENCE,
    ablations_markdown,
    baselines_markdown,
    budgets_markdown,
    claims_markdown,
    groups_markdown,
    labels_markdown,
    results_markdown,
    studies_markdown,
    summary_markdown,
    tokenizer_markdown,
    with_results,
)
from tokencutseg.study.runner import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_is_made_from_committed_ones(document):
    text = document.read_text()
    assert with_results(text) == text
    assert text.count("<!-- ") == 2 * text.count("<!-- /")


def test_outside_the_made_tables_there_is_no_measured_number():
    """Prose holds years, sizes and settings; scores and times stand in tables that are made."""
    for document in DOCUMENTS:
        prose = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", document.read_text(), flags=re.DOTALL)
        assert not re.findall(r"\b0\.[0-9]{3,}|\b[0-9]+\.[0-9]+ ?%", prose), document.name


def test_every_result_comes_from_a_committed_table():
    for path in REFERENCE.glob("*/tables/main_results.csv"):
        table = pd.read_csv(path)
        score = table[(table["definition"] == "image_lesion") & (table["measure"] == "iou")]["mean"].dropna()
        assert len(score) and all(f"{value:.3f} [" in README for value in score)


@pytest.mark.parametrize("about", [path for path in sorted(REFERENCE.glob("*/about.md"))
                                   if (path.parent / "tables").is_dir()], ids=lambda path: path.parent.name)
def test_what_is_said_of_a_study_is_in_its_files(about):
    """Every number of the prose is in its tables, settings or runs; years, notebooks and 95 % apart."""
    def numbers(text):
        return {match.replace(",", "").rstrip(".") for match in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", text)}

    prose = re.sub(r"```.*?```|`[^`]*`", "", about.read_text(), flags=re.DOTALL)
    files = [path for path in about.parent.rglob("*") if path.suffix in (".csv", ".json")
             and not path.name.startswith("per_image")]
    known = {str(int(float(number))) if float(number).is_integer() else number
             for path in files for number in numbers(path.read_text())}
    assert numbers(prose) - known <= {"95", "2016", "2017", "01", "02", "03", "04", "05"}


def test_studies_are_led_by_their_first_words_and_demonstrations_come_last(tmp_path):
    for study in ("quick-skin", "small-skin"):
        tables = tmp_path / study / "tables"
        tables.mkdir(parents=True)
        (tables.parent / "config.json").write_text(f'{{"preset": "{study.partition("-")[0]}"}}')
        (tables.parent / "about.md").write_text(f"**{study}** (one seed): how it was made.\n\nWhat it leaves out.\n")
        row = {"train": "a", "test": "a", "method": "tokencutseg", "recipe": "revised", "definition": "image_lesion",
               "measure": "iou", "n": 9, "mean": 0.7, "low": 0.6, "high": 0.8, "published": None, "note": None}
        pd.DataFrame([row]).to_csv(tables / "main_results.csv", index=False)
    short, full = results_markdown(tmp_path).splitlines(), studies_markdown(tmp_path).splitlines()
    assert [line for line in short if line.startswith("Study")] == [
        f"Study [`{study}`](results/reference/{study}/about.md). **{study}** (one seed):"
        for study in ("small-skin", "quick-skin")]
    assert [line for line in full if line.startswith("**")] == [f"**{study}** (one seed): how it was made."
                                                                for study in ("small-skin", "quick-skin")]
    assert "What it leaves out." in full and "What it leaves out." not in short
    for lines in (short, full):
        assert [line for line in lines if line.startswith("| a")] == [
            "| a → a | TokenCutSeg | revised | 9 | 0.700 [0.600, 0.800] |  |  |  |"] * 2


def test_the_summary_says_where_ours_is_ahead_of_a_unet(tmp_path):
    """Clear are an interval without zero and a small adjusted p together. Demonstrations and other recipes are not
    listed. The budget is that of the table's trainings."""
    leads = [("a", 0.02, 0.01, 0.03, 0.01), ("b", 0.02, 0.01, 0.03, 0.2), ("c", 0.02, -0.01, 0.05, 0.01),
             ("d", -0.02, -0.03, -0.01, 0.01)]
    table = pd.DataFrame(leads, columns=["test", "ahead", "ahead_low", "ahead_high", "p_holm"]).assign(
        train="a", method="unet", definition="image_lesion", measure="iou")
    claim = pd.DataFrame([{"claim": "best", "verdict": "supported", "reason": "ahead"}]).assign(
        **dict.fromkeys(("published", "measured", "low", "high", "complete")), definition="image_lesion")
    for preset, recipe in (("small", "revised"), ("quick", "revised"), ("full", "released"), ("full", "revised")):
        folder = tmp_path / f"{preset}-{'own' if recipe == 'released' else 'skin'}" / "tables"
        folder.mkdir(parents=True)
        pd.concat([table, table.assign(measure="dice"), table.assign(method="otsu")]).to_csv(
            folder / "main_results.csv", index=False)
        table[:1].assign(fraction=0.05, seeds=3, weights="imagenet").drop(columns=["train", "test"]).to_csv(
            folder / "label_efficiency.csv", index=False)
        claim.to_csv(folder / "claims.csv", index=False)
        (folder.parent / "config.json").write_text(json.dumps(configure(preset, recipe).to_dict()))
    everything = summary_markdown(tmp_path).splitlines()
    assert [line for line in everything if "`small-" in line] == [
        "| `revised` clearly | a → a | +0.020 [+0.010, +0.030] | 1 | 16,000 | `small-skin` |",
        "| `revised` clearly | 5% of the labels | +0.020 [+0.010, +0.030] | 3 | 1,200 "
        "| `small-skin`, U-Net from ImageNet weights |",
        "| neither clearly | a → b | +0.020 [+0.010, +0.030] | 1 | 16,000 | `small-skin` |",
        "| neither clearly | a → c | +0.020 [-0.010, +0.050] | 1 | 16,000 | `small-skin` |",
        "| U-Net clearly | a → d | -0.020 [-0.030, -0.010] | 1 | 16,000 | `small-skin` |"]
    assert "| U-Net clearly | a → d | -0.020 [-0.030, -0.010] | 1 |  | `full-skin` |" in everything  # all there are


def test_verdicts_and_budgets_are_shown_as_they_stand(tmp_path):
    tables = tmp_path / "small-skin" / "tables"
    tables.mkdir(parents=True)
    rows = [("mIoU is 81.37%", 0.8137, 0.7012, 0.69, 0.71, "not supported", "above"),
            ("DSC is 90%", 0.9, 0.91, 0.90, 0.92, "not testable here", "within"),
            ("DSC is 80%", 0.8, 0.91, 0.90, 0.92, "supported", "within"),
            ("DSC is 95%", 0.95, 0.91, 0.90, 0.92, "not testable here", "above"),
            ("DSC is 91%, recipe described", 0.91, 0.91, 0.90, 0.92, "not testable here", "breaks the bound"),
            ("DSC is 91%, recipe released", 0.91, 0.70, 0.69, 0.71, "not testable here", "above"),
            ("DSC is 80%, recipe released", 0.8, 0.70, 0.69, 0.71, "not testable here", "above"),
            ("DSC is 92%", 0.9199, 0.91, 0.90, 0.92, "not testable here", "too near the end"),
            ("robust", None, None, None, None, "not testable here", "no measure")]
    pd.DataFrame(rows, columns=["claim", "published", "measured", "low", "high", "verdict", "reason"]).assign(
        definition="image_lesion", experiment="main_results", complete=None).to_csv(tables / "claims.csv", index=False)
    (tables.parent / "config.json").write_text('{"preset": "small", "recipe": "released"}')
    shown = claims_markdown(tmp_path)
    assert "Study `small-skin`, preset `small`, recipe `released`:" in shown
    assert "| mIoU is 81.37% | 0.8137 | 0.7012 [0.690, 0.710] image_lesion | **not supported** | above |" in shown
    assert "Open in every study:" in shown and "| robust |  |  | **not testable here** | no measure |" in shown
    assert RULE in shown
    assert "| DSC is 95% | 0.9500 | 0.9100 [0.900, 0.920] image_lesion | **not testable here** | above |" in shown
    assert shown.index("DSC is 95%") < shown.index("Open in every study:") < shown.index("| robust")
    assert summary_markdown(tmp_path).splitlines()[2:6] == [
        "- **supported**: DSC is 80%", "- **not supported**: mIoU is 81.37%",
        "- **not testable here**: robust; 3 of 6 published values",
        "- **not testable here, but within or below the interval of `revised`**: DSC is 90%"]
    pd.DataFrame([{"method": "unet", "stage": "baseline", "saw": "skin", "training_images": 20, "images_seen": 400,
                   "unlabelled_seen": 30, "steps": 50, "seconds": 90.0, "device": "cpu"}]).to_csv(
                       tables / "budgets.csv", index=False)
    assert "| unet | baseline | skin | 20 | 400 | 30 | 50 | 1.5 | cpu |" in budgets_markdown(tmp_path)


def test_other_networks_are_shown_where_the_main_results_lack_them(tmp_path):
    """Ours has the better IoU and the worse, larger distance."""
    scores = {"iou": (0.7, {"ahead": 0.1, "ahead_low": -0.1, "ahead_high": 0.3, "p_holm": 0.02}),
              "hd95": (9.0, {"ahead": 2.0, "ahead_low": 1.0, "ahead_high": 4.0, "p_holm": 0.02}), "dice": (0.8, {})}
    rows = [{"method": method, "weights": "scratch", "definition": definition, "measure": measure, "n": 9, "mean": mean,
             "low": mean - 0.1, "high": mean + 0.1, "images_seen": 400, "seconds": 90.0,
             **({"pretraining_seconds": 0.0} | lead if method == "fpn" else {"pretraining_seconds": 600.0})}
            for method in ("tokencutseg", "fpn") for definition in ("image_lesion", "pooled_lesion")
            for measure, (mean, lead) in scores.items()]
    for study in ("small-a", "small-b", "quick-c"):
        tables = tmp_path / study / "tables"
        tables.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(tables / "baselines.csv", index=False)
        (tables.parent / "config.json").write_text(f'{{"preset": "{study[:-2]}", "recipe": "revised"}}')
    pd.DataFrame(rows).to_csv(tmp_path / "small-b/tables/main_results.csv", index=False)
    shown = baselines_markdown(tmp_path).splitlines()
    assert [line for line in shown if line.startswith("Study")] == ["Study `small-a`:"]
    assert [line for line in shown if line.startswith(("| Token", "| FPN"))] == [
        "| TokenCutSeg | scratch | 400 | 1.5 + 10.0 before | lesion IoU | 0.700 [0.600, 0.800] |  |  |",
        "| TokenCutSeg | scratch | 400 | 1.5 + 10.0 before | HD95 in pixels | 9.000 [8.900, 9.100] |  |  |",
        "| FPN | scratch | 400 | 1.5 | lesion IoU | 0.700 [0.600, 0.800] | +0.100 [-0.100, +0.300] | 0.02 |",
        "| FPN | scratch | 400 | 1.5 | HD95 in pixels | 9.000 [8.900, 9.100] | -2.000 [-4.000, -1.000] | 0.02 |"]


def test_a_setting_is_shown_without_digits_that_nobody_reads():
    row = pd.Series({"setting": "0.047140452079103175", "instead": "2.6", "also": "segmentation.radius_unit = cells"})
    steps = ABLATIONS["revised_steps"][1]["change"]
    assert steps(row) == "0.0471405 → 2.6 (segmentation.radius_unit = cells)"
    assert steps(pd.Series({"setting": "16", "instead": "8", "also": None})) == "16 → 8"


def test_a_claim_is_open_only_where_no_study_judges_it(tmp_path):
    """One study trains a set that the other leaves out; both judge the third claim, and nobody has the images of the
    fourth. Of the sixth, the reason that says more is shown."""
    for study, verdicts in {
            "small-a": [("supported", "inside"), ("not testable here", "this study does not train b"),
                        ("supported", "ahead"), ("not testable here", "this study does not train c"),
                        ("supported", "ahead"), ("not testable here", "this study has not written d yet")],
            "small-b": [("not testable here", "this study does not train a"), ("not supported", "above"),
                        ("not supported", "behind"), ("not testable here", "no images of c"),
                        ("supported", "ahead"), ("not testable here", "this study does not train d")]}.items():
        folder = tmp_path / study / "tables"
        folder.mkdir(parents=True)
        table = pd.DataFrame(verdicts, columns=["verdict", "reason"]).assign(
            claim=["a holds", "b holds", "best", "c holds", "robust", "d holds"], definition="image_lesion",
            experiment="main_results", **dict.fromkeys(("published", "measured", "low", "high", "complete")))
        table.to_csv(folder / "claims.csv", index=False)
        (tmp_path / study / "config.json").write_text('{"preset": "small", "recipe": "revised"}')
    assert summary_markdown(tmp_path).splitlines()[2:] == [
        "- **supported**: a holds; best (study `small-a`); robust",
        "- **not supported**: b holds; best (study `small-b`)",
        "- **not testable here**: c holds; d holds",
        "- **not possible by one scoring rule**: the published mIoU and DSC of isic2016 → isic2016, "
        "isic2017 → isic2017, isic2016 → isic2017, whatever was trained"]
    shown = claims_markdown(tmp_path)
    assert [line.split(" |")[0] for line in shown.splitlines() if line.startswith(("| ", "Study", "Open"))] == [
        "Study `small-a`, preset `small`, recipe `revised`:", "| claim", "| a holds", "| best", "| robust",
        "Study `small-b`, preset `small`, recipe `revised`:", "| claim", "| b holds", "| best", "| robust",
        "Open in every study:", "| claim", "| c holds", "| d holds"]
    assert "| c holds |  |  | **not testable here** | no images of c |" in shown
    assert "| d holds |  |  | **not testable here** | this study does not train d |" in shown


def test_label_shares_are_shown_as_they_stand(tmp_path):
    tables = tmp_path / "small-skin" / "tables"
    tables.mkdir(parents=True)
    rows = [("tokencutseg", 0.71, None, None, None, None), ("released", 0.61, 0.1, 0.05, 0.15, 1e-9),
            ("unet", 0.69, 0.02, 0.01, 0.03, 0.004)]
    table = pd.DataFrame(rows, columns=["method", "mean", "ahead", "ahead_low", "ahead_high", "p_holm"]).assign(
        fraction=0.05, labels=100, seeds=1, n=600, low=0.6, high=0.8)
    table.to_csv(tables / "label_efficiency.csv", index=False)
    (tables.parent / "config.json").write_text('{"preset": "small", "recipe": "revised"}')
    ours, released, theirs = (line for line in labels_markdown(tmp_path).splitlines() if line.startswith("| 100"))
    assert ours == "| 100 (5%) | TokenCutSeg, `revised` | 1 | 600 | 0.710 [0.600, 0.800] |  |  |"
    assert released.startswith("| 100 (5%) | TokenCutSeg, `released` | 1 | 600 | 0.610")
    assert theirs == "| 100 (5%) | U-Net | 1 | 600 | 0.690 [0.600, 0.800] | +0.020 [+0.010, +0.030] | 0.004 |"
    table.assign(labels_seen=[100, 100, 60]).to_csv(tables / "label_efficiency.csv", index=False)
    assert [line.split(" | ")[0] for line in labels_markdown(tmp_path).splitlines() if line.startswith("| 100")] == [
        "| 100 (5%)", "| 100 (5%)", "| 100 (5%), 60 seen"]
    table.assign(weights=["self-supervised", "scratch", "scratch"]).to_csv(tables / "label_efficiency.csv", index=False)
    assert labels_markdown(tmp_path).splitlines()[2].startswith("| labels | method | starts from | seeds | images |")
    assert "| 100 (5%) | U-Net | scratch | 1 | 600 | 0.690" in labels_markdown(tmp_path)
    table.assign(mean_without=0.68, n_without=583).to_csv(tables / "label_efficiency.csv", index=False)
    assert labels_markdown(tmp_path).splitlines()[4] == (
        "| 100 (5%) | TokenCutSeg, `revised` | 1 | 600 | 0.710 [0.600, 0.800] | 0.680 (583) |  |  |")
    (tables.parent / "config.json").write_text('{"preset": "quick", "recipe": "revised"}')
    assert "yet" in labels_markdown(tmp_path)


def test_scores_by_group_are_shown_pair_by_pair_a_column_for_each_method(tmp_path):
    tables = tmp_path / "small-skin" / "tables"
    tables.mkdir(parents=True)
    rows = [(test, method, grouping, group, n, mean) for grouping, group, n, mean in (
        ("lesion size", "small", 3, 0.6), ("contrast", "low", 4, 0.5), ("site", "b", 9, 0.4))
        for test in ("a", "b") for method in ("tokencutseg", "unet")]
    pd.DataFrame(rows, columns=["test", "method", "grouping", "group", "n", "mean"]).assign(
        train="a", low=0.1, high=0.9).to_csv(tables / "score_by_group.csv", index=False)
    (tables.parent / "config.json").write_text('{"preset": "small", "recipe": "revised"}')
    both = "0.600 [0.100, 0.900] | 0.600 [0.100, 0.900]"
    assert groups_markdown(tmp_path).splitlines()[2:] == [
        "| train → test | third by | | images | `revised` | U-Net |", "|---|---|---|---|---|---|",
        f"| a → a | lesion size | small | 3 | {both} |", f"| a → a | contrast | low | 4 | {both.replace('6', '5')} |",
        f"| a → b | lesion size | small | 3 | {both} |", f"| a → b | contrast | low | 4 | {both.replace('6', '5')} |"]
    (tables.parent / "config.json").write_text('{"preset": "quick", "recipe": "revised"}')
    assert "yet" in groups_markdown(tmp_path)


def test_ablations_and_tokenizers_are_shown_as_they_stand(tmp_path):
    tables = tmp_path / "small-skin" / "tables"
    tables.mkdir(parents=True)
    (tables.parent / "config.json").write_text('{"preset": "small"}')
    (tables.parent / "about.md").write_text("How it was made.\n")
    pd.DataFrame({"stages": ["tokenizer", "+ transformer"], "mean": 0.5, "low": 0.4, "high": 0.6,
                  "change": [None, -0.02], "change_low": [None, -0.03], "change_high": [None, 0.01]}).to_csv(
                      tables / "stages.csv", index=False)
    pd.DataFrame({"recipe": ["released"], "switch": ["vqgan.pool"], "setting": ["labelled"], "instead": ["all"],
                  "also": ["masked_gpt.pool = all"], "seeds": 3, "difference": 0.1, "low": 0.05, "high": 0.15,
                  "p_holm": 0.00321}).to_csv(tables / "deviations.csv", index=False)
    lines = ablations_markdown(tmp_path).splitlines()
    assert lines[0] == "How it was made."
    assert "| + transformer | 0.500 [0.400, 0.600] | -0.020 [-0.030, +0.010] |" in lines
    assert ("| released | `vqgan.pool` | labelled → all (masked_gpt.pool = all) | 3 | +0.100 [+0.050, +0.150] "
            "| 0.0032 |") in lines
    pd.DataFrame({"code": [0, 1, 2, 3], "count": [6, 6, 6, 0]}).to_csv(tables / "codebook_usage.csv", index=False)
    pd.DataFrame({"dataset": ["skin"], "measure": ["lpips"], "n": [9], "mean": [0.0244], "low": [0.02], "high": [0.03],
                  "weights": ["vgg16-random"]}).to_csv(tables / "reconstruction.csv", index=False)
    shown = tokenizer_markdown(tmp_path)
    assert "75% of 4 words in use on test images, perplexity 3.0:" in shown
    assert "| skin | LPIPS | 9 | 0.0244 [0.02, 0.03] | vgg16-random |" in shown
    (tables.parent / "config.json").write_text('{"preset": "quick"}')
    assert "yet" in ablations_markdown(tmp_path) and "yet" in tokenizer_markdown(tmp_path)


def test_every_column_that_is_shown_is_in_its_table():
    """The tables that are shown, and those that only the demonstration holds, whatever their numbers."""
    for name, (_, columns) in ABLATIONS.items():
        shown = sorted(REFERENCE.glob(f"small-*/tables/{name}.csv"))
        for path in shown or [REFERENCE / "quick-isic/tables" / f"{name}.csv"]:
            for row in pd.read_csv(path).itertuples():
                assert all(isinstance(cell(row), str) for cell in columns.values()), name


def test_every_output_is_listed():
    for name, outputs in OUTPUTS.items():
        (row,) = (line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{table}`" in row for table in outputs.tables)


def test_the_commands_are_understood(tmp_path, capsys):
    """Every ./run_all.sh line of the README, as a dry run."""
    lines = re.findall(r"^\./run_all\.sh(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 5
    for arguments in lines:
        words = [word for word in shlex.split(arguments) if word != "--dry-run"]
        if "--data" in words:
            continue  # needs downloaded images
        assert main(["run", *words, "--dry-run", "--results", str(tmp_path)]) == 0, arguments
    assert capsys.readouterr().out.count("study      ") == len([line for line in lines if "--data" not in line])


@pytest.mark.parametrize(("overrides", "words"), [
    ({}, ""), ({"segmentation.epochs": 3}, ""), ({"masked_gpt.batch_size": 64}, "other batch sizes"),
    ({"masked_gpt.epochs": 60}, "longer pretraining"),
    ({"masked_gpt.epochs": 60, "vqgan.batch_size": 64}, "other batch sizes, longer pretraining"),
    ({"segmentation.affinity": "feature", "vqgan.batch_size": 64}, "an earlier recipe")])
def test_how_a_study_departs_from_its_recipe_of_today(overrides, words):
    assert readme._departs(configure("small", overrides=overrides).to_dict()) == words
