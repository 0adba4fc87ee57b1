# shellcheck shell=bash
# Sourced by single_node/*.sh and multi_node/*.sh: checks, then accelerate's launcher.
#
# ALGORITHM    a file of config/: tp_grpo | flow_grpo | shared_state | ... (train.sh alone)
# MODEL_NAME   a function of config/models.py: sd3 | flux | klein | ...; or shapes (embedded, needs no GPU)
# REWARD       pickscore | geneval | general_ocr; for shapes tiny | smoke
# NUM_GPUS     of this machine (default: all); without CUDA the number of processes (default: 1)
# BETA         weight of the KL
# MASTER_PORT  where the processes meet
# LAUNCH       a file of accelerate_configs/: ddp | fsdp2 | cpu

# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
if [ -d "$VENV/bin" ]; then PATH="$VENV/bin:$PATH"; fi

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# positive NAME: the variable NAME is a whole number from 1 on.
positive() {
    [[ "${!1}" =~ ^[1-9][0-9]*$ ]] || fail "$1 = '${!1}' is not a whole number from 1 on"
}

port() {
    MASTER_PORT="${MASTER_PORT:-19001}"
    positive MASTER_PORT
    [ "$MASTER_PORT" -le 65535 ] || fail "MASTER_PORT = $MASTER_PORT: ports end at 65535"
}

# The number of GPUs in CUDA_VISIBLE_DEVICES, or of all that nvidia-smi lists.
gpus() {
    local listed
    listed="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)"
    if [ "$listed" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        listed="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^ *-/,$d' | grep -c '[^ ]' || true)" # -1 ends it
    fi
    echo "$listed"
}

# one_of NAME VALUE KNOWN: VALUE is one of the words of KNOWN.
one_of() {
    local known
    # shellcheck disable=SC2086 # words
    known="$(printf ', %s' $3)"
    [[ "$known, " == *", $2, "* ]] || fail "$1 = '$2' is not one of ${known:2}"
}

models() { sed -n 's/^def \([a-z][a-z0-9_]*\)(c: ConfigDict).*/\1/p' "$ROOT/config/models.py"; }

# recipe ALGORITHM PROCESSES: that of MODEL_NAME and REWARD; the embedded model's batch, of images or
# shared_state's of groups, is split over the processes. dgpo's keeps groups of 4 or 8 images whole.
recipe() {
    local model="${MODEL_NAME:-sd3}" reward="${REWARD:-default}" tiny=48 smoke=4
    local batch="--config.sample.batch_size"
    if [ "$1" = shared_state ]; then tiny=6 smoke=2; fi
    if [ "$1" = dgpo ]; then smoke=$((4 * $2)); fi
    case "$model/$reward" in
        shapes/default | shapes/tiny) echo shapes_tiny "$batch=$((tiny / $2 > 0 ? tiny / $2 : 1))" ;;
        shapes/smoke) echo shapes_smoke "$batch=$((smoke / $2 > 0 ? smoke / $2 : 1))" ;;
        shapes/*) fail "REWARD = '$reward': the embedded model has its own reward; omit REWARD, or give tiny or smoke" ;;
        */default | */pickscore | */geneval | */general_ocr)
            one_of MODEL_NAME "$model" "$(models) shapes"
            echo "${reward/default/pickscore}_$model" ;;
        *) fail "REWARD = '$reward' is not one of pickscore, geneval, general_ocr" ;;
    esac
}

# launch ALGORITHM MACHINES RANK PROCESSES ARGUMENTS...: PROCESSES over all machines.
launch() {
    local algorithm="$1" machines="$2" rank="$3" processes="$4" present config chosen
    shift 4
    cd "$ROOT" || exit 2
    present="$(gpus)"
    chosen="$(recipe "$algorithm" "$processes")" || exit 2
    if [ "$present" -gt 0 ] && [ "${LAUNCH:-}" != cpu ]; then
        [ $((processes / machines)) -le "$present" ] ||
            fail "$((processes / machines)) processes on this machine are more than its $present GPUs"
        export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    else
        [ "${MODEL_NAME:-sd3}" = shapes ] || fail "MODEL_NAME=${MODEL_NAME:-sd3} needs CUDA GPUs, and this machine has none"
        export ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
        LAUNCH="${LAUNCH:-cpu}"
    fi
    case "${LAUNCH:-}" in
        *zero* | *deepspeed* | *DeepSpeed*)
            fail "LAUNCH = '$LAUNCH': DeepSpeed's engine casts the fp32 adapters and steps on its own schedule, not the \
trainer's; take ddp, or fsdp2, which shards the frozen weights (docs/scaling.md)" ;;
    esac
    config="scripts/accelerate_configs/${LAUNCH:-ddp}.yaml"
    [ -f "$config" ] || fail "LAUNCH = '$LAUNCH': no file $config; known: ddp, fsdp2, cpu"
    if [ "$machines" -gt 1 ]; then reach_master "$rank"; fi
    # shellcheck disable=SC2086 # the recipe is a name and, for the embedded model, an argument
    set -- --config="config/$algorithm.py:"$chosen ${BETA:+--config.train.beta="$BETA"} "$@"
    export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
    trap '' USR1 # until the ranks handle it
    exec python3 scripts/_accelerate.py launch --config_file "$config" \
        --num_machines "$machines" --machine_rank "$rank" --num_processes "$processes" \
        --main_process_ip "${MASTER_ADDR:-127.0.0.1}" --main_process_port "$MASTER_PORT" \
        --rdzv_conf "timeout=$MASTER_WAIT" scripts/train.py "$@"
}

# Waits up to MASTER_WAIT seconds for machine 0. Tells gloo the interface to it, or gloo would resolve
# this machine's own name.
reach_master() {
    local interface
    interface="$(python3 scripts/_reach.py "$1" "$MASTER_ADDR" "$MASTER_PORT" "$MASTER_WAIT")" || exit 2
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"
}

# The ALGORITHM of the environment: a file of config/ whose get_config takes a recipe.
algorithm() {
    local name="${ALGORITHM:-tp_grpo}"
    one_of ALGORITHM "$name" "$(grep -l '^def get_config(recipe' "$ROOT"/config/*.py | sed 's|.*/||; s|\.py$||' | sort)"
    echo "$name"
}

single_node() {
    local algorithm="$1"
    shift
    MASTER_ADDR="" MASTER_WAIT=60 NUM_GPUS="${NUM_GPUS:-$(gpus)}"
    if [ "$NUM_GPUS" = 0 ]; then NUM_GPUS=1; fi
    positive NUM_GPUS
    port
    launch "$algorithm" 1 0 "$NUM_GPUS" "$@"
}

multi_node() {
    local algorithm="$1" RANK="${2:-}" name
    [[ "$RANK" =~ ^[0-9]+$ ]] ||
        fail "RANK = '$RANK': give this machine's number first, as in bash $0 0 (0 is the machine of MASTER_ADDR)"
    shift 2
    MASTER_WAIT="${MASTER_WAIT:-600}" NUM_MACHINES="${NUM_MACHINES:-4}"
    positive NUM_MACHINES
    NUM_PROCESSES="${NUM_PROCESSES:-$((NUM_MACHINES * 8))}"
    port
    for name in MASTER_WAIT NUM_PROCESSES; do positive "$name"; done
    [ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR is not set: the address of machine 0, as the others reach it"
    [ "$RANK" -lt "$NUM_MACHINES" ] || fail "RANK = $RANK is not below NUM_MACHINES = $NUM_MACHINES (they count from 0)"
    [ $((NUM_PROCESSES % NUM_MACHINES)) = 0 ] ||
        fail "NUM_PROCESSES = $NUM_PROCESSES, over all machines, does not divide by NUM_MACHINES = $NUM_MACHINES"
    launch "$algorithm" "$NUM_MACHINES" "$RANK" "$NUM_PROCESSES" "$@"
}
