# shellcheck shell=bash
# What this machine has. Sourced by tools/setup_env.sh, whose refuse it calls.
# shellcheck disable=SC2034  # it sets variables of that script

# Prints major.minor of a python that can carry an environment of that kind, or why it cannot.
probe_python() {
    "$1" -I - "$2" 2>/dev/null <<'PY' || { printf 'does not run'; return 1; }
import os, sys, sysconfig
from importlib.util import find_spec
name = '%d.%d' % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    print('is Python %s, needed is 3.10 to 3.12' % name)
elif find_spec('venv') is None or find_spec('ensurepip') is None:
    print('has no venv module (Debian: apt-get install python%s-venv)' % name)
elif sys.argv[1] == 'full' and not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
    print('has no Python.h (Debian: apt-get install python%s-dev)' % name)
else:
    print(name)
PY
}

# Sets PYTHON and PY_VERSION, or REASONS why no python can carry an environment of that kind.
find_python() {
    local candidates=(python3.11 python3 python3.12 python3.10) candidate found
    REASONS=''
    [[ -z ${MMPRUNE_PYTHON:-} ]] || candidates=("$MMPRUNE_PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || { REASONS+=" $candidate: not found;"; continue; }
        found=$(probe_python "$candidate" "$1") || true
        if [[ $found =~ ^3\.[0-9]+$ ]]; then
            PYTHON=$candidate PY_VERSION=$found
            return
        fi
        REASONS+=" $candidate $found;"
    done
    return 1
}

# Prints cpu, or cuda-<compute capabilities> when there are a GPU and a CUDA compiler for it.
find_flavour() {
    local arch=''
    if [[ ${MMPRUNE_MMCV_OPS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
        arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd '_' -) || arch=''
    fi
    if [[ $arch =~ ^[0-9._]+$ ]] && nvcc_path >/dev/null; then
        printf 'cuda-%s' "$arch"
    else
        printf 'cpu'
    fi
}

nvcc_path() {
    if [[ -n ${CUDA_HOME:-} && -x $CUDA_HOME/bin/nvcc ]]; then
        printf '%s' "$CUDA_HOME/bin/nvcc"
    else
        command -v nvcc
    fi
}

# What compiling needs. Fails early: torch alone is a download of gigabytes.
check_tools() {
    local missing=()
    command -v git >/dev/null || missing+=(git)
    command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null || missing+=('a C compiler (gcc)')
    command -v "${CXX:-c++}" >/dev/null || missing+=('a C++ compiler (g++)')
    ((${#missing[@]} == 0)) && return
    local list
    list=$(printf ', %s' "${missing[@]}")
    refuse "missing ${list:2}. Debian: apt-get install build-essential git"
}

default_jobs() {
    local cores memory_kb
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    memory_kb=$(awk '/MemAvailable/ {print $2}' /proc/meminfo 2>/dev/null || echo 0)
    local by_memory=$((${memory_kb:-0} / 2000000))
    ((by_memory >= 1)) || by_memory=1
    echo $((cores < by_memory ? cores : by_memory))
}
