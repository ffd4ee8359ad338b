#!/usr/bin/env bash
# Sets up .venv, then lint, import rules and all tests. With arguments, only pytest with those arguments:
# ./run_tests.sh --cov=tokencutseg measures coverage, which takes half as long again.
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
exec "$venv/bin/pytest"
