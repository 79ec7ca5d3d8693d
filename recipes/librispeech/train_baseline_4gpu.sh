#!/usr/bin/env bash
# The baseline on one machine with 4 GPUs: ConMamba small on train-clean-100, 70 epochs, global batch 16 x 4 x 2 = 128.
#   recipes/librispeech/train_baseline_4gpu.sh DATA_FOLDER [OVERRIDES OF THE YAML]
# DATA_FOLDER holds LibriSpeech/<split>/...; get it with `hmamba-asr download`. Run the same command again to resume.
# With fewer GPUs keep the global batch: GPUS=2 ... --grad_accumulation_factor 4
set -euo pipefail
data=${1:?"give the folder that holds LibriSpeech/<split>/..."}
yaml=${YAML:-hparams/conmamba_small_ls100.yaml}
data=$(cd -- "$data" && pwd)
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

for split in train-clean-100 dev-clean test-clean test-other; do
  if [ ! -d "$data/LibriSpeech/$split" ] && [ ! -d "$data/$split" ]; then
    echo "error: $data has no $split; get it with: hmamba-asr download $split --dest '$data'" >&2
    exit 2
  fi
done

# One thread for each process's CPU operations: the loader's workers do the rest.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --standalone --nproc-per-node "${GPUS:-4}" train.py "$yaml" --data_folder "$data" "${@:2}"
