#!/usr/bin/env bash
# Remakes the locks from requirements.in and requirements-dev.in. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname -- "$0")/.."
for name in requirements requirements-dev; do
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate "$name.in" --output-file "$name.txt" "$@"
done
