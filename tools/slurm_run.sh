#!/usr/bin/env sh
# What slurm_train.sh and slurm_test.sh do: one task a GPU, or CPU tasks where the partition has none.
# usage: sh tools/slurm_run.sh train|test PARTITION JOB_NAME CONFIG WORK_DIR [arguments]
set -euf
ACTION=$1
shift

usage() {
    cat >&2 <<TEXT
usage: sh tools/slurm_$ACTION.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/$ACTION.py]
variables: GPUS (8; 0 asks for none), GPUS_PER_NODE (GPUS, at most 8), NTASKS (1, with GPUS=0),
           CPUS_PER_TASK (5), SRUN_ARGS, PY_ARGS, PYTHON (python), MASTER_PORT
TEXT
    [ "$ACTION" = train ] || echo 'Without --checkpoint=FILE the weights are those that the (compact) config names.' >&2
    exit 2
}

is_number() { case $1 in '' | *[!0-9]*) return 1 ;; esac; }

[ "$#" -ge 4 ] || usage
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
shift 4
GPUS=${GPUS:-8}
is_number "$GPUS" || { echo "slurm_$ACTION.sh: GPUS must be a number, got '$GPUS'" >&2; usage; }
command -v srun >/dev/null || { echo "slurm_$ACTION.sh: srun is not on PATH; run this on a node of the cluster" >&2; exit 2; }
ROOT=$(cd "$(dirname "$0")/.." && pwd -P)

# A request for GPUs that the partition does not have would wait in the queue for ever or be refused.
TASKS=$GPUS
if [ "$GPUS" -eq 0 ]; then
    TASKS=${NTASKS:-1}
elif ! sinfo --noheader --partition="$PARTITION" --format=%G | grep -q gpu; then
    echo "slurm_$ACTION.sh: partition '$PARTITION' has no GPU: $GPUS CPU tasks" >&2
    GPUS=0
fi
PER_NODE=${GPUS_PER_NODE:-8}
[ "$PER_NODE" -le "$TASKS" ] || PER_NODE=$TASKS

PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
# shellcheck disable=SC2086  # PY_ARGS is a list of words, as OpenMMLab's scripts have it
set -- "${PYTHON:-python}" -u "$ROOT/tools/$ACTION.py" "$CONFIG" "--work-dir=$WORK_DIR" --launcher=slurm ${PY_ARGS:-} "$@"
# shellcheck disable=SC2086  # the same for SRUN_ARGS
set -- --partition="$PARTITION" --job-name="$JOB_NAME" --ntasks="$TASKS" --ntasks-per-node="$PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
[ "$GPUS" -eq 0 ] || set -- --gres="gpu:$PER_NODE" "$@"
exec srun "$@"
