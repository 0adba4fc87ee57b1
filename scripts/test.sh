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
    "$VENV_PYTHON" -m "$@"
}

# import-linter has no -m form, and its program holds the path .venv was made at.
import_contracts() {
    say "lint-imports"
    "$VENV_PYTHON" -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'
}

# One worker a core and one thread a worker: threads of several torch processes on the same cores starve each other.
workers() {
    local count
    count="$(cores)"
    if [ "$count" -gt 8 ]; then count=8; fi
    echo "$count"
}

prepare dev
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
step ruff check
step ruff format --check
step mypy tp_grpo reward_models config scripts
import_contracts
step pytest -n "$(workers)" "$@"
