#!/usr/bin/env bash
# Flow-GRPO on the GPUs of this machine: bash scripts/single_node/flow_grpo.sh [--config.FIELD=VALUE ...]
#
# MODEL_NAME=sd3 REWARD=pickscore NUM_GPUS=8 MASTER_PORT=19001 BETA=1e-4 in the environment; see ../_launch.sh.
set -euo pipefail
# shellcheck source=scripts/_launch.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../_launch.sh"
single_node flow_grpo "$@"
