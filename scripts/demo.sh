#!/usr/bin/env bash
# Install (see setup.sh), build the synthetic demo corpus, train ConMamba on it, evaluate, print the WER table.
# Arguments go to train.py: scripts/demo.sh --seed 7
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
hmamba-asr demo --dest demo_corpus
python train.py hparams/conmamba_demo.yaml --data_folder demo_corpus "$@"
