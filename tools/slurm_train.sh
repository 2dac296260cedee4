#!/usr/bin/env sh
# Trains on a Slurm cluster.
# usage: sh tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
set -euf
exec sh "$(dirname "$0")/slurm_run.sh" train "$@"
