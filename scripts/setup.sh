#!/usr/bin/env bash
# Install the project with its tested versions into .venv, which is created if there is none and reused if there is.
# Sourced by demo.sh and test.sh; leaves the environment active.   PYTHON=python3.12 scripts/demo.sh picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! compgen -G ".venv/lib/python*/site-packages/torch" > /dev/null; then
  # Measured: 5.2 GB stay in .venv, PyTorch and CUDA's libraries, and 1.7 GB lie in TMPDIR until all is installed,
  # in 98 s with a fast network and two cores.
  disk=$PWD tmp=${TMPDIR:-/tmp} need=5500
  if [ -d .venv ]; then disk=$PWD/.venv; fi
  if [ "$(stat -L -c %d "$disk")" = "$(stat -L -c %d "$tmp")" ]; then need=7300; fi
  free=$(df -Pm "$disk" | awk 'NR == 2 {print $4}')
  if [ "$free" -lt $need ]; then
    echo "error: installing takes $need MB of disk in $disk, where $free MB are free; make room, then run this again." >&2
    exit 2
  fi
fi
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; set PYTHON." >&2; exit 2; }
  "${PYTHON:-python3}" -m venv .venv
fi
. .venv/bin/activate
stamp=.venv/.installed
wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  python -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable ".[demo,dev]"
  echo "$wanted" > "$stamp"
fi
