"""The command line. Handlers import what they need, so that help is instant.

`segment` and `explore` are in `cli_segment` and `cli_explore`; the authors' commands and what trainings share are in
`cli_upstream`.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencutseg import __version__, cli_explore, cli_segment, cli_upstream
from tokencutseg.cli_upstream import whole
from tokencutseg.config import PRESETS, RECIPES, ConfigError, configure, options
from tokencutseg.files import atomic_write, available_cores, resolve, results_folder, write_csv

if TYPE_CHECKING:
    from tokencutseg.experiments.study import Study

COMMANDS = {
    "the study": {
        "run": ("Execute the notebooks, or make single tables; what is done is not done again.", "--preset quick"),
        "recipes": ("Show every option of the three recipes, with its reason.", ""),
    },
    "the models": {
        "segment": ("Segment images: for each a mask (0 or 255) and an overlay, both PNG.", "photos/ --out masks"),
        "explore": ("Open the explorer (tokens, attention, cuts, to click), or a notebook in JupyterLab.", "03"),
        "export": ("Write a model in half precision, or as the authors' checkpoint.", "RUN --half model"),
    },
    "the data": {
        "fetch": ("Download official datasets; a download that broke off is continued.", "isic2017"),
        "audit": ("Find images that datasets share, within and across their splits.", "--data data"),
    },
    "the authors' commands, with their flags and defaults": {
        "train-vq": ("Train the tokenizer as their train_vq.py does.", "--train-data-dir A --val-data-dir B"),
        "train-seg": ("Train the segmenter as their train_seg.py does.", "-h"),
        "test-seg": ("Score a model on a folder by their rule.", "-h"),
    },
}
"""By group: what a command does, and an example."""
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of the system that are no defect of ours, whatever file they are about."""
FULL_CORE_DAYS = 80
"""Days on one core for the three stages of `revised` at preset `full`: 2,000 images, 100, 100 and 200 epochs, and 13, 7
and 8 measured seconds for an image."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something failed, 2 bad usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what cannot be encoded, such as a file's name, is escaped
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is ended on the way out
    try:
        return arguments.handler(arguments)
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not (sentence := _of_the_user(error, arguments)):
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1 if isinstance(error, OSError) and error.errno in OF_THE_DISK else 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _of_the_user(error: Exception, arguments: argparse.Namespace) -> str:
    """One sentence for an error about what the user gave; empty for a defect, whose traceback is wanted."""
    from tokencutseg.data.images import DataError

    if isinstance(error, ConfigError | DataError):
        return str(error)
    if not isinstance(error, OSError):
        return ""
    values = [one for value in vars(arguments).values() for one in (value if isinstance(value, list) else [value])]
    given = {value.absolute() for value in values if isinstance(value, Path)}
    file = Path(str(error.filename or "")).absolute()
    if error.errno not in OF_THE_DISK and not (error.filename and given & {file, *file.parents}):
        return ""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def _parser() -> argparse.ArgumentParser:
    lines = ["TokenCutSeg: a reproducibility study, and a segmenter of skin lesions."]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:"]
        for name, (text, example) in commands.items():
            lines += [f"  {name:10} {text}", f"{'':13}tokencutseg {name} {example}".rstrip()]
    parser = argparse.ArgumentParser(
        prog="tokencutseg",
        usage="tokencutseg [-h] [--version] COMMAND ...",
        description="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tokencutseg {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS)
    described = {name: text for group in COMMANDS.values() for name, (text, _) in group.items()}

    def command(name: str, handler: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, description=described[name], allow_abbrev=False)
        sub.set_defaults(handler=handler)
        return sub

    run = command("run", _run)
    run.add_argument("--preset", choices=PRESETS, default="quick", help="how much work (default: %(default)s)")
    run.add_argument("--recipe", choices=RECIPES, default="revised", help="which method (default: %(default)s)")
    folders: dict[str, Any] = {"action": "append", "default": [], "type": resolve, "metavar": "DIR"}
    text = "folder with datasets, see data/README.md; several times for several (default: synthetic lesions)"
    run.add_argument("--data", help=text, **folders)
    run.add_argument("--results", type=Path, default=results_folder(), metavar="DIR", help="(default: %(default)s)")
    cli_upstream.add_seed_and_set(run)
    part = run.add_mutually_exclusive_group()
    lists: dict[str, Any] = {"action": "extend", "default": [], "type": lambda text: text.split(",")}
    part.add_argument("--only", metavar="03[,04]", help="these notebooks only, by number", **lists)
    part.add_argument("--table", metavar="NAME[,NAME]", help="these tables only, without notebooks", **lists)
    part.add_argument("--train-only", action="store_true", help="only the trainings that the tables rest on")
    run.add_argument("--jobs", type=whole(1), metavar="N", help="notebooks (or trainings, without notebooks) at once")
    run.add_argument("--dask", metavar="ADDRESS", help="train on the cluster of this Dask scheduler, then go on here")
    cli_upstream.add_hardware(run, precision="auto")
    text = "most time for one cell (default: a week)"  # so that a hung kernel ends some day, and no honest training
    run.add_argument("--timeout", type=whole(1), default=7 * 24 * 3600, metavar="SECONDS", help=text)
    run.add_argument("--notebooks", type=Path, metavar="DIR", help="other notebooks than the checkout's own")
    run.add_argument("--again", action="store_true", help="execute notebooks that are done and unchanged, too")
    run.add_argument(
        "--dry-run", action="store_true", help="check settings and data, show what would be run, start nothing"
    )

    command("recipes", _recipes)

    segment = command("segment", cli_segment.segment)
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or a quoted pattern (a/*.jpg)")
    segment.add_argument("--model", type=resolve, metavar="RUN", help="a run's folder (default: the included model)")
    segment.add_argument("--out", type=Path, required=True, metavar="DIR", help="where masks and overlays go")
    cli_upstream.add_device(segment)

    explore = command("explore", cli_explore.explore)
    explore.add_argument("notebook", nargs="?", default="explorer", help="another notebook, by number: 01 to 05")
    explore.add_argument("--lab", action="store_true", help="open the explorer in JupyterLab, too, with its code")
    text = "for the explorer: a run's or study's folder (default: the included model)"
    explore.add_argument("--model", type=resolve, metavar="RUN", help=text)
    text = "for the explorer: folder with datasets (default: synthetic lesions)"
    explore.add_argument("--data", type=resolve, metavar="DIR", help=text)
    cli_upstream.add_device(explore)
    explore.add_argument("--port", type=whole(1, 65535), default=8888, metavar="N", help="or the next (default: 8888)")
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    explore.add_argument("--notebooks", type=Path, metavar="DIR", help="a folder with your own copies of them")

    fetch = command("fetch", _fetch)
    fetch.add_argument("names", nargs="+", metavar="NAME", help="such as isic2017; an unknown one lists them all")
    data = results_folder().with_name("data")
    fetch.add_argument("--data", type=Path, default=data, metavar="DIR", help="(default: %(default)s)")

    audit = command("audit", _audit)
    audit.add_argument("--data", required=True, help="folder with datasets; several times for several", **folders)
    audit.add_argument("--out", type=Path, metavar="DIR", help="write overlaps.csv and contact_sheet.png here")

    cli_upstream.add_commands(command)
    return parser


# run ----------------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    overrides = cli_upstream.read_overrides(arguments.overrides)
    config = configure(arguments.preset, arguments.recipe, arguments.seed, overrides)  # checked before slow imports
    executes = not (arguments.table or arguments.train_only)
    several = arguments.dask or arguments.gpus is not None or arguments.num_nodes > 1
    trains = not executes or several or arguments.precision != "auto"
    if arguments.only and trains:
        raise ConfigError("--only takes no --dask, --gpus, --num-nodes or --precision; train with --train-only first")
    if executes:
        cli_explore.need("papermill", "nbconvert")

    from tokencutseg.data.images import DataError, summed_up
    from tokencutseg.experiments.registry import TABLES, trainings
    from tokencutseg.experiments.study import Study
    from tokencutseg.report import notebooks as runner
    from tokencutseg.report.index import write_index

    notebooks = runner.find_notebooks(arguments.notebooks, arguments.only) if executes else []
    results, data = arguments.results.absolute(), [str(folder) for folder in arguments.data] or ""
    hardware = cli_upstream.hardware(arguments)
    if hardware.device != "auto":
        os.environ["TOKENCUTSEG_DEVICE"] = hardware.device  # for the notebooks
    study = Study.open(config.preset, config.recipe, config.seed, data, results, overrides, hardware)
    trainings(study)  # checks their plan, and that the data can be scored
    study.check_folder()
    parameters = {"preset": config.preset, "recipe": config.recipe, "seed": config.seed}
    parameters |= {"data": data, "results": str(results), "overrides": config.changes()}
    for path in (results, *arguments.data):
        if executes and os.fsencode(path) != str(path).encode(errors="replace"):
            raise ConfigError(f"the notebooks cannot be given {path}, which is not UTF-8; choose another folder")
    for notebook in notebooks:
        runner.check_parameters(notebook, parameters)
    if unknown := [name for name in arguments.table if name not in TABLES]:
        raise ConfigError(f"unknown table {unknown[0]!r}. Known: {', '.join(TABLES)}")
    # files are read now, so that what is wrong with them is not said by the first notebook
    problems = study.source.check() if arguments.data and not study.folder.exists() else []
    jobs = arguments.jobs or (2 if executes and config.preset == "tiny" else 1)  # tiny's notebooks are mostly start-up
    cores = available_cores()
    print(f"device     {hardware.describe(jobs)}", flush=True)
    if config.preset == "full" and hardware.found()[0].type == "cpu":
        days = FULL_CORE_DAYS / cores
        what = f"about {days:.0f} days for one training of the method on 2,000 images, on the {cores} cores here"
        print(f"note: preset full is made for a GPU; without one it takes {what}", file=sys.stderr)
    if arguments.dry_run:
        states = runner.states(notebooks, parameters, study.folder).items()
        planned = [("notebook", f"{path} ({state})") for path, state in states]
        planned = planned or [("table", name) for name in arguments.table]
        _describe(study, parameters, planned or [("trainings", "all that the tables rest on")])
    if problems:
        raise DataError(summed_up(problems))
    if arguments.dry_run:
        return 0
    runner.check_writable(results, "--results")
    if trains:
        _train(study, arguments)
    if not (executes and hardware.leading):  # of several processes one executes the notebooks
        return 0
    study.claim_folder()
    folder = study.folder
    del study  # the notebooks open the images themselves
    outcomes = runner.run_notebooks(notebooks, parameters, folder, jobs, arguments.timeout, arguments.again)
    index = write_index(folder, runner.find_notebooks(arguments.notebooks))
    done = sum(failure is None for failure in outcomes.values())
    print(f"{done} of {len(outcomes)} notebooks done: {index}")
    return 0 if done == len(outcomes) else 1


def _train(study: Study, arguments: argparse.Namespace) -> None:
    """Make the tables asked for, or do every training that some table rests on."""
    from tokencutseg.experiments.engine import train_missing
    from tokencutseg.experiments.registry import TABLES, trainings
    from tokencutseg.plots import ablations

    study.jobs, study.dask = arguments.jobs or 1, arguments.dask
    if study.hardware.devices * study.hardware.num_nodes > 1 and (study.jobs > 1 or study.dask):
        raise ConfigError("several GPUs share one training at a time: leave out --jobs and --dask, or --gpus")
    for name in arguments.table:
        table = study.table(name, TABLES[name](study))
        if draw := getattr(ablations, name, None):  # the figures of ablations are drawn from the tables of their names
            study.figure(name, draw(table))
        print(f"{name}: {study.folder / 'tables' / f'{name}.csv'}", flush=True)
    if not arguments.table:
        train_missing(study, trainings(study))
        print(f"all trainings are in {study.store.folder}", flush=True)


def _describe(study: Study, parameters: dict[str, Any], planned: Sequence[tuple[str, Any]]) -> None:
    data, images = study.config.data, study.source.describe()
    if not parameters["data"]:
        counts = f"{data.synthetic_train} train, {data.synthetic_validation} validation, {data.synthetic_test} test"
        images = [f"synthetic lesions at two sites, each {counts}", *images]
    rows = [("study", f"{study.folder}{'' if study.folder.exists() else ' (new)'}")]
    rows += [(name, json.dumps(value)) for name, value in parameters.items()]
    for name, value in (*rows, *(("images", line) for line in images), *planned):
        print(f"{name:10} {value}")


def _recipes(arguments: argparse.Namespace) -> int:
    rows = [("option", *RECIPES)]
    rows += [(name, *(str(recipe[name]) for recipe in RECIPES.values())) for name in RECIPES["released"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
        if row[0] in options() and (reason := options()[row[0]].metadata["reason"]):
            print(textwrap.fill(reason, 110, initial_indent="    ", subsequent_indent="    "))
    return 0


# fetch and audit ----------------------------------------------------------------------------------------------------


def _fetch(arguments: argparse.Namespace) -> int:
    from tokencutseg.data.download import archives, fetch
    from tokencutseg.data.images import DataError

    for name in arguments.names:
        archives(name)  # an unknown name is an error before anything is downloaded
    failed = 0
    for name in arguments.names:
        try:
            print(f"{name} is in {fetch(name, arguments.data)}")
        except DataError as error:
            failed = 1
            print(f"error: {error}", file=sys.stderr)
    return failed


def _audit(arguments: argparse.Namespace) -> int:
    from tokencutseg.data.images import DataError, summed_up
    from tokencutseg.data.source import open_source
    from tokencutseg.plots.evaluation import contact_sheet
    from tokencutseg.report.notebooks import check_writable

    if arguments.out:
        for name in ("overlaps.csv", "contact_sheet.png"):
            check_writable(arguments.out / name, "--out", file=True)
    source = open_source(arguments.data, configure(), strict=False)
    problems = source.check()
    print("\n".join(source.describe()))
    if problems:
        raise DataError(summed_up(problems))
    shared = source.overlaps
    print(shared.to_string(index=False) if len(shared) else "no image is shared")
    if arguments.out:
        pairs = [(dataset, split) for dataset, splits in source.datasets.items() for split in splits]
        write_csv(shared, arguments.out / "overlaps.csv")
        sheet = contact_sheet(shared, {pair: source.load(*pair) for pair in pairs})
        with atomic_write(arguments.out / "contact_sheet.png") as file:
            sheet.savefig(file, format="png", dpi=150, bbox_inches="tight")
        print(f"\nthe pairs: {arguments.out / 'overlaps.csv'}, {arguments.out / 'contact_sheet.png'}", flush=True)
    left_out = source.unlabelled_exclusions
    print(f"\nself-supervised stages use {len(source.unlabelled())} images; left out are {len(left_out)}")
    for reason, count in Counter(exclusion["reason"] for exclusion in left_out).most_common():
        print(f"{count:7d} {reason}")
    return 0
