#!/usr/bin/env bash
# Sets up .venv, then lint, import rules and all tests with coverage. With arguments, only pytest with those arguments.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up

cd "$root"
export MPLBACKEND=Agg
if [ $# -gt 0 ]; then
    exec "$venv/bin/pytest" "$@"
fi
"$venv/bin/ruff" check .
"$venv/bin/lint-imports"
exec "$venv/bin/pytest" --cov=tokencutseg --cov-fail-under=85
