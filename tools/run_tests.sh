#!/usr/bin/env bash
# Everything that must hold before a change lands: ruff, the unit tests, the end-to-end tests; two at a time.
# usage: bash tools/run_tests.sh [pytest arguments], "-n 0" for one at a time in this process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The Slurm tests skip without these; on a CI machine, which is ours to change, they are installed.
install_slurm() {
    [[ ${CI:-} == true && $(id -u) == 0 ]] || return 0
    if command -v slurmctld >/dev/null && command -v munged >/dev/null; then return 0; fi
    command -v apt-get >/dev/null || return 0
    echo '[tests] installing slurm-wlm and munge' >&2
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1; then
        echo '[tests] they cannot be installed: the Slurm tests will be skipped' >&2
    fi
}

# pytest exits with 5 when a selection such as "-k name" leaves it nothing; that is no failure of a part.
judge() {
    local name=$1 rc=$2
    ((rc == 5)) || RAN=1
    ((rc == 0 || rc == 5)) || FAILED+=("$name")
}

install_slurm
PYTHON=$(bash tools/setup_env.sh | tail -n 1)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# The networks of the tests are small: more threads gain nothing, and cost much on a busy machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# As the tools do themselves (mmprune_ext/cli/memory.py): pages are not taken from the system again for each map.
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=2147483647
# What takes long is named at the end. A file stays on one worker, with what its tests share, and the largest go first.
SETTINGS=(-n 2 --dist loadfile --durations=60 --durations-min=5)
FAILED=() RAN=0

echo '[tests] ruff' >&2
"$PYTHON" -m ruff check . || FAILED+=(ruff)
run_part() {
    local name=$1 marker=$2 rc=0
    shift 2
    echo "[tests] $name" >&2
    "$PYTHON" -m pytest -m "$marker" "${SETTINGS[@]}" "$@" || rc=$?
    judge "$name" "$rc"
}
run_part 'unit tests' 'not e2e' "$@"
run_part 'end-to-end tests' e2e "$@"

((RAN)) || { echo '[tests] no test was selected' >&2; exit 5; }
((${#FAILED[@]} == 0)) || { echo "[tests] failed: ${FAILED[*]}" >&2; exit 1; }
echo '[tests] all passed' >&2
