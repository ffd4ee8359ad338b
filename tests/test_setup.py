"""The set-up: what is declared is what is imported, the scripts parse, and nothing names a package host."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
REGISTRIES = ("pypi", "pythonhosted", "download.pytorch", "anaconda", "npmjs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
STARTED = {"jupyterlab", "ipykernel", "dask"}  # used by name or through another package, not by an import


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
    return {normalised(DISTRIBUTIONS.get(name, name)) for name in found - local - set(sys.stdlib_module_names)}


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
    for tool in ("bash", "cat", "dirname", "head", "mkdir", "mv", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    return tmp_path


def set_up(checkout):
    """A started `set_up`, whose errors are read from its pipe."""
    command, environment = [shutil.which("bash"), "-c", "source ./setup.sh; set_up"], {"PATH": str(checkout / "tools")}
    return subprocess.Popen(command, cwd=checkout, env=environment, text=True, stderr=subprocess.PIPE)


def put_python(checkout, body):
    """A stand-in for python: `body` is shell code that looks at "$*"."""
    path = checkout / "tools" / "python3"
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 1", "no Python 3.11 or newer found"),  # as an older one answers the version check
        ('[ "$2" != venv ]', "python3 cannot make a virtual environment; install its venv"),
    ],
)
def test_unfit_python_is_one_clear_sentence(checkout, body, message):
    put_python(checkout, body)
    started = set_up(checkout)
    assert f"error: {message}" in started.communicate()[1] and started.returncode == 1
    assert not (checkout / ".venv").exists()


FAKE = """
echo "$(basename "$0") $*" >> "{log}"
case "$*" in
    "-m venv "*) /bin/mkdir -p "$3/bin"; /bin/cp "$0" "$3/bin/python" ;;
    *" sync "*) [ ! -e "{log}.fail" ] ;;
    "- "*) {python} "$@" ;;
esac"""


@pytest.fixture
def fake(checkout):
    """A stand-in that notes what it is asked to do; `fails` makes the installation fail."""
    (checkout / "tools" / "basename").symlink_to(shutil.which("basename"))
    log = checkout / "log"
    put_python(checkout, FAKE.format(log=log, python=sys.executable))

    def calls(fails=False):
        (checkout / "log.fail").touch() if fails else (checkout / "log.fail").unlink(missing_ok=True)
        log.write_text("")
        status = set_up(checkout).wait()
        return status, [line for line in log.read_text().splitlines() if re.search(r"venv |uv|sync|install", line)]

    return calls


def test_second_call_does_nothing_and_a_new_lock_only_syncs(fake, checkout):
    status, first = fake()
    assert status == 0 and "-m venv" in first[0]
    assert any("install" in call and call.endswith("uv") for call in first)
    assert any("sync" in call and "--require-hashes" in call for call in first)
    assert any("--no-deps -e" in call for call in first)
    assert fake() == (0, [])
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    status, third = fake()
    assert status == 0 and not any("-m venv" in call for call in third) and any("sync" in call for call in third)
    assert fake() == (0, [])


def test_a_venv_of_somebody_else_is_left_alone(fake, checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "mine").touch()
    assert fake() == (1, [])
    assert (checkout / ".venv" / "mine").exists()


def test_an_interrupted_set_up_is_made_anew(fake, checkout):
    assert fake(fails=True)[0] == 1
    (checkout / ".venv" / "half").touch()
    status, calls = fake()
    assert status == 0 and any("-m venv" in call for call in calls)
    assert not (checkout / ".venv" / "half").exists()


def test_a_moved_checkout_makes_its_own_environment(fake, checkout):
    assert fake()[0] == 0
    stamp = checkout / ".venv" / "set-up-from"
    stamp.write_text(stamp.read_text().replace(str(checkout), "/elsewhere"))
    status, calls = fake()
    assert status == 0 and any("-m venv" in call for call in calls)


@pytest.mark.skipif(not shutil.which("flock"), reason="this system has no flock")
def test_two_calls_at_once_install_once(fake, checkout):
    (checkout / "tools" / "flock").symlink_to(shutil.which("flock"))
    fake()
    shutil.rmtree(checkout / ".venv")
    (checkout / "log").write_text("")
    both = [set_up(checkout) for _ in range(2)]
    errors = [started.communicate()[1] for started in both]
    assert [started.returncode for started in both] == [0, 0], errors
    assert (checkout / "log").read_text().count("-m venv") == 1
