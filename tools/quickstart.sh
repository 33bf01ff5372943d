#!/usr/bin/env bash
# From nothing to a model that HeRL has trained, on the CPU: sets up (see _venv.sh), makes the toy
# task, warm-starts a small model with SFT, trains it with HeRL, prints what it learned.
#
#   bash tools/quickstart.sh                       <= 8 minutes on 4 cores, <= 12 on 2
#   bash tools/quickstart.sh train.steps=10        any setting of configs/quickstart_cpu.yaml
#   QUICKSTART_SEED=1 bash tools/quickstart.sh     another task, model and sampling seed
#
# It writes runs/quickstart; a rerun replaces what an earlier or interrupted one left there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_installed
cd "$ROOT"

SEED="${QUICKSTART_SEED:-0}"
case "$SEED" in '' | *[!0-9]*) fail "QUICKSTART_SEED is '$SEED', give a whole number" ;; esac
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
START=$SECONDS

run() { "$PYTHON" "$ROOT/tools/_supervise.py" "$@"; }
herl() { run "$PYTHON" -m herl_megatron.cli "$@"; }

say "1/3  toy task: prompts with rubrics, demonstrations and a model with random weights"
run "$PYTHON" tools/make_toy_task.py --out runs/quickstart/toy --seed "$SEED" --overwrite

say "2/3  SFT: teach it to write, and to revise a draft against unmet criteria"
herl sft configs/quickstart_sft_cpu.yaml run.seed="$SEED" run.overwrite=true

say "3/3  HeRL: learn from rubric rewards and from its own revisions"
herl train configs/quickstart_cpu.yaml run.seed="$SEED" run.overwrite=true "$@"

say "Done in $((SECONDS - START)) s. Policy, curve, rollouts and summary: runs/quickstart/herl"
