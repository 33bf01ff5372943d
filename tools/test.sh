#!/usr/bin/env bash
# Sets up (see _venv.sh), then lint, types and tests that need no GPU. Types and vLLM's own tests go
# on beside the rest; what they said comes last.
#
#   bash tools/test.sh                        everything, 25 to 30 minutes on 2 cores
#   bash tools/test.sh --quick                lint, types and unit tests
#   bash tools/test.sh --full                 everything, and about 20 minutes more: large fuzzers,
#                                             chains of commands on the toy task, and a real model,
#                                             fetched once into runs/real_model/model
#   bash tools/test.sh tests/unit -k rubric   some of it: arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_installed
cd "$ROOT"

# Whole files go to whoever is free, in the order given: those that take minutes come first. One more
# process than cores (of which nproc knows less once OMP_NUM_THREADS is set), since many tests wait
# for processes most of the time. No argument may lie in another one: pytest sorts it in there.
LANES=(-n "$(($(env -u OMP_NUM_THREADS nproc) + 1))" --dist loadfile --no-loadscope-reorder)
UNIT=(tests/unit/cluster/ tests/unit/rubrics/)
for part in tests/unit/*/ tests/unit/test_*.py tests/test_*.py; do
    case "$part" in "${UNIT[0]}" | "${UNIT[1]}" | */__pycache__/) ;; *) UNIT+=("$part") ;; esac
done

# Two cores are enough: one thread each, no compilers, no downloads, no telemetry.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false TORCH_COMPILE_DISABLE=1
# Workers of Ray have the rights of other processes, else tests starve one another.
export RAY_worker_niceness=0
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# The tests start hundreds of processes; compiling the package in each costs a tenth of their time,
# compiling anew what pip has compiled more than that.
unset PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX

LOGS="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$LOGS"' EXIT
failed=0

run_pytest() { "$PYTHON" tools/_supervise.py "$PYTHON" -m pytest -m "not gpu" "$@"; }
# beside NAME COMMAND...: start what goes on beside the tests.
# collect NAME: wait for it, and show what it said.
beside() { local name="$1"; shift; "$@" >"$LOGS/$name" 2>&1 & eval "$name=$!"; }
collect() { wait "${!1}" || failed=$?; say "$1"; cat "$LOGS/$1"; }

say "ruff"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check --quiet .
beside mypy "$PYTHON" -m mypy

case "${1:-}" in
    --quick) set -- "${LANES[@]}" "${UNIT[@]}" ;;
    --full)
        shift
        export HERL_TEST_FULL=1
        export HERL_REAL_MODEL="${HERL_REAL_MODEL:-$ROOT/runs/real_model/model}"
        if [ ! -f "$HERL_REAL_MODEL/weights.json" ]; then
            say "fetching the real model"
            HF_HUB_OFFLINE=0 "$PYTHON" tools/fetch_smollm2.py --out "$HERL_REAL_MODEL"
        fi ;;
esac

if [ $# -gt 0 ]; then
    say "pytest $*"
    run_pytest "$@" || failed=$?
else
    # vLLM changes its whole process (default process group, threads), so its tests have their own.
    beside engine run_pytest tests/engine
    say "pytest"
    run_pytest "${LANES[@]}" tests/slurm tests/e2e tests/distributed "${UNIT[@]}" || failed=$?
    collect engine
fi
collect mypy
exit $failed
