#!/usr/bin/env bash
# Any algorithm on the GPUs of this machine: ALGORITHM=shared_state bash scripts/single_node/train.sh [--config.FIELD=VALUE ...]
#
# ALGORITHM: a file of config/, such as tp_grpo, flow_grpo, shared_state, nft. MODEL_NAME=sd3 REWARD=pickscore
# NUM_GPUS=8 MASTER_PORT=19001 BETA=1e-4 in the environment; see ../_launch.sh.
set -euo pipefail
# shellcheck source=scripts/_launch.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../_launch.sh"
chosen="$(algorithm)"
single_node "$chosen" "$@"
