#!/usr/bin/env bash
# Install (see setup.sh), lint, run the tests. Arguments go to pytest: scripts/test.sh -m "not slow" tests/ops
# Set HMAMBA_SPEECH to a folder that holds LibriSpeech/<split>/... to run the tests on recordings too, and HMAMBA_ALIGNMENTS to
# one with their TextGrids. Tests against NIST's sctk and in Chromium run where these are installed.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
