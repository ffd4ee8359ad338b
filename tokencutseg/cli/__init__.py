"""The command line. Handlers import what they need, so that help is instant.

`run`, `fetch`, `audit`, `explore`, `report`, `publish`, `bench` and `segment` are here, `train` and `tables` in
`tokencutseg.cli.training`, and what the authors' README has in `tokencutseg.cli.authors`.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencutseg.cli import authors, training
from tokencutseg.cli.common import FAILED, OK, UsageError, check_file, positive, read_overrides, terminable
from tokencutseg.cli.training import add_study
from tokencutseg.config import Config, ConfigError, configure

if TYPE_CHECKING:
    import numpy as np

BAD_USAGE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something failed, 2 bad usage, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else argv  # for commands that start themselves once more
    try:
        return arguments.handler(arguments)
    except KeyboardInterrupt:
        if not getattr(arguments, "helping", False):  # then another process says it
            print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if not _is_the_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


def _is_the_users(error: Exception) -> bool:
    """Whether `error` is about what the user gave us (then its message is enough) or a defect (then not)."""
    from tokencutseg.data.images import DataError
    from tokencutseg.report.notebooks import RunError

    return isinstance(error, ConfigError | UsageError | DataError | RunError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tokencutseg", description="TokenCutSeg: the study and the segmenter.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(handler=handler)
        return sub

    run = command("run", _run, "Execute the study's notebooks; what is done already is not done again.")
    add_study(run)
    run.add_argument(
        "--only",
        action="extend",
        default=[],
        type=lambda text: text.split(","),
        metavar="03[,04]",
        help="execute these notebooks only, named by number",
    )
    run.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="notebooks at once (default: 1; 2 for preset tiny, which is mostly start-up)",
    )
    run.add_argument(
        "--timeout",
        type=positive,
        metavar="SECONDS",
        help="most time that one notebook cell may take (default: a week)",
    )
    run.add_argument("--notebooks", type=Path, metavar="DIR", help="other notebooks than the checkout's own")
    run.add_argument("--again", action="store_true", help="execute notebooks again that are done and unchanged")
    run.add_argument("--dry-run", action="store_true", help="show what would be run, and start nothing")

    fetch = command("fetch", _fetch, "Download official datasets; a download that broke off goes on where it stopped.")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="isic2016, isic2017, isic2018 or ham10000")
    fetch.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")

    audit = command("audit", _audit, "Look for images that the datasets share, within and across their splits.")
    audit.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with datasets")
    audit.add_argument("--out", type=Path, metavar="DIR", help="write overlaps.csv and contact_sheet.png here")

    segment = command("segment", _segment, "Segment images: for each a mask (0 or 255) and an overlay, both PNG.")
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or a quoted pattern (a/*.jpg)")
    segment.add_argument(
        "--model",
        type=Path,
        metavar="RUN",
        help="a run's folder or its saved model (default: the one that comes with the package)",
    )
    segment.add_argument("--out", type=Path, required=True, metavar="DIR", help="where masks and overlays go")

    explore = command("explore", _explore, "Open the explorer in JupyterLab: words, attention and cuts to touch.")
    explore.add_argument(
        "--model",
        type=Path,
        metavar="RUN",
        help="a segmenter's folder (default: the one trained last "
        "under results, else the one that comes with the package)",
    )
    explore.add_argument("--data", type=Path, metavar="DIR", help="folder with datasets (default: synthetic lesions)")
    explore.add_argument(
        "--port", type=positive, default=8888, metavar="N", help="(default: %(default)s, or the next free one)"
    )
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    explore.add_argument(
        "--notebooks",
        type=Path,
        metavar="DIR",
        help="a folder with explorer.ipynb, such as your own copy of the checkout's (the default)",
    )

    report = command("report", _report, "Write one self-contained page about a study, or two side by side.")
    report.add_argument(
        "studies",
        nargs="+",
        type=Path,
        metavar="STUDY",
        help="a study's folder, such as results/quick-synthetic; or two of them",
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="(default: report.html in the first study's folder)")

    publish = command(
        "publish",
        _publish,
        "Copy what of a study can be passed on: tables, the figures that show no "
        "image, and its trainings without weights.",
    )
    publish.add_argument("study", type=Path, metavar="STUDY", help="a study's folder, such as results/small-isic")
    publish.add_argument("target", type=Path, metavar="DIR", help="where to; what is there already is added to")

    bench = command("bench", _bench, "Time each part of the method against its plain formulation.")
    bench.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    bench.add_argument("--quick", action="store_true", help="fewer rounds, and no grid above 56 × 56 tokens")
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("results/bench"),
        metavar="DIR",
        help="where tables and figures go (default: %(default)s)",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file too")

    training.add_commands(command)
    authors.add_commands(command)
    return parser


# run ----------------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    config = configure(arguments.preset, arguments.recipe, arguments.seed, read_overrides(arguments.overrides))

    from tokencutseg.data.source import open_source
    from tokencutseg.experiments.study import study_name
    from tokencutseg.report import notebooks as runner
    from tokencutseg.report.index import write_index

    folder = arguments.notebooks or runner.ROOT / "notebooks"
    notebooks = runner.find_notebooks(folder, arguments.only)
    study = arguments.results.absolute() / study_name(config, open_source(arguments.data, config).study_name)
    parameters = {
        "preset": config.preset,
        "recipe": config.recipe,
        "seed": config.seed,
        "data": str(arguments.data.absolute()) if arguments.data else "",
        "results": str(study.parent),
        "overrides": config.changes(),
    }
    for notebook in notebooks:
        runner.check_parameters(notebook, parameters)
    if arguments.dry_run:
        _describe(config, arguments.data, study, notebooks, parameters)
        return OK

    with terminable():  # the notebooks' processes are ended on the way out
        jobs = arguments.jobs or (2 if arguments.preset == "tiny" else 1)
        outcomes = runner.run_study(
            notebooks,
            parameters,
            study,
            jobs=jobs,
            timeout=arguments.timeout or runner.CELL_TIMEOUT,
            again=arguments.again,
        )
    index = write_index(study, runner.find_notebooks(folder))
    done = sum(outcome.failure is None for outcome in outcomes)
    print(f"{done} of {len(outcomes)} notebooks done: {index}")
    return OK if done == len(outcomes) else FAILED


def _describe(
    config: Config, data: Path | None, study: Path, notebooks: Sequence[Path], parameters: dict[str, Any]
) -> None:
    from tokencutseg.data.datasets import find_datasets

    print(f"study      {study.name}\nfolder     {study}{'' if study.exists() else ' (new)'}")
    print(f"settings   preset {config.preset}, recipe {config.recipe}, seed {config.seed}")
    for key, value in parameters["overrides"].items():
        print(f"           {key} = {json.dumps(value)}")
    if data is None:
        sizes = config.data
        print(
            f"data       synthetic lesions at two sites, each {sizes.synthetic_train} train, "
            f"{sizes.synthetic_validation} validation, {sizes.synthetic_test} test, "
            f"and {sizes.synthetic_unlabelled} unlabelled in all"
        )
    else:
        for dataset, splits in find_datasets(data).items():
            for split in splits.values():
                whole = "" if split.complete else f" of {split.expected}: partial"
                print(f"data       {dataset}/{split.name}: {len(split.samples)}{whole}")
    for notebook in notebooks:
        print(f"notebook   {notebook}")
    print(f"parameters {json.dumps(parameters)}")


# fetch and audit ----------------------------------------------------------------------------------------------------


def _fetch(arguments: argparse.Namespace) -> int:
    from tokencutseg.data.download import archives, fetch
    from tokencutseg.data.images import DataError

    for name in arguments.names:
        archives(name)  # an unknown name is an error before anything is downloaded
    status = OK
    for name in arguments.names:
        try:
            print(f"{name} is in {fetch(name, arguments.data)}")
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            status = FAILED
    return status


def _audit(arguments: argparse.Namespace) -> int:
    from tokencutseg.data.audit import overlaps
    from tokencutseg.data.source import open_source
    from tokencutseg.plots.evaluation import contact_sheet
    from tokencutseg.report.notebooks import check_writable

    if arguments.out:
        check_writable(arguments.out, "--out")
    source = open_source(arguments.data, configure())
    sets = {
        (dataset, split): source.load(dataset, split) for dataset, splits in source.datasets.items() for split in splits
    }
    shared = overlaps(sets, progress=sys.stderr.isatty())
    print(shared.to_string(index=False) if len(shared) else "no image is shared")
    left_out = source.unlabelled_exclusions
    print(f"\nself-supervised stages use {len(source.unlabelled())} images; left out are {len(left_out)}")
    for reason, count in Counter(exclusion["reason"] for exclusion in left_out).most_common():
        print(f"{count:7d} {reason}")
    if arguments.out:
        shared.to_csv(arguments.out / "overlaps.csv", index=False)
        contact_sheet(shared, sets).savefig(arguments.out / "contact_sheet.png", dpi=150, bbox_inches="tight")
        print(f"\nthe pairs: {arguments.out / 'overlaps.csv'}, {arguments.out / 'contact_sheet.png'}")
    return OK


# bench --------------------------------------------------------------------------------------------------------------


def _bench(arguments: argparse.Namespace) -> int:
    import torch

    from tokencutseg.bench import report
    from tokencutseg.report.notebooks import check_writable

    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but there is no GPU here; use --device cpu")
    check_writable(arguments.out, "--out")
    if arguments.json:
        check_file(arguments.json, "--json")
    result = report.run(device, arguments.quick)
    report.write(result, arguments.out)
    if arguments.json:
        arguments.json.write_text(report.dumped(result) + "\n")
    print(f"\nwritten to {arguments.out}")
    return OK


# segment ------------------------------------------------------------------------------------------------------------


def _segment(arguments: argparse.Namespace) -> int:
    import tokencutseg
    from tokencutseg.data.images import DataError, read_image
    from tokencutseg.report.notebooks import check_writable

    if arguments.model and not arguments.model.exists():
        raise UsageError(f"--model {arguments.model} does not exist")
    images, failures = _find_images(arguments.images)
    for image in images:
        if image.parent.resolve() == arguments.out.resolve():
            raise UsageError(f"--out must be another folder than that of {image}: a mask there could be overwritten")
    stems = list(_output_stems(images))
    for stem in stems:  # of ours each mask has an overlay beside it
        if (arguments.out / f"{stem}_mask.png").exists() and not (arguments.out / f"{stem}_overlay.png").exists():
            raise UsageError(
                f"{arguments.out / f'{stem}_mask.png'} is there already and not from an earlier call; "
                f"choose another folder with --out"
            )
    model = tokencutseg.load(arguments.model)
    check_writable(arguments.out, "--out")
    for image, stem in zip(images, stems, strict=True):
        try:
            pixels = read_image(image)
        except DataError as error:
            failures.append(str(error))
            continue
        mask = model.predict(pixels)
        _save(_overlay(pixels, mask.astype(bool)), arguments.out / f"{stem}_overlay.png")
        _save(mask.astype("uint8") * 255, arguments.out / f"{stem}_mask.png")
        print(f"{image} -> {arguments.out / f'{stem}_mask.png'}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return FAILED if failures else OK


def _explore(arguments: argparse.Namespace) -> int:
    from tokencutseg.report.notebooks import ROOT

    for option in ("model", "data"):
        path = getattr(arguments, option)
        if path is not None and not path.exists():
            raise UsageError(f"--{option} {path} does not exist")
    notebooks = (arguments.notebooks or ROOT / "notebooks").absolute()
    if not (notebooks / "explorer.ipynb").exists():
        raise UsageError(f"{notebooks} holds no explorer.ipynb; name a folder that does with --notebooks")
    environment = os.environ | {
        f"TOKENCUTSEG_EXPLORE_{option.upper()}": str(getattr(arguments, option).absolute())
        for option in ("model", "data")
        if getattr(arguments, option) is not None
    }
    # defaults of JupyterLab's settings, which the user's own override: it does not ask whether it may fetch news
    paths = [str(Path(__file__).parent / "jupyter"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    environment["JUPYTER_CONFIG_PATH"] = os.pathsep.join(paths)
    # it asks for the token that it prints, and listens to this machine alone
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={notebooks}",
        "--LabApp.default_url=/lab/tree/explorer.ipynb",
        "--ip=127.0.0.1",
        f"--port={arguments.port}",
        *(["--no-browser"] if arguments.no_browser else []),
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
    ]  # as in a container
    with subprocess.Popen(command, env=environment) as server:
        # Ctrl-C reaches JupyterLab too, which asks whether to shut down: this process only waits for what it does
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        terminate = signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        try:
            return server.wait()
        finally:
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, terminate)


def _report(arguments: argparse.Namespace) -> int:
    from tokencutseg.study.report import write_report

    if len(arguments.studies) > 2:
        raise UsageError(f"report takes one study or two, not {len(arguments.studies)}")
    print(write_report(arguments.studies, arguments.out))
    return OK


def _publish(arguments: argparse.Namespace) -> int:
    from tokencutseg.report.notebooks import check_writable
    from tokencutseg.study.publish import publish

    check_writable(arguments.target, "DIR")
    paths = publish(arguments.study, arguments.target)
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 2**20:.1f} MiB, in {arguments.target}")
    return OK


def _find_images(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that the arguments mean, each once, and a sentence for each argument that means none."""
    from tokencutseg.data.datasets import IMAGE_SUFFIXES

    found: dict[Path, Path] = {}  # by real path
    failures = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
                and not file.stem.endswith("_superpixels")
            )
        elif path.exists() or not glob.has_magic(argument):
            files = [path]  # a file that is missing is reported when it is read
        else:
            matches = glob.glob(argument, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
            files = sorted(Path(match) for match in matches if Path(match).is_file())
        if not files:
            failures.append(f"{argument} holds no image" if path.is_dir() else f"no file matches {argument}")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values()), failures


def _output_stems(images: Sequence[Path]) -> Iterator[str]:
    """A name for each image's output: its own, with a number behind it where that is taken (in any case of letters)."""
    taken: set[str] = set()
    for image in images:
        stem, number = image.stem, 2
        while stem.lower() in taken:
            stem, number = f"{image.stem}-{number}", number + 1
        taken.add(stem.lower())
        yield stem


def _overlay(pixels: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The image uint8 (H, W, 3) with the outline of the mask bool (H, W) drawn just inside it."""
    from scipy.ndimage import binary_erosion

    width = max(1, round(max(lesion.shape) / 200))
    drawn = pixels.copy()
    drawn[lesion & ~binary_erosion(lesion, iterations=width)] = (0, 190, 255)  # no skin has this blue
    return drawn


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)
