#!/usr/bin/env bash
# Goes through what people meet when they use a fresh clone, each case with its right outcome; takes minutes and a package index.
#   tests/walkthrough.sh                    every case; sets up the clone first
#   tests/walkthrough.sh p02 p08_no_home    these, by the beginnings of their names
#   PYTHON=.venv/bin/python tests/walkthrough.sh p09    with the packages of an environment that is there, without set-up
# A case is a function pNN_…, which runs with `set -e` in an empty folder: it passes unless a command fails, and is left out
# where it returns 77 (it needs something that is not here).
set -euo pipefail
source_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d "${TMPDIR:-/tmp}/walkthrough.XXXXXX")"
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
clone="$work/clone"
export TOKENCUTSEG_CACHE="$work/cache" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# helpers ---------------------------------------------------------------------------------------------------------------

# Runs the clone's command as a reader does.
tcs() {
    if [ -n "${PYTHON:-}" ]; then
        PYTHONPATH="$clone" "$PYTHON" -m tokencutseg "$@"
    else
        "$clone/.venv/bin/tokencutseg" "$@"
    fi
}

# Python with the clone's package.
py() { PYTHONPATH="$clone" "${PYTHON:-$clone/.venv/bin/python}" "$@"; }

# works COMMAND...: ends with 0 and shows no traceback. The output is in $said.
works() {
    said="$("$@" 2>&1)" || { echo "exit status $? of: $*"; echo "$said"; return 1; }
    echo "$said"
    [[ "$said" != *Traceback* ]] || { echo "a traceback from: $*"; return 1; }
}

# refuses PATTERN COMMAND...: ends with another status, without a traceback, and with a sentence that has PATTERN (a regular expression).
refuses() {
    local pattern="$1" status=0
    shift
    said="$("$@" 2>&1)" || status=$?
    echo "$said"
    [ "$status" != 0 ] || { echo "should have failed: $*"; return 1; }
    [ "$status" -lt 126 ] || [ "$status" = 130 ] || { echo "exit status $status of: $*"; return 1; }
    [[ "$said" != *Traceback* ]] || { echo "a traceback from: $*"; return 1; }
    grep -qE "$pattern" <<<"$said" || { echo "does not say /$pattern/: $*"; return 1; }
}

# Every file below a folder with its checksum: to compare before and after.
contents() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum); }

# photo FILE [WIDTH HEIGHT]: a picture of a dark spot on skin.
photo() {
    py - "$@" <<'PY'
import sys

from PIL import Image, ImageDraw

file, width, height = sys.argv[1], *map(int, [*sys.argv[2:], 160, 120][:2])
image = Image.new("RGB", (width, height), (224, 172, 150))
ImageDraw.Draw(image).ellipse((width * 0.3, height * 0.3, width * 0.7, height * 0.7), fill=(90, 50, 40))
image.save(file)
PY
}

# 1: results and data are found wherever one stands ---------------------------------------------------------------------

p01_results_and_data_of_the_checkout_from_any_folder() {
    mkdir -p "$clone/data/photos/images" "$clone/data/photos/masks" results
    works tcs run --preset tiny --dry-run
    grep -qF "$clone/results/tiny-synthetic" <<<"$said"
    works tcs run --preset tiny --dry-run --results here
    grep -qF "$PWD/here/tiny-synthetic" <<<"$said"
    refuses "$clone/data/photos" tcs run --data data/photos --dry-run
    rm -r "$clone/data/photos"
    rmdir results
    [ -z "$(ls)" ]
}

# A notebook, opened from its own folder or copied elsewhere, finds the trainings of a finished study.
p01_notebooks_find_the_study() {
    local kernel trained
    works tcs run --preset tiny --only 02
    trained="$(ls "$clone/results/runs")"
    sed 's/preset = \\"quick\\"/preset = \\"tiny\\"/' "$clone/notebooks/02_masked_gpt.ipynb" >02.ipynb
    for kernel in "$clone/notebooks" "$PWD"; do
        cat >convert.py <<'PY'
import sys

import nbformat
from nbclient import NotebookClient

NotebookClient(nbformat.read("02.ipynb", 4), resources={"metadata": {"path": sys.argv[1]}}).execute()
PY
        py convert.py "$kernel"
    done
    [ "$(ls "$clone/results/runs")" = "$trained" ]
    [ "$(ls)" = "$(printf '02.ipynb\nconvert.py')" ]
    [ -z "$(git -C "$clone" status --porcelain)" ]
}

# run ---------------------------------------------------------------------------------------------------------------------

git clone -q "$source_root" "$clone"
if [ -z "${PYTHON:-}" ]; then
    started=$SECONDS
    (source "$clone/setup.sh" && set_up)
    echo "set-up: $((SECONDS - started)) s"
fi
passed=0 failed=() left_out=()
for name in $(compgen -A function | grep -E '^p[0-9]{2}_'); do
    chosen=$([ $# = 0 ] && echo yes || true)
    for wanted in "$@"; do
        [[ "$name" != "$wanted"* ]] || chosen=yes
    done
    [ -n "$chosen" ] || continue
    mkdir "$work/$name"
    started=$SECONDS status=0
    set +e
    (set -eE; trap 'echo "line $LINENO: $BASH_COMMAND"' ERR; cd "$work/$name"; "$name") >"$work/$name.log" 2>&1 </dev/null
    status=$?
    set -e
    case $status in
        0) passed=$((passed + 1)); echo "ok        $name ($((SECONDS - started)) s)" ;;
        77) left_out+=("$name"); echo "left out  $name: $(tail -n 1 "$work/$name.log")" ;;
        *) failed+=("$name"); echo "FAILED    $name"; sed 's/^/    | /' "$work/$name.log" | tail -n 40 ;;
    esac
done
echo "$passed passed, ${#failed[@]} failed, ${#left_out[@]} left out"
[ ${#failed[@]} = 0 ]
