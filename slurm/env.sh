# Settings of your site, read by every script in slurm/. Values given on the command line win:
#   HERL_VENV=/shared/venv sbatch --nodes=8 --gpus-per-node=8 slurm/train.sbatch CONFIG

# --- software: a virtual environment that all nodes see, or a container --------------------------
: "${HERL_VENV:=$HERL_ROOT/.venv}"
: "${HERL_CONTAINER_IMAGE:=}"     # pyxis/enroot: an image or .sqsh file; then HERL_VENV is not used
: "${HERL_CONTAINER_MOUNTS:=}"    # e.g. /shared:/shared; this repository and HERL_TMP are added

# --- folders -------------------------------------------------------------------------------------
: "${HERL_TMP:=/tmp}"             # local disk for Ray; a short path, sockets lie in it
: "${HERL_LOGS:=$HERL_ROOT/runs/slurm}"   # shared by all nodes: Ray's log of each node

# --- Ray -----------------------------------------------------------------------------------------
: "${HERL_INTERFACE:=}"           # network interface that nodes reach each other by, e.g. ib0, bond0
: "${HERL_READY_TIMEOUT_S:=300}"  # how long nodes may take to come up

# --- what to do when a run ends early ------------------------------------------------------------
: "${HERL_REQUEUE:=1}"            # 1: a run stopped by the time limit goes on in another turn
: "${HERL_REQUEUE_FAILED:=0}"     # turns that a run may take after failures (a node that died)
: "${HERL_SKIP_PLAN:=0}"          # 1: start although `herl plan` cannot tell, or says no

# --- network of collectives: uncomment what your fabric needs -------------------------------------
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5

# Keys (judge, W&B) belong in a file that only you can read, never in this one:
# source "$HOME/.herl_keys"
