# Sourced by run_all.sh and run_tests.sh; gives them `set_up`. The environment is .venv beside this file. It is made and
# brought up to date in place: nothing is removed but packages of which requirements.lock has another version.
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$root/.venv"
stamp="$venv/set-up-from"  # line 1: the folder that it was made in; the rest, written last: what it was made from
unset PYTHONPATH PYTHONHOME  # other packages than those of .venv
unset PYTHONDONTWRITEBYTECODE  # every process would compile PyTorch and Lightning anew, for seven seconds

_error() {
    echo "error: $*" >&2
    return 1
}

# Prints a Python >= 3.11: $PYTHON if that is one, else the first found.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    _error "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 $0"
}

# Prints what the stamp must say; less where the Python of .venv does not start.
_wanted_stamp() {
    echo "$root"
    echo "${TOKENCUTSEG_CPU:+cpu} $(cksum <"$root/requirements.lock") $(cksum <"$root/pyproject.toml")"
    "$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Prints shell code that tells pip, and uv, which reads none of pip's settings, where packages come from. Settings of where
# they go, such as PIP_USER and PIP_TARGET, are left out.
_package_sources() {
    "$venv/bin/python" -I - <<'PY'
import ast, os, shlex, subprocess, sys

UV = {
    "index_url": "UV_DEFAULT_INDEX", "extra_index_url": "UV_INDEX", "find_links": "UV_FIND_LINKS", "no_index": None,
    "trusted_host": "UV_INSECURE_HOST", "proxy": "ALL_PROXY", "cert": "SSL_CERT_FILE", "client_cert": "SSL_CLIENT_CERT",
    "default_timeout": "UV_HTTP_TIMEOUT", "timeout": "UV_HTTP_TIMEOUT",
}
everywhere = os.environ | dict.fromkeys(("PIP_USER", "PIP_GLOBAL", "PIP_SITE"), "0")  # `list` has options of these names
command = [sys.executable, "-I", "-m", "pip", "config", "list"]
listed = subprocess.run(command, env=everywhere, capture_output=True, text=True).stdout
lines = [line.partition("=") for line in listed.splitlines()]
found = {"cert": os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE", "")}
for section in ("global.", "install.", ":env:."):  # the last one counts
    for key, _, value in lines:
        if key.startswith(section):
            found[key.removeprefix(section).replace("-", "_")] = " ".join(str(ast.literal_eval(value)).split())
print("unset", *(name for name in os.environ if name.startswith("PIP_")), "; export PIP_CONFIG_FILE=/dev/null")
for name in filter(found.get, UV):
    values = {f"PIP_{name.upper()}": found[name]}
    if UV[name] and not (UV[name].startswith("UV_") and UV[name] in os.environ):
        values[UV[name]] = found[name].replace(" ", ",") if name == "find_links" else found[name]
    print("export", *(f"{key}={shlex.quote(value)}" for key, value in values.items()))
if found.get("no_index", "0").lower() in ("1", "true", "yes", "on"):
    print("uv+=(--no-index)")
PY
}

_install() {
    local python="$venv/bin/python" lock="$root/requirements.lock" was new="" site torch=() uv=()
    case "$OSTYPE" in
        msys* | cygwin* | win*) _error "Windows has no such environment; clone the repository within WSL" || return 1 ;;
    esac
    was="$(cat "$stamp" 2>/dev/null)" || true
    if [ -n "$was" ] && [ "$was" = "$(_wanted_stamp)" ]; then
        return
    fi
    if [ ! -e "$stamp" ] && [ -e "$venv" ] && [ -n "$(ls -A "$venv" 2>&1)" ]; then  # somebody's own
        _error "$venv was not made by this set-up and is left alone; move it away, or use it instead:" \
            "pip install -e '$root[notebooks]' there, then tokencutseg run" || return 1
    fi
    if [ "${was%%$'\n'*}" != "$root" ] || ! "$python" -I -m uv --version >/dev/null 2>&1; then  # new, moved, or broken
        new="$(find_python)" || return 1
    fi
    for site in "$venv"/lib/python3.*/site-packages; do
        if [ "$was" = "$root" ] && [ "$site" -nt "$stamp" ]; then
            uv=(--reinstall)  # an installation was interrupted in the middle, so that files may be missing
        elif [[ "$was" = *$'\ncpu '* ]]; then
            uv=(--reinstall-package torch --reinstall-package torchvision)  # 1.0+cpu counts as 1.0
        fi
    done
    { mkdir -p "$venv" && echo "$root" >"$stamp"; } 2>/dev/null \
        || _error "$venv cannot be written; clone the repository to a folder of your own" || return 1
    if [ -n "$new" ]; then
        echo "set-up: making $venv with $("$new" --version)" >&2
        rm -f "$venv/bin/python" "$venv"/bin/python3*  # links that may lead nowhere
        "$new" -m venv "$venv" || _error "$new cannot make a virtual environment; install its venv and ensurepip modules" \
            "(on Debian and Ubuntu: the package python3-venv)" || return 1
        echo "relocatable = true" >>"$venv/pyvenv.cfg"  # uv writes scripts that find their Python when .venv is moved
    fi
    echo "set-up: installing the packages of requirements.lock" >&2
    unset PYTHON "${!PYTHON@}"
    export PYTHONUTF8=1  # uv hands paths to Python and fails where another encoding is set
    eval "$(_package_sources)"
    export UV_SYSTEM_CERTS=1 UV_INDEX_STRATEGY=unsafe-best-match  # as pip does; the hashes tell whether it is the right one
    local cache="${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/dev/null}/.cache}/uv}"
    if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null; then
        export UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 TMPDIR="$venv"
    elif command -v flock >/dev/null && ! flock "$cache" true 2>/dev/null; then
        export UV_NO_CACHE=1  # uv needs locks, which that file system lacks
    fi
    uv=("$python" -I -m uv --quiet pip install --python "$python" --no-deps ${uv[@]+"${uv[@]}"})
    if [ -n "${TOKENCUTSEG_CPU:-}" ]; then
        torch=($(awk -F'[= ]+' '/^torch(vision)?==/ { print $1 "==" $2 }' "$lock"))
        awk '/^[^ #]/ { skip = /^(torch|torchvision|triton|(cuda|nvidia)-[^=]*)==/ } !skip' "$lock" >"$venv/cpu.lock"
        lock="$venv/cpu.lock"
    fi
    {
        { [ -z "$new" ] || "$python" -I -m pip install --quiet --disable-pip-version-check uv; } \
            && echo "$root" >"$stamp" \
            && "${uv[@]}" --require-hashes -r "$lock" \
            && { [ ${#torch[@]} = 0 ] || "${uv[@]}" "${torch[@]/%/+cpu}" 2>/dev/null \
                || "${uv[@]}" --torch-backend cpu "${torch[@]}"; } \
            && "${uv[@]}" -e "$root" && _wanted_stamp >"$stamp.new" && mv "$stamp.new" "$stamp"
    } || _error "the set-up did not finish; the next call goes on with it. Is a package index within reach? Name a mirror" \
        "with PIP_INDEX_URL, a proxy with HTTPS_PROXY, a file of certificates with SSL_CERT_FILE" || return 1
    echo "set-up: done" >&2
}

# Brings .venv up to date: half a minute the first time, a moment when nothing changed. Calls at once wait for each other.
# TOKENCUTSEG_CPU=1 takes PyTorch without CUDA, from the index or folder that pip is told of, else from PyTorch's own index,
# which uv knows; hashes check all packages but these two.
set_up() {
    (
        if command -v flock >/dev/null; then
            flock 9 2>/dev/null || true  # a file system without locks
        fi
        _install
    ) 9<"$root/setup.sh"
}
