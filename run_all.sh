#!/usr/bin/env bash
# Sets up .venv and runs the study: ./run_all.sh --preset quick. Every option: ./run_all.sh -h
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
exec "$venv/bin/tokencutseg" run "$@"
