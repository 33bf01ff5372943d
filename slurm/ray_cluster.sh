#!/usr/bin/env bash
# Ray on the nodes of a Slurm job, and one `herl` command on it. Sourced by train.sbatch, tune.sbatch
# and eval.sbatch; run by srun on every node as `ray_cluster.sh node head|worker`.
#
# Ray listens on ports made from the job's number and asks for a token that is made anew for each
# job: other jobs and other users of the node can neither collide with it nor join it.

SAVED=75  # exit code of a run that was asked to stop: saved, and to be resumed

say() { printf '%s [slurm] %s\n' "$(date '+%F %T')" "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Where the repository is: a batch script runs from a copy, so its own path says nothing.
find_root() {
    local candidate
    for candidate in "${HERL_ROOT:-}" "${SLURM_SUBMIT_DIR:-$PWD}"; do
        if [ -f "$candidate/slurm/ray_cluster.sh" ]; then printf '%s\n' "$candidate"; return; fi
    done
    fail "submit from the repository's root, or set HERL_ROOT to it (now: ${SLURM_SUBMIT_DIR:-$PWD})"
}

# This node's address on HERL_INTERFACE, or the one that Ray finds by itself; arguments go before
# the Python that is asked.
node_address() {
    if [ -n "$HERL_INTERFACE" ]; then
        ip -4 -o addr show dev "$HERL_INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
    else
        ("$@" "${HERL_PYTHON[@]}" -c 'import ray; print(ray.util.get_node_ip_address())')
    fi
}

# --- on every node, started by srun ----------------------------------------------------------------
ray_node() {
    local role=$1 address
    address=$(node_address)
    [ -n "$address" ] || fail "no IPv4 address on $(hostname) (HERL_INTERFACE=$HERL_INTERFACE)"
    local options=(
        --node-ip-address="$address" --block --disable-usage-stats --log-color=false
        # 0: any free port, so that another Ray on this node is in nobody's way
        --min-worker-port=0 --max-worker-port=0
        --num-cpus="${SLURM_CPUS_ON_NODE:-1}" --num-gpus="${HERL_GPUS_PER_NODE:-0}"
    )
    mkdir -p -m 700 "$RAY_FOLDER"
    [ -O "$RAY_FOLDER" ] || fail "$RAY_FOLDER belongs to somebody else: set HERL_TMP to a folder of your own"
    if [ "$role" = head ]; then
        options+=(--head --port="$RAY_PORT" --ray-client-server-port="$((RAY_PORT + 1))"
            --temp-dir="$RAY_FOLDER" --include-dashboard=false)
    else
        options+=(--address="$RAY_HEAD")
    fi
    # A signal for this step goes to all of its processes, but this shell is to outlive Ray; one that
    # comes between two attempts must not be followed by another.
    local over=0
    trap 'over=1' USR2 TERM
    local ray code attempt turn errors="$RAY_FOLDER.errors"
    for attempt in 1 2 3; do
        code=0
        setsid "${HERL_PYTHON[@]}" -m ray.scripts.scripts start "${options[@]}" 2>"$errors" &
        ray=$!
        wait "$ray" || code=$?
        if kill -TERM "$ray" 2>/dev/null; then
            code=0  # the job is over and asked for this
            for turn in {1..50}; do kill -0 "$ray" 2>/dev/null || break; sleep 0.1; done
            kill -KILL "$ray" 2>/dev/null || true
        fi
        cat -- "$errors" >&2
        # Ray gives its own processes 30 s to start, however slow the file system that they are read
        # from or busy the node; what it started meanwhile would join the cluster as one node more.
        [ "$code" != 0 ] && [ "$over" = 0 ] && grep -q "timed out during startup" -- "$errors" || break
        kill -KILL -- "-$ray" 2>/dev/null || true
        say "Ray was not up within its 30 s (attempt $attempt of 3)"
    done
    rm -f -- "$errors"
    "${HERL_PYTHON[@]}" -c \
        'from herl_megatron.weight_sync import bucket_folder as b; b.remove_orphans()' || true
    rm -rf -- "$RAY_FOLDER" "$RAY_FOLDER.venv"
    return "$code"
}

# --- in the batch script ---------------------------------------------------------------------------
set_up() {
    HERL_ROOT=$(find_root)
    export HERL_ROOT
    # shellcheck source=slurm/env.sh
    source "$HERL_ROOT/slurm/env.sh"
    HERL_LOGS="$HERL_LOGS/$SLURM_JOB_ID"
    mkdir -p "$HERL_LOGS"
    # Settings that the nodes need too; srun takes the environment along.
    export HERL_VENV HERL_TMP HERL_INTERFACE HERL_CONTAINER_IMAGE HERL_GPUS_PER_NODE="${SLURM_GPUS_ON_NODE:-0}"
    export RAY_FOLDER="$HERL_TMP/herl-$SLURM_JOB_ID"
    export RAY_PORT=$((10000 + SLURM_JOB_ID % 10000 * 2))
    export PYTHONPATH="$HERL_ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    # Workers and agents of Ray with the rights of other processes (see cluster/session.py).
    export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    choose_python
}

choose_python() {
    if [ -n "$HERL_CONTAINER_IMAGE" ]; then HERL_PYTHON=(python3); return; fi
    HERL_PYTHON=("$HERL_VENV/bin/python")
    [ -x "${HERL_PYTHON[0]}" ] || fail "no Python at ${HERL_PYTHON[0]}: mend HERL_VENV (slurm/env.sh)"
    # Ray starts some of its processes through a shell and does not quote the interpreter's path.
    case "$HERL_VENV" in *" "*)
        ln -sfn -- "$HERL_VENV" "$RAY_FOLDER.venv"
        HERL_PYTHON=("$RAY_FOLDER.venv/bin/python") ;;
    esac
}

container_options() {
    [ -n "$HERL_CONTAINER_IMAGE" ] || return 0
    local mounts="$HERL_ROOT:$HERL_ROOT,$HERL_TMP:$HERL_TMP"
    mounts+="${HERL_CONTAINER_MOUNTS:+,$HERL_CONTAINER_MOUNTS}"
    CONTAINER=(--container-image="$HERL_CONTAINER_IMAGE" --container-mounts="$mounts"
        --container-workdir="$PWD" --no-container-mount-home)
}

# Runs a command on the first node: as it is, or in the container.
on_head() {
    if [ -n "$HERL_CONTAINER_IMAGE" ]; then
        exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$HEAD_NODE" "${CONTAINER[@]}" "$@"
    fi
    exec "$@"
}

# CPUs of the job's smallest node (SLURM_JOB_CPUS_PER_NODE is like 96(x2),64): a step asks for as
# many on each.
fewest_cpus() {
    awk -F, '{ for (i = 1; i <= NF; i++) if (i == 1 || $i + 0 < least) least = $i + 0; print least }' \
        <<<"${SLURM_JOB_CPUS_PER_NODE:-1}"
}

start_ray() {
    local nodes=$SLURM_JOB_NUM_NODES script="$HERL_ROOT/slurm/ray_cluster.sh"
    local step=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$(fewest_cpus)"
        --output="$HERL_LOGS/ray-%N.%s.log" "${CONTAINER[@]}")
    say "Ray on $nodes nodes (${SLURM_JOB_NODELIST}), ${HERL_GPUS_PER_NODE} GPUs each; logs in $HERL_LOGS"
    "${step[@]}" --nodes=1 --ntasks=1 --nodelist="$HEAD_NODE" bash "$script" node head &
    RAY_STEPS+=($!)
    wait_for_ray 1
    if [ "$nodes" -gt 1 ]; then
        "${step[@]}" --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$HEAD_NODE" \
            bash "$script" node worker &
        RAY_STEPS+=($!)
        wait_for_ray "$nodes"
    fi
}

# Until Ray has that many nodes with all their GPUs; ends the job if it does not get there.
wait_for_ray() {
    (on_head "${HERL_PYTHON[@]}" -m herl_megatron.cluster.ready "$RAY_HEAD" --nodes "$1" \
        --gpus-per-node "$HERL_GPUS_PER_NODE" --timeout "$HERL_READY_TIMEOUT_S") &
    local check=$!
    while running "$check" && all_running "${RAY_STEPS[@]}"; do nap; done
    if running "$check"; then
        kill "$check" 2>/dev/null || true
        show_ray_logs "Ray ended on a node before all were there"
    fi
    wait "$check" || show_ray_logs "no Ray cluster"
}

show_ray_logs() {
    tail -n 5 "$HERL_LOGS"/ray-*.log >&2 || true
    fail "$1: see $HERL_LOGS"
}

running() { kill -0 "$1" 2>/dev/null; }
all_running() { local pid; for pid in "$@"; do running "$pid" || return 1; done; }
# A trapped signal ends a `wait` at once, but not a `sleep`.
nap() { sleep 1 & wait $! || true; }

stop_ray() {
    local step
    # Not SIGTERM: that makes srun kill the step, and nobody would clean up.
    for step in "${RAY_STEPS[@]}"; do kill -USR2 "$step" 2>/dev/null || true; done
    for step in "${RAY_STEPS[@]}"; do wait "$step" 2>/dev/null || true; done
    RAY_STEPS=()
    rm -f -- "$RAY_FOLDER.venv"
}

plan_first() {
    [ "$HERL_SKIP_PLAN" = 0 ] || return 0
    local options=()
    [ "$HERL_GPUS_PER_NODE" = 0 ] || options+=(--gpus-per-node "$HERL_GPUS_PER_NODE")
    local code=0
    (on_head "${HERL_PYTHON[@]}" -m herl_megatron.cli plan "$@" "${options[@]}") || code=$?
    [ "$code" = 0 ] || say "not started: mend what is said above, or set HERL_SKIP_PLAN=1"
    return "$code"
}

# Whether a command saves itself, to go on in another turn.
resumes() { case "$1" in train | sft | dpo) return 0 ;; *) return 1 ;; esac; }

# run_herl COMMAND CONFIG [key=value ...]: the whole job; its exit code is the driver's.
run_herl() {
    local command=$1 config=$2; shift 2
    RAY_STEPS=() CONTAINER=()
    set_up
    trap stop_ray EXIT
    container_options
    HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    [ -f "$config" ] || fail "no such file: $config (from $PWD)"
    if [ "$command" = train ]; then plan_first "$config" "$@" || exit; fi
    if resumes "$command"; then set -- run.resume=true "$@"; fi
    RAY_HEAD="$(node_address on_head):$RAY_PORT"
    export RAY_HEAD
    case "$SLURM_JOB_NUM_NODES:$RAY_HEAD" in
        1:*) ;;
        *:127.*) fail "this node calls itself ${RAY_HEAD%:*}, which no other node can reach: name the" \
            "network interface in HERL_INTERFACE (slurm/env.sh)" ;;
    esac
    trap 'fail "stopped before the run began"' TERM USR1
    start_ray
    say "herl $command $config $*"
    (on_head "${HERL_PYTHON[@]}" -m herl_megatron.cli "$command" "$config" \
        cluster.address="$RAY_HEAD" "$@") &
    DRIVER=$!
    trap 'say "time is nearly up: asking for a checkpoint"; kill -USR1 "$DRIVER" 2>/dev/null || true' USR1
    CANCELLED=0
    trap 'CANCELLED=1; kill -TERM "$DRIVER" 2>/dev/null || true' TERM
    local code=0
    wait_for_driver || code=$?
    stop_ray
    if resumes "$command"; then another_turn "$code"; fi
    exit "$code"
}

# The driver's exit code.
wait_for_driver() {
    local reported=0
    while running "$DRIVER"; do
        if [ "$reported" = 0 ] && ! all_running "${RAY_STEPS[@]}"; then
            say "Ray ended on a node: see $HERL_LOGS; the run ends as soon as it notices"
            reported=1
        fi
        nap
    done
    wait "$DRIVER"
}

# Puts the job back into the queue where that helps; it goes on from its last checkpoint.
another_turn() {
    local code=$1 failed
    if [ "$CANCELLED" = 1 ]; then  # `scontrol requeue` would bring a cancelled job back
        say "ended by scancel, the time limit or a preemption; what is queued again is Slurm's to say"
        return
    fi
    case "$code" in
        0 | 2) return ;;  # done; or an error that another turn would find again
        "$SAVED") [ "$HERL_REQUEUE" = 1 ] || { say "saved; HERL_REQUEUE is not 1"; return; } ;;
        *)
            say "the run failed with exit code $code: its last lines are above, Ray's in $HERL_LOGS"
            # Turns that the time limit ended are in SLURM_RESTART_COUNT too.
            echo "$code" >>"$HERL_LOGS/failed_turns"
            failed=$(wc -l <"$HERL_LOGS/failed_turns")
            if [ "$failed" -gt "$HERL_REQUEUE_FAILED" ]; then
                say "sbatch again to resume it, or let jobs do so with HERL_REQUEUE_FAILED=3"
                return
            fi ;;
    esac
    say "requeue (turn $((${SLURM_RESTART_COUNT:-0} + 2)) goes on from the last checkpoint)"
    if scontrol requeue "$SLURM_JOB_ID"; then
        # Slurm ends this turn itself; an exit code of ours could be taken for the next turn's.
        trap - TERM USR1
        sleep 60 & wait $!
    else
        say "no requeue here: sbatch again to resume the run"
    fi
}

if [ "${1:-}" = node ]; then
    set -euo pipefail
    choose_python
    ray_node "$2"
fi
