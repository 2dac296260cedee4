#!/usr/bin/env bash
# Sets up, then trains, prunes, fine-tunes, exports and tests a small network on data made on the spot.
# usage: bash tools/demo.sh TASK [arguments of tools/demo.py]
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=$(bash "$ROOT/tools/setup_env.sh" | tail -n 1)
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" "$ROOT/tools/demo.py" "$@"
