"""The documents: links lead somewhere, and commands, options and files that they name exist."""

import re
import shlex
from pathlib import Path

import pytest

from tokencutseg.cli import main
from tokencutseg.config import options

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "data", "results", "results/reference/*", "tests/fixtures", "tokencutseg/*")
DOCUMENTS = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md"))
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(text):
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text):
    """Words of each command line in code blocks and spans, the continued lines joined."""
    code = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text))
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:  # an environment variable
            words.pop(0)
        if words and words[0].endswith("tokencutseg") and len(words) > 1:
            yield words[1], words[2:]
        elif words and words[0] == "./run_all.sh":
            yield "run", words[1:]


@each_document
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


@each_document
def test_commands_exist(path, capsys):
    for command, words in commands(path.read_text()):
        with pytest.raises(SystemExit) as left:
            main([command, "-h"])
        assert left.value.code == 0, command
        usage = capsys.readouterr().out
        flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert all(re.search(rf"{flag}\b", usage) for flag in flags), (command, flags)


@each_document
def test_options_exist(path):
    sections = "data|vqgan|masked_gpt|segmentation|evaluation|ablation"
    named = set(re.findall(rf"(?<![\w.])((?:{sections})\.[a-z_0-9]+)\b", path.read_text()))
    files = {name for name in named if name.endswith((".py", ".md", ".csv"))}
    assert named - files - {"vqgan.quantizer"} <= set(options())  # an example of a new option


@each_document
def test_files_exist(path):
    """Files of the repository that stand in code spans, relative to the root or to the package."""
    for name in re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|md|sh|toml|yml|svg|ipynb))`", path.read_text()):
        assert (ROOT / name).exists() or (ROOT / "tokencutseg" / name).exists(), name


def test_diffs_fit_the_code():
    """What the diffs of extending.md leave or take away stands in the package, in this order within one file."""
    sources = [path.read_text() for path in (ROOT / "tokencutseg").rglob("*.py")]
    diffs = re.findall(r"```diff\n(.+?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    for diff in diffs:
        old = [line[1:] for line in diff.splitlines() if line[:1] in (" ", "-") and line.strip()]
        assert old and any(re.search(".*?".join(map(re.escape, old)), source, re.DOTALL) for source in sources), old
    assert len(diffs) >= 5


@pytest.mark.slow
def test_picture_of_the_method(tmp_path, monkeypatch):
    """The committed picture has the labels that the code beside it draws with the packaged model."""
    (drawing,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(drawing, {})
    drawn, committed = (
        set(re.findall(r"<!-- (.+?) -->", (folder / "docs/method.svg").read_text())) for folder in (tmp_path, ROOT)
    )
    assert drawn == committed and len(drawn) > 5
