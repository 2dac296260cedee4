#!/usr/bin/env sh
# Tests on a Slurm cluster; the checkpoint comes from the compact config, or from --checkpoint.
# usage: sh tools/slurm_test.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/test.py]
set -euf
exec sh "$(dirname "$0")/slurm_run.sh" test "$@"
