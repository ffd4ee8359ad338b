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

# 4 and 5: devices and cores --------------------------------------------------------------------------------------------

p04_device_is_said_and_chosen() {
    for command in run segment explore train-vq train-seg test-seg; do
        works tcs "$command" -h
        grep -qF -- "--device {auto,cpu,gpu,mps}" <<<"$said"
    done
    photo a.png
    works tcs segment a.png --out masks --device cpu
    grep -qE "^device: CPU, threads: [0-9]+, precision: 32 bits" <<<"$said"
    TOKENCUTSEG_DEVICE=tpu refuses "not 'tpu'" tcs segment a.png --out masks
    [ "$(uname)" = Darwin ] || refuses "needs a Mac" tcs segment a.png --out masks --device mps
    works tcs run --preset full --dry-run --device cpu --results here
    grep -qE "about [0-9]+ days" <<<"$said"
    [ ! -e here ]
}

p05_no_more_threads_than_cores_allowed() {
    command -v taskset >/dev/null || { echo "needs taskset"; return 77; }
    unset OMP_NUM_THREADS
    works taskset -c "$(taskset -cp $$ | grep -oE "[0-9]+" | tail -n 1)" bash -c "$(declare -f tcs); PYTHON=${PYTHON:-} clone='$clone' tcs run --preset tiny --dry-run --results here"
    grep -q "threads: 1," <<<"$said"
}

# Seconds for a picture when the model is open: the middle of five.
prediction() {
    py - a.png <<'PY'
import sys
import time

import tokencutseg

model = tokencutseg.load()
model.predict(sys.argv[1])
times = []
for _ in range(5):
    start = time.perf_counter()
    model.predict(sys.argv[1])
    times.append(time.perf_counter() - start)
print(f"{sorted(times)[2]:.3f}")
PY
}

p05_busy_core_costs_a_factor_of_two() {
    unset OMP_NUM_THREADS
    photo a.png
    local alone busy spinner
    alone="$(prediction)"
    (while :; do :; done) &
    spinner=$!
    busy="$(prediction)"
    kill "$spinner"
    echo "alone $alone s, with one core busy $busy s"
    awk "BEGIN { exit !($busy < 3 * $alone + 0.1) }"
}

# 9: segment ------------------------------------------------------------------------------------------------------------

p09_help_version_and_examples() {
    works tcs
    grep -q "tokencutseg segment photos/" <<<"$said"
    works tcs --version
    refuses "invalid choice" tcs segmnt
}

p09_segment_of_a_folder() {
    mkdir photos
    photo photos/x.tif && photo photos/x.bmp && photo photos/rare.ppm && photo photos/phone.jpg 4000 3000 && photo photos/strip.png 900 100
    py -c "from PIL import Image; Image.new('RGB', (90, 90), (224, 172, 150)).save('photos/skin.png')"
    py -c "
from PIL import Image
exif = Image.Exif()
exif[0x0112] = 6
Image.open('photos/x.bmp').save('photos/turned.jpg', exif=exif)"
    echo text >photos/notes.txt
    contents photos >before
    works tcs segment photos --out masks
    grep -q "skipped in photos, as no images: notes.txt" <<<"$said"
    grep -qE "phone_mask.png .lesion: [0-9.]+ %" <<<"$said"
    grep -q "skin_mask.png (no lesion found)" <<<"$said"
    grep -q "strip.png is 900×100" <<<"$said"
    ls masks/{x.tif,x.bmp,rare,phone,turned,skin,strip}_{mask,overlay}.png
    py -c "
from PIL import Image
assert Image.open('masks/turned_mask.png').size == (120, 160)
assert Image.open('masks/phone_mask.png').size == (4000, 3000) and Image.open('masks/phone_overlay.png').size == (1600, 1200)"
    works tcs segment photos --out photos
    ls photos >first
    works tcs segment photos/*.png photos/[prtx]*.[bjpt]* --out photos # its own masks are no images
    grep -q "skipped, as written by earlier calls: phone_mask.png" <<<"$said"
    ls photos | diff first -
    grep -vE "_(mask|overlay).png" <(contents photos) | diff before -
}

p09_segment_overwrites_nothing_of_others() {
    photo a.png
    mkdir masks
    echo "an expert drew this" >masks/a_mask.png
    refuses "is there already" tcs segment a.png --out masks
    grep -q expert masks/a_mask.png
    refuses "does not exist" tcs segment gone.png --out masks
    refuses "cannot be written|is a file" tcs segment a.png --out a.png
}

# 10: interrupted, full, shared, removed -------------------------------------------------------------------------------

small=(--preset tiny --table budgets --set evaluation.train_sets=site_a vqgan.perceptual=none evaluation.rivals=otsu)

p10_full_disk() {
    mkdir disk
    mount -t tmpfs -o size=64k tmpfs disk 2>/dev/null || { echo "needs the right to mount a small disk"; return 77; }
    trap 'umount disk' EXIT
    photo a.png 2000 1500
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
    mount -o remount,size=200m disk
    works tcs run "${small[@]}" --results disk/results
    works tcs segment noise.png --out disk/masks
}

p10_results_folder_removed_in_the_middle() {
    tcs run "${small[@]}" --results results >log 2>&1 &
    local training=$! status=0
    until compgen -G "results/runs/*/last.ckpt" >/dev/null || ! kill -0 "$training"; do sleep 0.2; done
    rm -rf results
    wait "$training" || status=$?
    cat log
    [ "$status" = 2 ]
    ! grep -q Traceback log
    grep -q "start again" log
    works tcs run "${small[@]}" --results results
}

p10_two_studies_in_one_results_folder() {
    local first second
    tcs run "${small[@]}" --results results >one 2>&1 &
    first=$!
    tcs run "${small[@]}" --set evaluation.bootstrap_draws=50 --results results >two 2>&1 &
    second=$!
    wait "$first" && wait "$second" || { cat one two; return 1; }
    ! grep -q Traceback one two
    works tcs run "${small[@]}" --results alone
    cmp <(cut -d, -f1-9 alone/*/tables/budgets.csv) <(cut -d, -f1-9 "$(ls results/*/tables/budgets.csv | head -n 1)")
    [ "$(ls results/runs | wc -l)" = "$(ls alone/runs | wc -l)" ] # each training once
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
