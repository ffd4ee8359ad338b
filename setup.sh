# Sourced by run_all.sh and run_tests.sh; gives them `set_up`. The environment is .venv beside this file.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="$root/.venv"
stamp="$venv/set-up-from"  # line 1: the folder that this .venv was made in; the rest, written last: what it was made from

# Prints a Python >= 3.11: $PYTHON if that is one, else the first found.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

# Prints what the stamp must say, asking the Python named in $1.
_wanted_stamp() {
    "$1" - "$root" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
made_from = [(root / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
print(root, hashlib.sha256(b"\0".join(made_from)).hexdigest(), "%d.%d" % sys.version_info[:2], sep="\n")
PY
}

_make_venv() {
    local python
    python="$(find_python)" || return 1
    if [ -e "$venv" ] && [ ! -e "$stamp" ]; then  # somebody's own
        echo "error: $venv was not made by this set-up and is left alone; move it away, or use it instead:" \
             "pip install -e '$root[notebooks]' there, then tokencutseg run" >&2
        return 1
    fi
    echo "set-up: making $venv with $("$python" --version)" >&2
    rm -rf "$venv"
    mkdir "$venv" && echo "$root" >"$stamp" || return 1
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        echo "error: $python cannot make a virtual environment; install its venv and ensurepip modules" \
             "(on Debian and Ubuntu: the package python3-venv)" >&2
        return 1
    }
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv || {
        echo "error: pip could not install uv; is a package index within reach?" >&2
        return 1
    }
}

_install() {
    local wanted uv=("$venv/bin/python" -m uv --quiet pip)
    if wanted="$(_wanted_stamp "$venv/bin/python" 2>/dev/null)" && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    # An interrupted set-up left one line in the stamp; a .venv stamped elsewhere was moved or copied here; one whose Python
    # does not start has lost it: none of them can be brought up to date in place.
    if [ "$(cat "$stamp" 2>/dev/null)" = "$root" ] || [ "$(head -n 1 "$stamp" 2>/dev/null)" != "$root" ] \
        || ! "$venv/bin/python" -c '' 2>/dev/null; then
        _make_venv || return 1
    fi
    echo "$root" >"$stamp"
    echo "set-up: installing the packages of requirements.lock" >&2
    "${uv[@]}" sync --compile-bytecode --python "$venv/bin/python" --require-hashes "$root/requirements.lock" \
        && "${uv[@]}" install --python "$venv/bin/python" --no-deps -e "$root" \
        && _wanted_stamp "$venv/bin/python" >"$stamp.new" \
        && mv "$stamp.new" "$stamp" || {
        echo "error: the set-up did not finish; the next call starts it afresh" >&2
        return 1
    }
    echo "set-up: done" >&2
}

# Brings .venv up to date: half a minute the first time, a moment when nothing changed. Calls at once wait for each other.
set_up() {
    (
        if command -v flock >/dev/null; then
            flock 9
        fi
        _install
    ) 9<"$root/setup.sh"
}
