"""`train` and `tables`, which do a study's work before its notebooks need it, and what all training commands share."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tokencutseg.cli.common import FAILED, OK, UsageError, natural, positive, read_overrides, terminable
from tokencutseg.config import PRESETS, RECIPES, configure

if TYPE_CHECKING:
    from tokencutseg.experiments.runs import Run
    from tokencutseg.experiments.study import Study
    from tokencutseg.training.fit import Hardware

STAGES = ("tokenizer", "transformer", "segmenter", "baselines")
PRECISIONS = {"16": "16-mixed", "32": "32-true", "bf16": "bf16-mixed", "auto": "auto"}


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this module's commands; `command(name, handler, text)` makes one parser."""
    train = command("train", _train, "Train a study's models, on several GPUs or machines too; `run` then finds them.")
    add_study(train)
    train.add_argument(
        "--stages",
        type=lambda text: text.split(","),
        default=list(STAGES),
        metavar="STAGE[,STAGE]",
        help=f"of {', '.join(STAGES)} (default: all); a stage trains those it builds on",
    )
    train.add_argument("--gpus", type=natural, metavar="N", help="GPUs on each machine (default: 1 where there is one)")
    train.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="16 and bf16 are mixed precision; auto is bf16 on a GPU that has it, else 32",
    )
    add_processes(train)

    tables = command(
        "tables",
        _tables,
        "Make single tables of a study and their figures, training what they need; "
        "what broke off goes on where it stopped, and `run` then finds all of it.",
    )
    tables.add_argument(
        "names",
        metavar="TABLE[,TABLE]",
        type=lambda text: text.split(","),
        help="such as stages,label_efficiency; an unknown one lists them all",
    )
    add_study(tables)
    tables.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="trainings at once, where a table has "
        "several that are independent, each with its share of the cores (default: %(default)s)",
    )
    tables.add_argument(
        "--precision",
        choices=("auto", "32", "bf16"),
        default="auto",
        help="of trainings; auto is bf16 on a GPU that has it, else 32",
    )
    tables.add_argument("--helping", action="store_true", help=argparse.SUPPRESS)  # one of the other jobs
    tables.add_argument(
        "--no-training",
        action="store_true",
        help="make those whose trainings are done, and name for each other one the first that is missing",
    )


def add_study(parser: argparse.ArgumentParser) -> None:
    """The options that name a study."""
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="how much work (default: %(default)s)")
    parser.add_argument("--recipe", choices=RECIPES, default="revised", help="which method (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with datasets, see data/README.md (default: synthetic lesions, no download)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where the study's own folder is made (default: %(default)s)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of every draw (default: %(default)s)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="stage.key=value",
        help="change settings, such as vqgan.codebook_size=128",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The options that say how many processes train together, and how."""
    parser.add_argument(
        "--devices", type=positive, metavar="N", help="processes on each machine, when not one for each GPU"
    )
    parser.add_argument(
        "--num-nodes",
        type=positive,
        default=1,
        metavar="N",
        help="machines; start the same command on each, as Lightning's guide says (default: 1)",
    )
    parser.add_argument(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="a strategy of Lightning's (default: DistributedDataParallel for several processes)",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile, where it works")


def hardware(arguments: argparse.Namespace) -> Hardware:
    """What the options mean here: without `gpus`, one if there is one. Raises UsageError for more than there are."""
    import torch

    from tokencutseg.training.fit import Hardware
    from tokencutseg.training.processes import leads

    there, gpus, precision = torch.cuda.device_count(), arguments.gpus, PRECISIONS[arguments.precision]
    if gpus and not there:
        tell("no GPU here: training on the CPU, as with --gpus 0")
    gpus = min(1, there) if gpus is None or not there else gpus
    if gpus > there:
        raise UsageError(f"--gpus {gpus}, but there are {there} here")
    if precision == "16-mixed" and not gpus:
        tell("--precision 16 is for GPUs: computing in 32 bits")
        precision = "32-true"
    found = Hardware(
        "gpu" if gpus else "cpu",
        precision,
        devices=arguments.devices or max(1, gpus),
        num_nodes=arguments.num_nodes,
        strategy=arguments.strategy,
        compile=arguments.compile,
        progress_bar=True,
    )
    if found.processes > 1 and not leads():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends; errors are still told)
    return found


def tell(message: str) -> None:
    """A note to the user, beside the output."""
    print(f"note: {message}", file=sys.stderr, flush=True)


def _train(arguments: argparse.Namespace) -> int:
    if unknown := set(arguments.stages) - set(STAGES):
        raise UsageError(f"unknown stage {', '.join(sorted(unknown))}. Known: {', '.join(STAGES)}")
    config = configure(arguments.preset, arguments.recipe, arguments.seed, read_overrides(arguments.overrides))

    from tokencutseg.data.source import open_source
    from tokencutseg.experiments.study import Study
    from tokencutseg.experiments.tables import available_rows
    from tokencutseg.report.notebooks import check_writable

    check_writable(arguments.results, "--results")
    source = open_source(arguments.data, config)
    study = Study(config, source, arguments.results, hardware=hardware(arguments))
    available_rows(study)
    with terminable():
        for stage in arguments.stages:
            for run in _trained(study, stage):
                print(f"{stage}: {run.folder}", flush=True)
    return OK


def _tables(arguments: argparse.Namespace) -> int:
    config = configure(arguments.preset, arguments.recipe, arguments.seed, read_overrides(arguments.overrides))

    import torch

    from tokencutseg.experiments.ablations import SHARED, TABLES
    from tokencutseg.experiments.runs import NotTrained
    from tokencutseg.experiments.study import Finished, Study
    from tokencutseg.plots import ablations
    from tokencutseg.report.notebooks import check_writable
    from tokencutseg.report.outputs import OUTPUTS
    from tokencutseg.training.fit import Hardware

    if unknown := [name for name in arguments.names if name not in TABLES]:
        raise UsageError(f"unknown table {', '.join(unknown)}. Known: {', '.join(TABLES)}")
    check_writable(arguments.results, "--results")
    study = Study.open(
        config.preset,
        config.recipe,
        config.seed,
        str(arguments.data or ""),
        str(arguments.results),
        read_overrides(arguments.overrides),
        hardware=Hardware(precision=PRECISIONS[arguments.precision], progress_bar=True),
        training=not arguments.no_training,
    )
    study.jobs, study.helping = arguments.jobs, arguments.helping
    threads, status = torch.get_num_threads(), OK
    with terminable(), _helpers(arguments):
        for name in [name for name in arguments.names if name in SHARED or not arguments.helping]:
            torch.set_num_threads(max(1, threads // arguments.jobs) if name in SHARED else threads)
            try:
                table = study.table(name, TABLES[name](study))
            except NotTrained as missing:
                print(f"{name} was not made: {missing}", file=sys.stderr, flush=True)
                status = FAILED
                continue
            except Finished:
                continue
            print(f"{name}: {study.folder / 'tables' / f'{name}.csv'}", flush=True)
            if name in OUTPUTS["05_ablations"].figures:  # each is drawn from the table of its name
                study.figure(name, getattr(ablations, name)(table))
    return status


@contextmanager
def _helpers(arguments: argparse.Namespace) -> Iterator[None]:
    """Within, `arguments.jobs` - 1 other processes are at the same tables, as long as there is something to train."""
    command = [sys.executable, "-m", "tokencutseg.cli", *arguments.argv, "--helping"]
    alone = arguments.helping or arguments.no_training
    helpers = [] if alone else [subprocess.Popen(command) for _ in range(arguments.jobs - 1)]
    try:
        yield
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.terminate()  # which loses nothing: what it was at goes on where it stopped
            helper.wait()


def _trained(study: Study, stage: str) -> list[Run]:
    """The runs of one stage that the study's own tables are made of."""
    from tokencutseg.experiments import ablations as grids
    from tokencutseg.experiments.tables import available_rows

    if stage in ("tokenizer", "transformer"):
        return [getattr(study, stage)()]
    if stage == "segmenter":
        return [study.segmenter(train) for train in dict.fromkeys(train for train, _ in available_rows(study))]
    return [
        grids.segment_with(study, name, grids.baselines_budget(study.config), study.config.seed)
        for name in study.config.ablation.baselines
        if name != "otsu"
    ]
