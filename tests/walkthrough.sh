#!/usr/bin/env bash
# Goes through what people meet when they use a fresh clone, each case with its right outcome; takes minutes and a package index.
#   tests/walkthrough.sh                    every case; sets up the clone first
#   tests/walkthrough.sh p02 p08_a_home     these, by the beginnings of their names
#   PYTHON=.venv/bin/python tests/walkthrough.sh p10    with the packages of an environment that is there, without set-up
# A case is a function pNN_…, which runs with `set -e` in an empty folder: it passes unless a command fails, and is left out
# where it returns 77 (it needs something that is not here).
set -euo pipefail
source_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d "${TMPDIR:-/tmp}/walkthrough.XXXXXX")"
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
chmod 755 "$work"
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

# photo FILE: a picture of a dark spot on skin.
photo() {
    py - "$@" <<'PY'
import sys

from PIL import Image, ImageDraw

image = Image.new("RGB", (160, 120), (224, 172, 150))
ImageDraw.Draw(image).ellipse((48, 36, 112, 84), fill=(90, 50, 40))
image.save(sys.argv[1])
PY
}

# bare FOLDER: a clone whose lock has one small package, and set_up_in FOLDER sets it up: seconds instead of a minute.
bare() {
    git clone -q "$source_root" "$1"
    awk '/^[^ #]/ { keep = /^tqdm==/ } keep' "$source_root/requirements.lock" >"$1/requirements.lock"
}
set_up_in() { env -u PYTHON bash -euc 'source "$0/setup.sh"; set_up' "$1"; }
has_tqdm() { "$1/.venv/bin/python" -c 'import tqdm, sys; sys.exit(not tqdm.__file__.startswith(sys.prefix))'; }

# as_reader COMMAND...: where file permissions count, as they do not for root.
as_reader() {
    if [ "$(id -u)" != 0 ]; then
        "$@"
    else
        setpriv --inh-caps=-dac_override,-dac_read_search --bounding-set=-dac_override,-dac_read_search -- "$@"
    fi
}

# 2: nothing is deleted that we did not make -----------------------------------------------------------------------------

p02_a_failed_update_and_files_of_ones_own() {
    bare clone
    works set_up_in clone
    echo 'VALUE = 1' >clone/.venv/lib/mine.py
    cp clone/.venv/lib/mine.py "$(echo clone/.venv/lib/python3.*/site-packages)"
    sed -i 's/sha256:./sha256:0/' clone/requirements.lock
    sed -i '1s/==[0-9.]*/==4.67.0/' clone/requirements.lock
    refuses 'did not finish' set_up_in clone
    has_tqdm clone
    refuses 'did not finish' set_up_in clone
    has_tqdm clone
    git -C "$source_root" show HEAD:requirements.lock | awk '/^[^ #]/ { keep = /^(tqdm|packaging)==/ } keep' >clone/requirements.lock
    works set_up_in clone
    has_tqdm clone
    clone/.venv/bin/python -c 'import mine, packaging'
    [ -e clone/.venv/lib/mine.py ]
}

# 3: mirrors and proxies --------------------------------------------------------------------------------------------------

p03_a_mirror_behind_no_network() {
    local folder name port server
    bare clone
    works set_up_in clone
    clone/.venv/bin/python -m pip download -q -d files uv hatchling editables "$(head -n 1 clone/requirements.lock | cut -d' ' -f1)"
    for name in files/*; do
        folder="mirror/simple/$(basename "$name" | cut -d- -f1 | tr '_.A-Z' '--a-z')"
        mkdir -p "$folder"
        cp "$name" "$folder"
    done
    clone/.venv/bin/python -u -m http.server -b 127.0.0.1 -d mirror 0 >log 2>&1 &
    server=$!
    while ! port="$(grep -oE 'port [0-9]+' log | cut -d' ' -f2)" || [ -z "$port" ]; do sleep 0.2; done
    printf '[global]\nindex%surl = http://127.0.0.1:%s/simple\n' - "$port" >pip.conf
    export HTTPS_PROXY=http://127.0.0.1:9 ALL_PROXY=http://127.0.0.1:9 NO_PROXY=127.0.0.1 UV_CACHE_DIR="$PWD/uv" PIP_NO_CACHE_DIR=1
    unset "${!PIP_@}"
    bare by_variable
    works env PIP_CONFIG_FILE=/dev/null PIP_INDEX_URL="http://127.0.0.1:$port/simple" bash -euc 'source by_variable/setup.sh; set_up'
    bare by_file
    works env PIP_CONFIG_FILE="$PWD/pip.conf" bash -euc 'source by_file/setup.sh; set_up'
    kill $server
    has_tqdm by_variable
    has_tqdm by_file
    bare without
    refuses 'PIP_INDEX_URL' env PIP_CONFIG_FILE=/dev/null UV_CACHE_DIR="$PWD/other" UV_HTTP_RETRIES=0 PIP_RETRIES=0 \
        bash -euc 'source without/setup.sh; set_up'
}

# 6: without CUDA ----------------------------------------------------------------------------------------------------------

p06_no_cuda_from_a_folder_of_wheels() {
    bare clone
    printf 'torch==2.99.0 \\\n    --hash=sha256:%064d\ntorchvision==0.99.0 \\\n    --hash=sha256:%064d\n' 0 0 >>clone/requirements.lock
    printf 'nvidia-cudnn-cu13==9.0 \\\n    --hash=sha256:%064d\n' 0 >>clone/requirements.lock
    mkdir wheels
    python3 - <<'PY'
import zipfile

for name, version in (("torch", "2.99.0+cpu"), ("torchvision", "0.99.0+cpu")):
    with zipfile.ZipFile(f"wheels/{name}-{version}-py3-none-any.whl", "w") as wheel:
        about, record = f"{name}-{version}.dist-info", ""
        wheel.writestr(f"{name}/__init__.py", "cpu = True")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", f"{name}/__init__.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
PY
    works env TOKENCUTSEG_CPU=1 PIP_FIND_LINKS="$PWD/wheels" bash -euc 'source clone/setup.sh; set_up'
    clone/.venv/bin/python -c 'import torch, torchvision; assert torch.cpu and torchvision.cpu'
    [ -z "$(ls clone/.venv/lib/python3.*/site-packages | grep nvidia)" ]
}

# 8: odd places ------------------------------------------------------------------------------------------------------------

p08_a_path_with_spaces_and_umlauts_that_is_moved() {
    bare 'Läsionen und "Haut"'
    export PYTHONIOENCODING=ascii
    works set_up_in 'Läsionen und "Haut"'
    has_tqdm 'Läsionen und "Haut"'
    mv 'Läsionen und "Haut"' 'neu hier'
    works set_up_in 'neu hier'
    works "neu hier/.venv/bin/tqdm" --version
    works set_up_in 'neu hier'
    [ -z "$said" ]
}

p08_line_ends_of_windows() {
    git clone -q -c core.autocrlf=true "$source_root" clone
    ! grep -lr $'\r' clone/*.sh clone/.ci/run clone/tests/*.sh clone/requirements.lock clone/tokencutseg/configs
    [ -z "$(git -C clone status --porcelain)" ]
}

p08_a_home_that_cannot_be_written() {
    mkdir -m 555 home
    export HOME="$PWD/home" XDG_CACHE_HOME='' TOKENCUTSEG_CACHE=''
    bare clone
    works as_reader bash -euc 'source clone/setup.sh; set_up'
    has_tqdm clone
    photo a.png
    export -f tcs
    export clone PYTHON="${PYTHON:-}"
    works as_reader bash -c 'tcs segment a.png --out out'
    works as_reader bash -c 'tcs run --preset tiny --only 01 --results results'
    [ -z "$(ls -A home)" ]
}

p08_a_checkout_that_cannot_be_written() {
    local status=0
    bare clone
    works set_up_in clone
    chmod -R a-w clone
    works as_reader bash -euc 'source clone/setup.sh; set_up'
    chmod u+w clone/requirements.lock
    echo '# changed' >>clone/requirements.lock
    refuses 'cannot be written' as_reader bash -euc 'source clone/setup.sh; set_up'
    chmod -R u+w clone
    rm -r clone/.venv
    chmod a-w clone
    refuses 'cannot be written' as_reader bash -euc 'source clone/setup.sh; set_up'
    chmod u+w clone
    photo a.png
    export -f tcs
    export clone PYTHON="${PYTHON:-}"
    chmod -R a-w "$clone/results"
    refuses 'choose another folder with --results' as_reader bash -c 'tcs run --preset tiny --only 01' || status=1
    chmod -R u+w "$clone/results"
    return $status
}

p08_a_file_system_without_locks() {
    local compiler
    compiler="$(command -v cc || command -v gcc)" || { echo "no C compiler"; return 77; }
    cat >nolocks.c <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int flock(int fd, int how) {
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/nolocks/")) { errno = ENOLCK; return -1; }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, how);
}
C
    "$compiler" -shared -fPIC -o nolocks.so nolocks.c -ldl
    mkdir -p nolocks/home
    bare nolocks/clone
    export LD_PRELOAD="$PWD/nolocks.so" HOME="$PWD/nolocks/home" XDG_CACHE_HOME=''
    cd nolocks
    works set_up_in clone
    works tcs run --preset tiny --only 01 --results results
    export -f tcs
    export clone PYTHON="${PYTHON:-}"
    refuses 'could not be downloaded|cannot be had' env HTTPS_PROXY=http://127.0.0.1:9 bash -c 'tcs fetch isic2016 --data data'
}

# 10: a full disk -------------------------------------------------------------------------------------------------------

small=(--preset tiny --table budgets --set evaluation.train_sets=site_a vqgan.perceptual=none evaluation.rivals=otsu)

p10_full_disk() {
    mkdir disk
    mount -t tmpfs -o size=64k tmpfs disk 2>/dev/null || { echo "needs the right to mount a small disk"; return 77; }
    trap 'umount disk' EXIT
    py -c "
from PIL import Image
Image.effect_noise((900, 600), 60).save('noise.png')"
    refuses "the disk is full" tcs segment noise.png --out disk/masks
    refuses "the disk is full" tcs export "$clone/tokencutseg/pretrained" --half disk/half
    for size in 256k 4m 8m 24m; do
        mount -o remount,size=$size disk
        refuses "the disk is full" tcs run "${small[@]}" --results disk/results
        [ -z "$(find disk -name "*.partial")" ]
    done
    mount -o remount,size=1g disk
    works tcs run "${small[@]}" --results disk/results
    works tcs segment noise.png --out disk/masks
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
    (set -eE; trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR; cd "$work/$name"; "$name") >"$work/$name.log" 2>&1 </dev/null
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
