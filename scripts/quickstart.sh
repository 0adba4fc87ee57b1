#!/usr/bin/env bash
# Train the embedded model end to end: bash scripts/quickstart.sh [--config.FIELD=VALUE ...]
#
# Another recipe: bash scripts/quickstart.sh --config=config/flow_grpo.py:shapes_tiny
# The first run makes .venv and installs the pinned requirements into it; later runs start training at once.
# PYTHON=/path/to/python3 picks the interpreter (3.10 or newer). Where the result is, train.py says last.
set -euo pipefail
# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

has_cuda() {
    { [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null 2>&1; } &&
        "$VENV_PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

prepare
cd "$ROOT"
# ml_collections takes --config once, and before any field of it.
case " $* " in *" --config"[=\ ]*) ;; *) set -- --config=config/tp_grpo.py:shapes_tiny "$@" ;; esac
case " $* " in *" --config.run_name"[=\ ]*) ;; *) set -- "$@" --config.run_name=quickstart ;; esac
if has_cuda; then
    say "training on the GPU"
else
    say "training on the CPU (torch finds no CUDA GPU)"
    export ACCELERATE_USE_CPU=true
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(cores)}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
exec "$VENV_PYTHON" scripts/train.py "$@"
