#!/usr/bin/env bash
# Checks every method on a GPU against the CPU, times them, and fine-tunes small networks, in at most 10 minutes.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash benchmarks/gpu.sh --data DIR --weights DIR --out DIR [--wheels DIR] [arguments of benchmarks/gpu/run.py]
  --data DIR     CIFAR-10: sheets with labels.npz, or class folders train and val
  --weights DIR  folder of resnet20_cifar10.pth and resnet56_cifar10.pth (tools/convert_checkpoint.py)
  --out DIR      folder of results.json, summary.md and the runs; what is there is not repeated
  --wheels DIR   packages to install first, without a network, into a temporary folder
All others: -h tells. A python with torch (variable PYTHON, default python3) and mmengine, mmcv, mmpretrain are needed;
mmcv may lack its compiled operators, and no other library of OpenMMLab is looked at.
TEXT
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python3}
wheels='' arguments=()
while (($#)); do
    case $1 in
        --wheels)
            (($# > 1)) || { usage; exit 2; }
            wheels=$2
            shift 2
            ;;
        -h | --help)
            usage
            arguments+=("$1")
            shift
            ;;
        *)
            arguments+=("$1")
            shift
            ;;
    esac
done

export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [[ -n $wheels ]]; then
    compgen -G "$wheels/*.whl" >/dev/null || { echo "error: --wheels $wheels: no wheels there" >&2; exit 2; }
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$checkout:$site${PYTHONPATH#"$checkout"}
fi
"$python" "$checkout/benchmarks/gpu/run.py" ${arguments[@]+"${arguments[@]}"}
