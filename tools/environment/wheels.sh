# shellcheck shell=bash
# Wheels that are built here and kept. Sourced by tools/setup_env.sh, whose variables and functions it uses.
# shellcheck disable=SC2153  # FLAVOUR is one of them

# Sets OPS, the kind of operators that are compiled, and WHEELS, the folder of wheels that fit this python and torch.
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

# The same for wheels of Python alone, which fit every python and torch.
choose_pure_folder() {
    OPS=none
    WHEELS=$ROOT/wheels/pure
    mkdir -p "$WHEELS"
}

# Prints the kept wheel of a distribution; one that is not a whole archive is thrown away.
kept_wheel() {
    local wheel kind=''
    [[ $OPS != none ]] || kind=none-any
    for wheel in "$WHEELS/${1//-/_}-$2-"*"$kind.whl"; do
        [[ -e $wheel ]] || continue
        if "$ENV_PYTHON" -I -m zipfile -t "$wheel" >/dev/null 2>&1; then
            printf '%s' "$wheel"
            return
        fi
        say "        $wheel is damaged: building it again"
        rm -f "$wheel"
    done
}

# Builds in a temporary folder and renames, so that a wheel under its own name is always whole.
# pip's cache is off: it files built wheels by version only, and would hand one torch's to another,
# and those with operators to those without.
build_wheel() {
    local name=$1 version=$2 settings=(CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0) options=(--no-build-isolation)
    if [[ $OPS == none ]]; then
        # mmcv compiles its operators wherever it can import torch, which it cannot in isolation.
        options=()
    elif [[ $OPS != cpu ]]; then
        local arch=${OPS#cuda-}
        settings=(FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${arch//_/;}")
    fi
    rm -rf "$WHEELS"/.building.*
    local folder
    folder=$(mktemp -d "$WHEELS/.building.XXXXXX")
    logged "building $name $version" env MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(default_jobs)}" \
        "${settings[@]}" PATH="$ENV_DIR/bin:$PATH" \
        "$ENV_PYTHON" -m pip wheel -v --no-cache-dir --no-deps "${options[@]}" \
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
        say "        $name $version: building it, once (log $LOG)"
        build_wheel "$name" "$version"
        WHEEL=$(kept_wheel "$name" "$version")
        [[ -n $WHEEL ]] || { say "the wheel of $name $version in $WHEELS is not of the kind that is needed"; exit 1; }
    fi
    exec 9>&-
}
