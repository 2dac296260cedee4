#!/usr/bin/env bash
# Makes, finds or repairs the reference environment and prints its python as the last line of stdout.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash tools/setup_env.sh
Makes (or finds, or repairs) the environment of mmprune_ext. Progress goes to stderr; the last line
of stdout is the path of its python. Variables that change what it does:
  MMPRUNE_ENV       folder that holds environments, wheels and logs
                    (default ${XDG_CACHE_HOME:-$HOME/.cache}/mmprune_ext)
  MMPRUNE_PYTHON    python 3.10 to 3.12 to build on (default: the first fit one on PATH)
  MMPRUNE_MMCV_OPS  cpu: compile mmcv's operators without CUDA although there is a GPU
  MAX_JOBS          compilers at a time (default: one a core and 2 GB of memory)
TEXT
}

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
REQUIREMENTS=$CHECKOUT/requirements
PINNED=(build torch runtime manual cls det seg pose tests)
STEPS=6
# Raise it when the steps below change, so that environments made by the old steps are not taken.
RECIPE=1

say() { printf '[setup %4ds] %s\n' "$SECONDS" "$*" >&2; }
step() { say "step $1/$STEPS: $2"; }
refuse() { say "cannot set up: $*"; exit 2; }

# --- what this machine has ---------------------------------------------------------------------

# Prints major.minor of a python that can carry the environment, or why it cannot.
probe_python() {
    "$1" -I - 2>/dev/null <<'PY' || { printf 'does not run'; return 1; }
import os, sys, sysconfig
from importlib.util import find_spec
name = '%d.%d' % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    print('is Python %s, needed is 3.10 to 3.12' % name)
elif find_spec('venv') is None or find_spec('ensurepip') is None:
    print('has no venv module (Debian: apt-get install python%s-venv)' % name)
elif not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
    print('has no Python.h (Debian: apt-get install python%s-dev)' % name)
else:
    print(name)
PY
}

# Sets PYTHON and PY_VERSION.
find_python() {
    local candidates=(python3.11 python3 python3.12 python3.10) candidate found reasons=''
    [[ -z ${MMPRUNE_PYTHON:-} ]] || candidates=("$MMPRUNE_PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || { reasons+=" $candidate: not found;"; continue; }
        found=$(probe_python "$candidate") || true
        if [[ $found =~ ^3\.[0-9]+$ ]]; then
            PYTHON=$candidate PY_VERSION=$found
            return
        fi
        reasons+=" $candidate $found;"
    done
    refuse "no fit python.$reasons install Python 3.11 or set MMPRUNE_PYTHON."
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

# Fails early: torch alone is a download of gigabytes.
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

# --- running things ----------------------------------------------------------------------------

# Says every half minute that a long step lives. Its sleep holds neither our pipes nor our locks.
heartbeat() {
    local label=$1 started=$SECONDS progress
    while sleep 30 >/dev/null 2>&1 8>&- 9>&-; do
        kill -0 $$ 2>/dev/null || exit 0
        progress=$(tail -c 20000 "$LOG" | grep -o '^ *\[[0-9]*/[0-9]*\]' | tail -n 1 | tr -d ' ') || progress=''
        say "        still $label${progress:+ $progress}, $((SECONDS - started)) s"
    done
}

# Runs a command with its output in the log; prints the end of the log when it fails.
logged() {
    local label=$1 rc=0 beat
    shift
    heartbeat "$label" 8>&- 9>&- &
    beat=$!
    "$@" </dev/null >>"$LOG" 2>&1 || rc=$?
    kill "$beat" 2>/dev/null || true
    wait "$beat" 2>/dev/null || true
    ((rc == 0)) && return
    tail -n 15 "$LOG" >&2
    say "failed while $label (exit $rc). Full log: $LOG"
    say "run the same command again to go on from here"
    exit 1
}

# An install that is interrupted leaves .installing behind, and the environment is then not trusted.
pip_install() {
    local label=$1
    shift
    : >"$ENV_DIR/.installing"
    logged "$label" "$ENV_PYTHON" -m pip install "$@"
    rm -f "$ENV_DIR/.installing"
}

lock() {
    local descriptor=$1 what=$2
    flock -n "$descriptor" && return
    say "waiting for another set-up of $what"
    flock "$descriptor"
}

# pip's pins of one package, read from manual.txt.
pin_of() { sed -n "s/^$1==\([^ ]*\).*/\1/p" "$REQUIREMENTS/manual.txt"; }

# --- wheels that are compiled here and kept ----------------------------------------------------

# Sets WHEELS to the folder of wheels that fit this python, torch and kind of operators.
choose_wheel_folder() {
    local torch_version cuda flavour=$FLAVOUR nvcc
    read -r torch_version cuda < <("$ENV_PYTHON" -I -c 'import torch; print(torch.__version__, torch.version.cuda)')
    if [[ $flavour != cpu ]]; then
        nvcc=$("$(nvcc_path)" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
        if [[ $nvcc != "${cuda%%.*}" ]]; then
            say "        nvcc is CUDA $nvcc, torch is CUDA $cuda: mmcv's operators are compiled for CPU only"
            flavour=cpu
        fi
    fi
    OPS=$flavour
    WHEELS=$ROOT/wheels/py$PY_VERSION-torch$torch_version-$flavour
    mkdir -p "$WHEELS"
}

# Prints the kept wheel of a distribution; one that is not a whole archive is thrown away.
kept_wheel() {
    local wheel
    for wheel in "$WHEELS/${1//-/_}-$2-"*.whl; do
        [[ -e $wheel ]] || continue
        if "$ENV_PYTHON" -I -m zipfile -t "$wheel" >/dev/null 2>&1; then
            printf '%s' "$wheel"
            return
        fi
        say "        $wheel is damaged: building it again"
        rm -f "$wheel"
    done
}

# Compiles in a temporary folder and renames, so that a wheel under its own name is always whole.
# pip's cache is off: it files compiled wheels by version only and would hand one torch's to another.
build_wheel() {
    local name=$1 version=$2 settings=(CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0)
    if [[ $OPS != cpu ]]; then
        local arch=${OPS#cuda-}
        settings=(FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${arch//_/;}")
    fi
    rm -rf "$WHEELS"/.building.*
    local folder
    folder=$(mktemp -d "$WHEELS/.building.XXXXXX")
    logged "compiling $name $version" env MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(default_jobs)}" \
        "${settings[@]}" PATH="$ENV_DIR/bin:$PATH" \
        "$ENV_PYTHON" -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation \
        --no-binary "$name" -w "$folder" "$name==$version"
    mv "$folder"/*.whl "$WHEELS/"
    rmdir "$folder"
}

# Prints nothing; sets WHEEL.
get_wheel() {
    local name=$1 version
    version=$(pin_of "$name")
    exec 9>"$WHEELS/.lock"
    lock 9 "$name's wheel"
    WHEEL=$(kept_wheel "$name" "$version")
    if [[ -n $WHEEL ]]; then
        say "        $name $version: taking the kept wheel"
    else
        say "        $name $version: compiling it, once (log $LOG)"
        build_wheel "$name" "$version"
        WHEEL=$(kept_wheel "$name" "$version")
    fi
    exec 9>&-
}

# --- the environment ---------------------------------------------------------------------------

fingerprint() {
    {
        printf '%s\n' "$RECIPE" "$PY_VERSION" "$(uname -sm)" "$FLAVOUR"
        local name
        for name in "${PINNED[@]}" constraints; do grep -v '^#' "$REQUIREMENTS/$name.txt" || true; done
    } | sha256sum | cut -c1-12
}

# Prints what is wrong with an environment that was complete once. Exit 0: sound and linked to this
# checkout, 3: sound, linked elsewhere or nowhere, 1: broken.
inspect() {
    [[ -x $ENV_PYTHON ]] || { echo 'its python is gone'; return 1; }
    "$ENV_PYTHON" -I - "$CHECKOUT" "${PINNED[@]/#/$REQUIREMENTS/}" 2>&1 <<'PY'
import sys
from importlib import metadata, util
from pathlib import Path
checkout, *names = sys.argv[1:]
for name in names:
    for line in Path(name + '.txt').read_text().splitlines():
        package, _, pin = line.partition('==')
        if not pin or line.startswith('#'):
            continue
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            sys.exit(f'{package} is missing')
        if found.split('+')[0] != pin:
            sys.exit(f'{package} is {found}, not {pin}')
# Importing all of mmcv.ops takes seconds; its files and its compiled part tell the same.
for file in metadata.files('onedl-mmcv') or sys.exit('mmcv has no list of files'):
    path = file.locate()
    if not path.exists() or file.size not in (None, path.stat().st_size):
        sys.exit(f'mmcv is damaged ({file})')
try:
    import mmcv._ext  # noqa: F401
except Exception as error:
    sys.exit(f'import mmcv.ops fails: {error}')
try:
    linked = Path(util.find_spec('mmprune_ext').origin).resolve().parent.parent
except Exception:
    linked = None
sys.exit(0 if linked == Path(checkout) else 3)
PY
}

# Renames first: a removal that is interrupted must not leave something that looks usable.
discard() {
    say "$1: making it anew"
    mv "$ENV_DIR" "$ENV_DIR.discarded.$$"
    rm -rf "$ENV_DIR.discarded.$$"
}

link_checkout() {
    step 6 'linking this checkout into the environment'
    logged 'linking the checkout' "$ENV_PYTHON" -m pip install -q --no-deps --no-build-isolation -e "$CHECKOUT"
}

done_before() { [[ -e $ENV_DIR/.done-$1 ]]; }
mark_done() { : >"$ENV_DIR/.done-$1"; }

make_venv() {
    done_before venv && return
    step 1 "python $PY_VERSION environment and build tools in $ENV_DIR"
    mkdir -p "$ENV_DIR"
    : >"$ENV_DIR/.installing"
    logged 'making the environment' "$PYTHON" -m venv "$ENV_DIR"
    pip_install 'installing the build tools' -r "$REQUIREMENTS/build.txt"
    mark_done venv
}

install_torch() {
    done_before torch && return
    step 2 'torch (gigabytes when nothing is cached)'
    pip_install 'installing torch' -r "$REQUIREMENTS/torch.txt" -c "$REQUIREMENTS/constraints.txt"
    mark_done torch
}

ops_work() { "$ENV_PYTHON" -I -c 'import mmcv.ops' >>"$LOG" 2>&1; }

install_mmcv() {
    done_before mmcv && return
    step 3 "mmcv's operators (compiled the first time: about 10 minutes on 2 cores)"
    choose_wheel_folder
    get_wheel onedl-mmcv
    pip_install 'installing mmcv' "$WHEEL" -c "$REQUIREMENTS/constraints.txt"
    if ! ops_work; then
        say "        import mmcv.ops fails with $WHEEL: building it again"
        rm -f "$WHEEL"
        get_wheel onedl-mmcv
        pip_install 'installing mmcv' --force-reinstall --no-deps "$WHEEL"
        ops_work || { tail -n 5 "$LOG" >&2; say "import mmcv.ops still fails. Full log: $LOG"; exit 1; }
    fi
    mark_done mmcv
}

install_libraries() {
    done_before libraries && return
    step 4 'mmengine, mmpretrain, mmdet, mmseg, mmpose and the test tools'
    local name arguments=()
    for name in runtime cls det seg pose tests; do arguments+=(-r "$REQUIREMENTS/$name.txt"); done
    pip_install 'installing the libraries' "${arguments[@]}" -c "$REQUIREMENTS/constraints.txt"
    choose_wheel_folder
    get_wheel xtcocotools
    pip_install 'installing mmpose' --no-deps "$WHEEL" "mmpose==$(pin_of mmpose)"
    mark_done libraries
}

check_imports() {
    step 5 'importing everything once'
    # The first import compiles the byte code, which the user's first command need not wait for.
    logged 'importing' "$ENV_PYTHON" -I -c 'import mmcv.ops, mmengine.runner, mmpretrain.models, mmdet.models, mmseg.models, mmpose.models, imgaug'
}

main() {
    if [[ ${1:-} == -h || ${1:-} == --help ]]; then usage; exit 0; fi
    if (($#)); then usage; exit 2; fi
    # Settings of the caller's own python must not leak into the environment.
    unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV
    export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    command -v flock >/dev/null || refuse 'missing flock. Debian: apt-get install util-linux'
    find_python
    FLAVOUR=$(find_flavour)
    ROOT=${MMPRUNE_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/mmprune_ext}
    mkdir -p "$ROOT/envs" "$ROOT/wheels" "$ROOT/logs" || refuse "cannot write $ROOT; set MMPRUNE_ENV to a folder that is yours"
    ROOT=$(cd "$ROOT" && pwd -P)
    local key
    key=py$PY_VERSION-${FLAVOUR%%-*}-$(fingerprint)
    ENV_DIR=$ROOT/envs/$key ENV_PYTHON=$ROOT/envs/$key/bin/python LOG=$ROOT/logs/$key.log
    exec 8>"$ENV_DIR.lock"
    lock 8 "$ENV_DIR"
    rm -rf "$ENV_DIR".discarded.*
    find_or_make
    printf '%s\n' "$ENV_PYTHON"
}

find_or_make() {
    local verdict rc=0
    if [[ -e $ENV_DIR/.complete ]]; then
        verdict=$(inspect) || rc=$?
        ((rc != 0)) || { say "environment $ENV_DIR"; return; }
        ((rc != 3)) || { link_checkout; return; }
        discard "the environment $ENV_DIR is broken ($verdict)"
    elif [[ -e $ENV_DIR/.installing ]] || { [[ -d $ENV_DIR ]] && ! done_before venv; }; then
        discard "the set-up of $ENV_DIR was interrupted while it installed"
    elif [[ -d $ENV_DIR ]]; then
        say "the set-up of $ENV_DIR was interrupted: going on where it stopped"
        "$ENV_PYTHON" -I -c '' 2>/dev/null || discard "the python of $ENV_DIR does not run"
    fi
    : >"$LOG"
    check_tools
    make_venv
    install_torch
    install_mmcv
    install_libraries
    check_imports
    : >"$ENV_DIR/.complete"
    link_checkout
    say "environment $ENV_DIR is ready"
}

main "$@"
