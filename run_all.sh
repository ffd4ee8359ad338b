#!/usr/bin/env bash
# Sets up .venv and runs the study: ./run_all.sh --preset quick. Every option: ./run_all.sh -h
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

for argument in "$@"; do
    if [ "$argument" = "-h" ] || [ "$argument" = "--help" ]; then
        python="$(find_python)"
        PYTHONPATH="$root" exec "$python" -m tokencutseg.cli run --help  # the options need no set-up
    fi
done
set_up
exec "$venv/bin/tokencutseg" run "$@"
