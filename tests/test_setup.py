"""The set-up: its lists agree with each other, its scripts parse, and nothing points at one package host."""

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
SCRIPTS = ["run_all.sh", "run_tests.sh", "setup.sh", ".ci/run"]
HOSTS = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "download.pytorch" + ".org",
    "anaconda" + ".org",
    "npmjs" + ".org",
    "index" + "-url",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement):
    return normalised(re.match(r"[A-Za-z0-9._-]+", requirement).group())


def test_environment_yml_lists_pyprojects_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python" + PROJECT["project"]["requires-python"], "pip"]
    assert pip["pip"] == [*PROJECT["project"]["dependencies"], "-e ."]


def test_lock_holds_every_dependency_hashed_and_without_addresses():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    entries = re.split(r"\n(?=\S)", lock.strip())
    locked = {requirement_name(entry) for entry in entries if not entry.startswith("#")}
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))
    wanted = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
    assert {requirement_name(requirement) for requirement in wanted} <= locked


def test_lock_pins_the_lightning_release_that_was_checked():
    assert re.search(r"^pytorch-lightning==2\.6\.6 ", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script):
    checked = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr
    assert script == "setup.sh" or os.access(ROOT / script, os.X_OK)


def test_no_file_names_a_registry_host():
    folders = ["notebooks", "tokencutseg", "tests", ".ci"]
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".png"}
    ]
    assert len(files) > 20
    named = [(path.name, host) for path in files for host in HOSTS if host in path.read_text(errors="ignore")]
    assert not named


# the set-up itself, in a folder where python is a stand-in that cannot reach anything ---------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A checkout with only what the set-up reads, and a PATH with nothing but the shell's own tools."""
    for name in ("setup.sh", "run_all.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "dirname", "head", "mv", "rm", "sleep", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    return tmp_path


def set_up(checkout, **environment):
    return subprocess.run(
        [shutil.which("bash"), "-c", "source ./setup.sh; set_up"],
        cwd=checkout,
        text=True,
        capture_output=True,
        env={"PATH": str(checkout / "tools"), **environment},
    )


def put_python(checkout, body, name="python3"):
    """A stand-in for python: `body` is shell code that looks at "$*"."""
    path = checkout / "tools" / name
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


def test_no_python_is_one_clear_sentence(checkout):
    put_python(checkout, "exit 1")  # Python 3.10: the version check fails
    done = set_up(checkout)
    assert done.returncode == 1 and "error: no Python 3.11 or newer found" in done.stderr


def test_python_without_venv_is_one_clear_sentence(checkout):
    put_python(checkout, '[ "$2" != venv ]')
    done = set_up(checkout)
    assert done.returncode == 1
    assert "error: python3 cannot make a virtual environment" in done.stderr and "python3-venv" in done.stderr
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
        done = set_up(checkout)
        return done.returncode, [
            line for line in log.read_text().splitlines() if re.search(r"venv |uv|sync|install", line)
        ]

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
    both = [
        subprocess.Popen(
            [shutil.which("bash"), "-c", "source ./setup.sh; set_up"],
            cwd=checkout,
            env={"PATH": str(checkout / "tools")},
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert (checkout / "log").read_text().count("-m venv") == 1
