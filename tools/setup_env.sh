#!/usr/bin/env bash
# Makes, finds or repairs an environment and prints its python as the last line of stdout.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash tools/setup_env.sh [--classification]
Makes (or finds, or repairs) the environment of mmprune_ext. Progress goes to stderr; the last line
of stdout is the path of its python.
  --classification  what mmpretrain needs is enough: takes the full environment where that is
                    complete, else makes a second one in which nothing is compiled (mmcv without its
                    operators; no mmdet, mmseg, mmpose, no test tools). It takes a minute or two
                    instead of more than ten where the gigabytes of torch come fast, and needs no
                    compiler, no git and no Python.h.
Variables that change what it does:
  MMPRUNE_ENV       folder that holds environments, wheels and logs
                    (default ${XDG_CACHE_HOME:-$HOME/.cache}/mmprune_ext)
  MMPRUNE_PYTHON    python 3.10 to 3.12 to build on (default: the first fit one on PATH)
  MMPRUNE_MMCV_OPS  cpu: compile mmcv's operators without CUDA although there is a GPU
  MAX_JOBS          compilers at a time (default: one a core and 2 GB of memory)
TEXT
}

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
REQUIREMENTS=$CHECKOUT/requirements
PINNED=(build torch runtime manual cls det seg pose export tests)
# Raise it when the steps below change, so that environments made by the old steps are not taken.
RECIPE=1

say() { printf '[setup %4ds] %s\n' "$SECONDS" "$*" >&2; }
step() { say "step $1/$STEPS: $2"; }
refuse() { say "cannot set up: $*"; exit 2; }

# shellcheck source=tools/environment/machine.sh disable=SC1091
source "$CHECKOUT/tools/environment/machine.sh"
# shellcheck source=tools/environment/wheels.sh disable=SC1091
source "$CHECKOUT/tools/environment/wheels.sh"

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

# --- the environment ---------------------------------------------------------------------------

requirement_lines() {
    local name
    for name; do grep -v '^#' "$REQUIREMENTS/$name.txt" || true; done
}

# Prints the pins that an environment of this kind must fulfil.
pins() {
    if [[ $KIND == full ]]; then
        requirement_lines "${PINNED[@]}"
    else
        requirement_lines torch runtime cls
        requirement_lines "${PINNED[@]}" | grep -E '^(pip|setuptools|onedl-mmcv|scikit-learn)=='
    fi
}

pin_of() { pins | sed -n "s/^$1==\([^ ]*\).*/\1/p"; }

fingerprint() {
    {
        printf '%s\n' "$RECIPE" "$PY_VERSION" "$(uname -sm)" "$FLAVOUR"
        pins
        requirement_lines constraints
    } | sha256sum | cut -c1-12
}

# Chooses the environment of a kind, full or classification: sets KIND, STEPS, ENV_DIR, ENV_PYTHON, LOG.
choose_environment() {
    local key
    KIND=$1
    if [[ $KIND == full ]]; then
        STEPS=6 FLAVOUR=$(find_flavour)
        key=${FLAVOUR%%-*}
    else
        STEPS=4 FLAVOUR=none
        key=$KIND
    fi
    key=py$PY_VERSION-$key-$(fingerprint)
    ENV_DIR=$ROOT/envs/$key ENV_PYTHON=$ROOT/envs/$key/bin/python LOG=$ROOT/logs/$key.log
}

# Prints what is wrong with an environment that was complete once. Exit 0: sound and linked to this
# checkout, 3: sound, linked elsewhere or nowhere, 1: broken.
inspect() {
    [[ -x $ENV_PYTHON ]] || { echo 'its python is gone'; return 1; }
    local lines
    mapfile -t lines < <(pins)
    "$ENV_PYTHON" -I - "$KIND" "$CHECKOUT" "${lines[@]}" 2>&1 <<'PY'
import sys
from importlib import metadata, util
from pathlib import Path
kind, checkout, *lines = sys.argv[1:]
for line in lines:
    package, _, pin = line.partition('==')
    if not pin:
        continue
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        sys.exit(f'{package} is missing')
    if found.split('+')[0] != pin:
        sys.exit(f'{package} is {found}, not {pin}')
# Importing all of mmcv.ops takes seconds; its files and its compiled part tell the same.
for package in ['onedl-mmcv'] if kind == 'full' else [line.partition('==')[0] for line in lines]:
    for file in metadata.files(package) or sys.exit(f'{package} has no list of files'):
        path = file.locate()
        if not path.exists() or file.size not in (None, path.stat().st_size):
            sys.exit(f'{package} is damaged ({file})')
try:
    if kind == 'full':
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
    step "$STEPS" 'linking this checkout into the environment'
    if [[ $KIND == classification ]]; then
        # An installation in editable mode takes seconds, to write this line.
        local link=$ENV_DIR/lib/python$PY_VERSION/site-packages/mmprune_ext.pth
        printf '%s\n' "$CHECKOUT" >"$link.new"
        mv "$link.new" "$link"
        return
    fi
    logged 'linking the checkout' "$ENV_PYTHON" -m pip install -q --no-deps --no-build-isolation -e "$CHECKOUT"
}

done_before() { [[ -e $ENV_DIR/.done-$1 ]]; }
mark_done() { : >"$ENV_DIR/.done-$1"; }

make_venv() {
    done_before venv && return
    local tools=(-r "$REQUIREMENTS/build.txt")
    [[ $KIND == full ]] || tools=("pip==$(pin_of pip)" "setuptools==$(pin_of setuptools)")
    step 1 "python $PY_VERSION environment and build tools in $ENV_DIR"
    mkdir -p "$ENV_DIR"
    : >"$ENV_DIR/.installing"
    logged 'making the environment' "$PYTHON" -m venv "$ENV_DIR"
    pip_install 'installing the build tools' "${tools[@]}"
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
    for name in runtime cls det seg pose export tests; do arguments+=(-r "$REQUIREMENTS/$name.txt"); done
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

# --- the environment for classification --------------------------------------------------------

# In one go: pip would look at everything that is there again with each further call. pip's own
# compilation of all byte code would take longer than the downloads.
install_classification() {
    done_before libraries && return
    step 2 'mmcv without operators; torch, mmengine, mmpretrain (gigabytes when nothing is cached)'
    choose_pure_folder
    get_wheel onedl-mmcv
    pip_install 'installing the libraries' --no-compile "$WHEEL" "scikit-learn==$(pin_of scikit-learn)" \
        -r "$REQUIREMENTS/torch.txt" -r "$REQUIREMENTS/runtime.txt" -r "$REQUIREMENTS/cls.txt" \
        -c "$REQUIREMENTS/constraints.txt"
    mark_done libraries
}

# Compiles the byte code of what a run imports, which the user's first command need not wait for then,
# nor every one where PYTHONDONTWRITEBYTECODE is set (-I leaves that aside).
import_classification() {
    step 3 'importing everything once'
    logged 'importing' "$ENV_PYTHON" -I -W ignore -c '
import matplotlib.pyplot
import mmengine.analysis
import mmpretrain.utils
import sklearn.datasets
import yapf.yapflib.yapf_api
from mmengine.utils.dl_utils import collect_env
mmpretrain.utils.register_all_modules()
collect_env()'
}

# Takes the full environment if it is complete and sound. One that is being made is not waited for.
take_full() {
    find_python full || return 1
    choose_environment full
    [[ -e $ENV_DIR/.complete ]] || return 1
    exec 8>"$ENV_DIR.lock"
    flock -w 10 8 || { say "another set-up of $ENV_DIR is at work"; return 1; }
    local verdict rc=0
    verdict=$(inspect) || rc=$?
    case $rc in
        0) say "environment $ENV_DIR" ;;
        3) link_checkout ;;
        *) say "the environment $ENV_DIR is broken ($verdict): bash tools/setup_env.sh repairs it"; return 1 ;;
    esac
}

# --- what is called ----------------------------------------------------------------------------

main() {
    local kind=full
    case ${1:-} in
        -h | --help) usage; exit 0 ;;
        --classification) kind=classification; shift ;;
    esac
    if (($#)); then usage; exit 2; fi
    [[ -d $REQUIREMENTS ]] || refuse "there is no $REQUIREMENTS; environments are made in a checkout, not from an installed package"
    # Settings of the caller's own python must not leak into the environment.
    unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV PIP_NO_BUILD_ISOLATION
    export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    command -v flock >/dev/null || refuse 'missing flock. Debian: apt-get install util-linux'
    ROOT=${MMPRUNE_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/mmprune_ext}
    mkdir -p "$ROOT/envs" "$ROOT/wheels" "$ROOT/logs" || refuse "cannot write $ROOT; set MMPRUNE_ENV to a folder that is yours"
    ROOT=$(cd "$ROOT" && pwd -P)
    if [[ $kind == full ]] || ! take_full; then
        find_python "$kind" || refuse "no fit python.$REASONS install Python 3.11 or set MMPRUNE_PYTHON."
        choose_environment "$kind"
        exec 8>"$ENV_DIR.lock"
        lock 8 "$ENV_DIR"
        rm -rf "$ENV_DIR".discarded.*
        find_or_make
    fi
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
    if [[ $KIND == full ]]; then
        check_tools
        make_venv
        install_torch
        install_mmcv
        install_libraries
        check_imports
    else
        make_venv
        install_classification
        import_classification
    fi
    : >"$ENV_DIR/.complete"
    link_checkout
    say "environment $ENV_DIR is ready"
}

main "$@"
