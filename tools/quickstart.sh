#!/usr/bin/env bash
# The demonstration on embedded data: the handwritten digits of scikit-learn.
# usage: bash tools/quickstart.sh [arguments of tools/demo.py]
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# The network is small: more threads gain little, and cost much on a busy machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec bash "$HERE/demo.sh" digits --work-dir work_dirs/quickstart "$@"
