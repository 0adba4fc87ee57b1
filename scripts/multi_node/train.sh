#!/usr/bin/env bash
# Any algorithm on several machines; on each of them, RANK being 0, 1, 2, 3 (0 that of MASTER_ADDR):
#
#   ALGORITHM=shared_state MASTER_ADDR=10.0.0.1 NUM_MACHINES=4 NUM_PROCESSES=32 bash scripts/multi_node/train.sh RANK [--config.FIELD=VALUE ...]
#
# ALGORITHM: a file of config/, such as tp_grpo, flow_grpo, shared_state, nft. MODEL_NAME=sd3 REWARD=pickscore
# MASTER_PORT=19001 MASTER_WAIT=600 (seconds) BETA=1e-4 too; see ../_launch.sh.
set -euo pipefail
# shellcheck source=scripts/_launch.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../_launch.sh"
chosen="$(algorithm)"
multi_node "$chosen" "$@"
