#!/usr/bin/env bash
# ConMamba and its control, a Conformer of equal size, one after the other with the same data, seed and training.
#   recipes/librispeech/compare_encoders.sh DATA_FOLDER [OVERRIDES OF BOTH YAMLS]
# Each run resumes where it stood, writes results/<name>/<seed>/results.json and prints its scores. At the end
# the tables of all results below results/ are printed.
# A difference of one seed proves little: repeat with --seed 1, --seed 2.
set -euo pipefail
: "${1:?"give the folder that holds LibriSpeech/<split>/..."}"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

for name in conmamba_small_ls100 conformer_small_ls100; do
  YAML="hparams/$name.yaml" "$here/train_baseline_4gpu.sh" "$@"
done
cd -- "$here/../.."
python scripts/summarize.py results
