#!/usr/bin/env bash
# A real instruction-tuned model learns, on the CPU: sets up (see _venv.sh), gets the weights of
# SmolLM2-135M-Instruct, makes prompts, trains with HeRL, evaluates before and after. docs/real_model.md
#
#   bash tools/real_model.sh                          7 to 10 minutes on 2 busy cores
#   bash tools/real_model.sh --short                  5 to 7
#   bash tools/real_model.sh --task stated            the criteria stand in the prompts
#   bash tools/real_model.sh --task stated --ifeval FILE
#                                                     IFEval's four accuracies before and after too
#   bash tools/real_model.sh train.steps=20           any setting of configs/smollm2_135m_*_cpu.yaml
#   REAL_MODEL_SEED=1 bash tools/real_model.sh        other topics, prompts and sampling
#
# It writes runs/real_model. Started again it goes on where it was; a finished run is only reported.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

TASK=unstated SHORT="" IFEVAL="" OVERRIDES=()
while [ $# -gt 0 ]; do
    case "$1" in
        --short) SHORT=1 ;;
        --task) TASK="${2:-}"; shift ;;
        --ifeval)
            [ -f "${2:-}" ] || fail "--ifeval is '${2:-}', which is no file" \
                "fix: give IFEval's input_data.jsonl (google/IFEval on the Hugging Face Hub)"
            IFEVAL="$(realpath -- "$2")"
            shift ;;
        *=*) OVERRIDES+=("$1") ;;
        *) fail "$1 is no option" "fix: --short, --task stated|unstated, --ifeval FILE, or settings as KEY=VALUE" ;;
    esac
    shift || true
done
case "$TASK" in stated | unstated) ;; *) fail "--task is '$TASK', give stated or unstated" ;; esac
SEED="${REAL_MODEL_SEED:-0}"
case "$SEED" in '' | *[!0-9]*) fail "REAL_MODEL_SEED is '$SEED', give a whole number" ;; esac

ensure_installed
cd "$ROOT"
START=$SECONDS DIR=runs/real_model
NAME="$TASK${SHORT:+-short}-seed$SEED" DATA="$DIR/$TASK-seed$SEED"
# Few steps and samples: a look at the mechanism, too short to say which way a number moves.
[ -z "$SHORT" ] || OVERRIDES=(train.steps=3 train.eval_every=0 eval.samples_per_prompt=1
    checkpoint.every=1 "${OVERRIDES[@]}")

run() { "$PYTHON" "$ROOT/tools/_supervise.py" "$@"; }

say "1/4  weights"
OMP_NUM_THREADS=2 run "$PYTHON" tools/fetch_smollm2.py --out "$DIR/model"

export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
herl() { run "$PYTHON" -m herl_megatron.cli "$@"; }

say "2/4  prompts: $TASK criteria, topics held out"
[ -f "$DATA/heldout.jsonl" ] || herl tasks "$TASK" --seed "$SEED" --out "$DATA" --overwrite

say "3/4  HeRL: evaluates, trains, evaluates"
if [ -f "$DIR/$NAME/summary.json" ]; then
    echo "$DIR/$NAME is finished; remove it to train again"
else
    # Replicas by the machine's cores and memory; settings of the command line come last and win.
    LAYOUT="$("$PYTHON" -m herl_megatron.cpu_layout)"
    # shellcheck disable=SC2086  # several settings
    herl train "configs/smollm2_135m_${TASK}_cpu.yaml" $LAYOUT run.dir="$DIR" run.name="$NAME" \
        run.seed="$SEED" data.train="$DATA/train.jsonl" data.eval="$DATA/heldout.jsonl" \
        model.path="$DIR/model" run.resume=true ${OVERRIDES[@]+"${OVERRIDES[@]}"}
fi

say "4/4  report"
herl report "$DIR/$NAME"
run "$PYTHON" tools/bench/real_model.py show "$DIR/$NAME"
if [ -n "$IFEVAL" ]; then
    say "     IFEval, greedy: before, after"
    for model in model "$NAME/policy"; do
        run "$PYTHON" tools/bench/ifeval.py --input "$IFEVAL" --model "$DIR/$model" \
            --out "$DIR/ifeval-${model%/policy}"
    done
fi
say "Done in $((SECONDS - START)) s. Policy, curve, rollouts and report: $DIR/$NAME"
