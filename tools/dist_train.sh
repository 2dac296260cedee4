#!/usr/bin/env sh
# Trains on the processes of one node, or of several (NNODES, NODE_RANK, MASTER_ADDR), by torchrun.
set -euf

usage() {
    cat >&2 <<'TEXT'
usage: sh tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
Starts GPUS processes; where there is no GPU they train on the CPU with gloo.
variables: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500), PYTHON (python), PY_ARGS
TEXT
    exit 2
}

is_count() { case $1 in '' | *[!0-9]* | 0) return 1 ;; esac; }

[ "$#" -ge 2 ] || usage
CONFIG=$1
GPUS=$2
shift 2
is_count "$GPUS" || { echo "dist_train.sh: GPUS is the number of processes, got '$GPUS'" >&2; usage; }
ROOT=$(cd "$(dirname "$0")/.." && pwd -P)

PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
# shellcheck disable=SC2086  # PY_ARGS is a list of words, as OpenMMLab's scripts have it
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$GPUS" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$ROOT/tools/train.py" "$CONFIG" --launcher=pytorch ${PY_ARGS:-} "$@"
