#!/usr/bin/env bash
# Sets up, then trains, prunes, fine-tunes, exports and tests a small network on data made on the spot.
# usage: bash tools/demo.sh TASK [arguments of tools/demo.py]
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# An installed package brings no requirements: it runs on the python that it was installed for.
[[ -d $ROOT/requirements ]] || exec "${PYTHON:-python}" "$ROOT/tools/demo.py" "$@"
case ${1:-} in
    digits | classification) NEEDS=(--classification) ;;
    *) NEEDS=() ;;
esac
PYTHON=$(bash "$ROOT/tools/setup_env.sh" "${NEEDS[@]}" | tail -n 1)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
[[ $PYTHON == */envs/*-classification-*/bin/python ]] || exec "$PYTHON" "$ROOT/tools/demo.py" "$@"

# mmcv without operators warns of each module that would need them.
export PYTHONWARNINGS="${PYTHONWARNINGS:+$PYTHONWARNINGS,}ignore:Fail to import"
"$PYTHON" "$ROOT/tools/demo.py" "$@"
echo 'This environment carries classification. For detection, segmentation and pose: bash tools/setup_env.sh' \
    '(compiles for about 10 minutes on 2 cores, once).'
