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

# accelerate's launcher does not outlive a Ctrl-C that its child handles: it would print a traceback over the
# child's words and give the prompt back while the child still saves. A handler that does nothing lets it
# wait; the child gets the default handler back, as every new program does.
LAUNCH='
import signal
from accelerate.commands.accelerate_cli import main

signal.signal(signal.SIGINT, lambda *_: None)
main()
'

# given FLAG ARGUMENTS...: whether FLAG is among them, as FLAG or FLAG=VALUE.
given() {
    local flag="$1" argument
    shift
    for argument in "$@"; do
        case "$argument" in "$flag" | "$flag"=*) return 0 ;; esac
    done
    return 1
}

# What accelerate is not told it guesses, and warns about. The model is small: more than 8 threads slow it down.
launch() {
    local threads device=()
    # ml_collections takes --config once, and before any field of it.
    if ! given --config "$@"; then set -- --config=config/tp_grpo.py:shapes_tiny "$@"; fi
    if ! given --config.run_name "$@"; then set -- "$@" --config.run_name=quickstart; fi
    threads="$(cores)"
    if [ "$threads" -gt 8 ]; then threads=8; fi
    if has_cuda; then
        say "training on the GPU"
    else
        say "training on the CPU (torch finds no CUDA GPU)"
        device=(--cpu)
    fi
    export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
    exec "$VENV_PYTHON" -c "$LAUNCH" launch --quiet ${device[@]+"${device[@]}"} \
        --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
        --num_cpu_threads_per_process "${OMP_NUM_THREADS:-$threads}" \
        scripts/train.py "$@"
}

prepare
cd "$ROOT"
launch "$@"
