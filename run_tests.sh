#!/usr/bin/env bash
# Sets up .venv and checks the repository:
#   ./run_tests.sh           format, lint, import rules, types, and every test, in a process for each core, at most four
#   ./run_tests.sh --fast    the same without the tests marked slow
#   ./run_tests.sh --lint    the checks without tests
#   ./run_tests.sh ARG...    only pytest with these arguments, such as tests/models or --cov=tokencutseg
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up

cd "$root"
export MPLBACKEND=Agg
selection=()
case "${1:-}" in
    "" | --lint) ;;
    --fast) selection=(-m "not slow") ;;
    *) exec "$venv/bin/python" -m pytest "$@" ;;
esac
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
"$venv/bin/lint-imports"
"$venv/bin/nbstripout" --verify --keep-id notebooks/*.ipynb
"$venv/bin/mypy"
[ "${1:-}" != --lint ] || exit 0
export OMP_NUM_THREADS=1
exec "$venv/bin/python" -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
    ${selection[@]+"${selection[@]}"}
