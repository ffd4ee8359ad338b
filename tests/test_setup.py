"""The set-up: what is declared is what is imported, the scripts parse, and nothing names a package host."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
REGISTRIES = ("pypi", "pythonhosted", "download.pytorch", "anaconda", "npmjs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DISTRIBUTIONS = packages_distributions()
STARTED = {"jupyterlab", "voila", "ipykernel", "dask"}  # used by name or through another package, not by an import


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {normalised(re.match(r"[A-Za-z0-9._-]+", requirement).group()) for requirement in requirements}


BASE = names(PROJECT["project"]["dependencies"])
EXTRAS = {extra: names(listed) for extra, listed in PROJECT["project"]["optional-dependencies"].items()}
DEV = names(PROJECT["dependency-groups"]["dev"])
FULL = BASE.union(*EXTRAS.values())


def imported(*folders):
    """The distributions behind every import of the Python files in `folders`, the standard library's apart."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found = set()
    for node in (node for path in files if path.suffix == ".py" for node in ast.walk(ast.parse(path.read_text()))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {module.split(".")[0] for module in modules}
    local = {"tokencutseg", *(path.stem for path in files)}
    return {normalised(DISTRIBUTIONS.get(name, [name])[0]) for name in found - local - set(sys.stdlib_module_names)}


def test_declared_dependencies_are_the_imported_ones():
    assert imported("tokencutseg") | STARTED == FULL
    rooms = {path.name for path in (ROOT / "tokencutseg").iterdir() if path.is_dir()} - {"report", "explore"}
    assert not imported(*(f"tokencutseg/{room}" for room in rooms)) & EXTRAS["notebooks"]
    assert imported("tests", "benchmarks", "scripts") <= FULL | DEV


def test_package_works_without_its_extras():
    """Imports and `segment -h` with every module of the extras made unimportable."""
    blocked = {name.replace("-", "_") for extra in EXTRAS.values() for name in extra} | {"IPython"}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
import tokencutseg, tokencutseg.training.fit, tokencutseg.experiments.ablations, tokencutseg.plots.ablations
from tokencutseg.cli import main
main(["segment", "-h"])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_lock_holds_every_dependency_hashed_and_without_addresses():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    entries = [entry for entry in re.split(r"\n(?=\S)", lock.strip()) if not entry.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert names(entries) >= FULL | DEV


@pytest.mark.parametrize("script", ["run_all.sh", "run_tests.sh", "setup.sh", ".ci/run"])
def test_scripts_parse(script):
    checked = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr
    assert script == "setup.sh" or os.access(ROOT / script, os.X_OK)


def test_yaml_files_parse_and_hooks_use_locked_tools():
    files = ("environment.yml", ".github/workflows/ci.yml", "CITATION.cff", ".pre-commit-config.yaml")
    *_, hooks = [yaml.safe_load((ROOT / file).read_text()) for file in files]
    tools = {Path(hook["entry"].split()[0]) for repo in hooks["repos"] for hook in repo["hooks"]}
    assert {tool.name for tool in tools} <= DEV and {tool.parent for tool in tools} == {Path(".venv/bin")}


def test_no_file_names_a_package_registry():
    pattern = "|".join(("index" + "-url", *(rf"{name}\.org" for name in REGISTRIES)))
    found = subprocess.run(["git", "grep", "-IlE", pattern], cwd=ROOT, capture_output=True, text=True)
    if found.returncode == 128:
        pytest.skip("this is no git checkout")
    assert not found.stdout


# the set-up itself, in a folder where python is a stand-in that cannot reach anything ---------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A checkout with only what the set-up reads, and a PATH with nothing but the shell's own tools."""
    for name in ("setup.sh", "run_all.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("awk", "bash", "basename", "cat", "cksum", "cp", "dirname", "ls", "mkdir", "mv", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    return tmp_path


def set_up(checkout, **variables):
    """A started `set_up`, whose errors are read from its pipe."""
    command, variables = ["bash", "-euc", "source ./setup.sh; set_up"], variables | {"PATH": str(checkout / "tools")}
    return subprocess.Popen(command, cwd=checkout, env=variables, text=True, stderr=subprocess.PIPE)


def put_python(checkout, body):
    """A stand-in for python: `body` is shell code that looks at "$*"."""
    path = checkout / "tools" / "python3"
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


FAKE = """
echo "$(basename "$0") $*" >> LOG
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp LOG.python "$3/bin/python" ;;
    *--require-hashes*)
        for name in ${!UV_@} ${!SSL_@} PYTHONPATH; do echo "$name=${!name-}" >> LOG; done
        [ ! -e LOG.fail ] ;;
    "-c "* | "-I -") PYTHON "$@" ;;
esac"""


@pytest.fixture
def fake(checkout):
    """A function that runs the set-up with a stand-in for Python and returns its status and what it was asked to do;
    `fails` makes the installation fail."""
    log = checkout / "log"
    put_python(checkout, FAKE.replace("LOG", str(log)).replace("PYTHON ", f"{sys.executable} "))
    shutil.copy(checkout / "tools" / "python3", checkout / "log.python")

    def calls(fails=False, **variables):
        (checkout / "log.fail").touch() if fails else (checkout / "log.fail").unlink(missing_ok=True)
        log.write_text("")
        started = set_up(checkout, **variables)
        started.communicate()
        return started.returncode, log.read_text().splitlines()

    return calls


def made(calls):
    return any("-m venv" in call for call in calls)


def installed(calls):
    (call,) = (call for call in calls if "--require-hashes" in call)
    return call


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 1", "no Python 3.11 or newer found"),  # as an older one answers the version check
        ('[ "$2" != venv ]', "python3 cannot make a virtual environment; install its venv"),
    ],
)
def test_unfit_python_is_one_clear_sentence(checkout, fake, body, message):
    fit = (checkout / "tools" / "python3").read_text()
    put_python(checkout, body)
    started = set_up(checkout)
    assert f"error: {message}" in started.communicate()[1] and started.returncode == 1
    put_python(checkout, fit)
    assert fake()[0] == 0, "the next call goes on"


def test_second_call_does_nothing_and_a_new_lock_updates_in_place(fake, checkout):
    status, first = fake()
    assert status == 0 and made(first)
    for end in ("install --quiet --disable-pip-version-check uv", f"-e {checkout}"):
        assert any(call.endswith(end) for call in first)
    status, second = fake()
    assert status == 0 and len(second) == 1, "it looks at the version of Python"
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    (checkout / ".venv" / "mine").touch()
    status, third = fake()
    assert status == 0 and not made(third) and "--reinstall" not in installed(third) and "sync" not in installed(third)
    assert len(fake()[1]) == 1 and (checkout / ".venv" / "mine").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_venv_of_somebody_else_is_left_alone(fake, checkout, kind):
    venv = checkout / ".venv"
    if kind == "folder":
        (venv / "mine").mkdir(parents=True)
    elif kind == "file":
        venv.write_text("mine")
    else:
        venv.symlink_to("a-disk-that-is-not-there")
    assert fake()[0] == 1
    assert (venv / "mine").is_dir() if kind == "folder" else venv.is_symlink() or venv.read_text() == "mine"


def test_an_empty_folder_for_the_environment_is_used(fake, checkout):
    (checkout / "elsewhere").mkdir()
    (checkout / ".venv").symlink_to("elsewhere")
    assert fake()[0] == 0 and (checkout / "elsewhere" / "set-up-from").exists() and (checkout / ".venv").is_symlink()


def test_what_did_not_finish_is_gone_on_with_and_nothing_is_lost(fake, checkout):
    """Neither a failed first set-up or update nor one that was interrupted when some packages were there."""
    for interrupted in (False, False, True):
        assert fake(fails=True)[0] == 1
        (checkout / ".venv" / "mine").touch()
        if interrupted:
            half = checkout / ".venv" / "lib" / "python3.11" / "site-packages" / "half"
            half.mkdir(parents=True)
            os.utime(half.parent, (time.time() + 1,) * 2)  # a clock of coarse ticks gives both the same time
        status, calls = fake()
        assert status == 0 and not made(calls) and ("--reinstall" in installed(calls)) == interrupted
        assert (checkout / ".venv" / "mine").exists()
        (checkout / "requirements.lock").write_text((checkout / "requirements.lock").read_text() + "#\n")


@pytest.mark.parametrize("fault", ["moved", "without Python"])
def test_a_moved_or_broken_environment_is_made_anew_in_place(fake, checkout, fault):
    assert fake()[0] == 0
    stamp, python = checkout / ".venv" / "set-up-from", checkout / ".venv" / "bin" / "python"
    if fault == "moved":
        stamp.write_text(stamp.read_text().replace(str(checkout), "/elsewhere"))
    else:
        python.unlink()
        python.symlink_to("gone")
    (checkout / ".venv" / "mine").touch()
    status, calls = fake()
    assert status == 0 and made(calls) and (checkout / ".venv" / "mine").exists()


def test_where_packages_come_from_is_read_and_where_they_go_is_not(fake, checkout):
    (checkout / "pip.conf").write_text(
        "[global]\nfind-links = /a\n /b\ntarget = /poison\nuser = yes\n[install]\nno-index = yes\n"
    )
    status, calls = fake(
        PIP_CONFIG_FILE=str(checkout / "pip.conf"),
        PIP_INDEX_URL="https://mirror/simple",
        PIP_USER="1",
        PIP_TARGET="/poison",
        PYTHONPATH="/poison",
        PIP_CERT="/own.pem",
        SSL_CERT_FILE="/other.pem",
    )
    assert status == 0 and "--no-index" in installed(calls) and not any("poison" in call for call in calls)
    wanted = {"UV_DEFAULT_INDEX=https://mirror/simple", "UV_FIND_LINKS=/a,/b", "SSL_CERT_FILE=/own.pem", "PYTHONPATH="}
    assert wanted <= set(calls)


def test_without_cuda(fake, checkout):
    status, calls = fake(TOKENCUTSEG_CPU="1")
    lock = installed(calls).split()[-1]
    kept, whole = names_in(Path(lock)), names_in(ROOT / "requirements.lock")
    assert status == 0 and {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} <= whole - kept
    assert {"torchmetrics", "numpy"} <= kept
    assert all(re.match("torch|triton|cuda|nvidia", name) for name in whole - kept)
    assert any(re.search(r"torch==[\d.]+\+cpu torchvision==[\d.]+\+cpu$", call) for call in calls)
    (checkout / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    assert "--reinstall-package torch " in installed(fake()[1]), "1.0+cpu would count as 1.0"


def names_in(lock):
    return names(line for line in lock.read_text().splitlines() if re.match(r"\w", line))


@pytest.mark.skipif(not shutil.which("flock"), reason="this system has no flock")
def test_two_calls_at_once_install_once(fake, checkout):
    (checkout / "tools" / "flock").symlink_to(shutil.which("flock"))
    both = [set_up(checkout) for _ in range(2)]
    errors = [started.communicate()[1] for started in both]
    assert [started.returncode for started in both] == [0, 0], errors
    assert (checkout / "log").read_text().count("-m venv") == 1
