#!/usr/bin/env bash
# Linters, types, import contracts and tests: bash scripts/test.sh [pytest arguments]
#
# The same .venv as quickstart.sh, with the tools of requirements-dev.txt; stops at the first step that fails.
# PYTHON=/path/to/python3 picks the interpreter; -n 0 among the arguments runs the tests in one process.
set -euo pipefail
# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

step() {
    say "$*"
    "$VENV_PYTHON" "$@"
}

prepare dev
cd "$ROOT"
# One thread a worker: those of several torch processes on the same cores starve each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
step -m ruff check
step -m ruff format --check
step -m mypy tp_grpo reward_models config scripts
step .venv/bin/lint-imports
step -m pytest -n "$(cores)" "$@"
