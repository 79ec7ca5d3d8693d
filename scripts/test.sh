#!/usr/bin/env bash
# Install (see setup.sh), lint, check types, run the tests on all cores, at most eight. Arguments go to pytest:
# scripts/test.sh -m "not slow" tests/ops
# Set HMAMBA_SPEECH to a folder that holds LibriSpeech/<split>/... to run the tests on recordings too, and HMAMBA_ALIGNMENTS to
# one with their TextGrids. Tests against NIST's sctk and in Chromium run where these are installed.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
