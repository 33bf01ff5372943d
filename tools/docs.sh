#!/usr/bin/env bash
# Builds the documentation as a site: build/docs/site/README.html. A link that leads nowhere is an error.
# The generator has an environment of its own, build/docs/venv; HERL_PYTHON names its Python (3.11).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=build/docs/venv PYTHON="${HERL_PYTHON:-python3}"

if ! cmp -s tools/requirements-docs.txt "$VENV/installed.txt"; then
    "$PYTHON" -m venv --clear "$VENV"
    "$VENV/bin/pip" install --quiet -r tools/requirements-docs.txt
    cp tools/requirements-docs.txt "$VENV/installed.txt"
fi
"$VENV/bin/sphinx-build" -E -q -W --keep-going -n -c tools/site -d build/docs/doctrees docs build/docs/site
echo "documentation: build/docs/site/README.html"
