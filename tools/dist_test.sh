#!/usr/bin/env sh
# Tests on the processes of one node, or of several (NNODES, NODE_RANK, MASTER_ADDR), by torchrun.
set -euf

usage() {
    cat >&2 <<'TEXT'
usage: sh tools/dist_test.sh CONFIG [CHECKPOINT] GPUS [arguments of tools/test.py]
Starts GPUS processes; where there is no GPU they test on the CPU with gloo. Without CHECKPOINT the
weights are those that the (compact) config names.
variables: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500), PYTHON (python), PY_ARGS
TEXT
    exit 2
}

is_count() { case $1 in '' | *[!0-9]* | 0) return 1 ;; esac; }

[ "$#" -ge 2 ] || usage
CONFIG=$1
shift
CHECKPOINT=
if ! is_count "$1"; then
    CHECKPOINT=$1
    shift
fi
GPUS=${1:-}
is_count "$GPUS" || { echo "dist_test.sh: GPUS is the number of processes, got '$GPUS'" >&2; usage; }
shift
ROOT=$(cd "$(dirname "$0")/.." && pwd -P)
[ -z "$CHECKPOINT" ] || set -- "--checkpoint=$CHECKPOINT" "$@"

PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
# shellcheck disable=SC2086  # PY_ARGS is a list of words, as OpenMMLab's scripts have it
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$GPUS" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$ROOT/tools/test.py" "$CONFIG" --launcher=pytorch ${PY_ARGS:-} "$@"
