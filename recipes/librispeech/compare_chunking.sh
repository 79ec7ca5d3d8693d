#!/usr/bin/env bash
# Chunks of several kinds, none, and a fixed stride: every row of the table with every seed, several runs at a time.
#   recipes/librispeech/compare_chunking.sh {an4|mini} DATA_FOLDER [OVERRIDES OF ALL RUNS]
#   SEEDS="1 2 3" JOBS=4 VARIANTS="conmamba hmamba_n2" DRY_RUN=1 ...
# Runs share the GPUs in turns, if there are any. A finished run is left alone, an interrupted one resumes; each writes
# results/chunking_<an4 or mini>/<variant>/<seed>/results.json, and output.txt beside it.
set -euo pipefail
usage="usage: compare_chunking.sh {an4|mini} DATA_FOLDER [OVERRIDES]"
corpus=${1:?"$usage"} data=${2:?"$usage"}
[[ $corpus = an4 || $corpus = mini ]] || { echo "error: '$corpus' is neither an4 nor mini; $usage" >&2; exit 2; }
data=$(cd -- "$data" && pwd)
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

# Name, variants of the ConMamba YAML of the corpus in their order (-: none), overrides.
table="
conmamba           -
hmamba_n1          hmamba            --chunker {target_ratio:1.0}
hmamba_n2          hmamba
hmamba_n3          hmamba,n3
hmamba_n2_frames   hmamba,frames
hmamba_n3_frames   hmamba,n3,frames
fixedstride_2      fixedstride
fixedstride_3      fixedstride       --chunker {stride:3}
hnet               hnet
hnet_chunks        hnet              --encoder {output:chunks}
"
if [ "$corpus" = an4 ]; then
  # H-Mamba keeps 0.345 of the frames at N=3 (chunks_per_label), as a stride of 2.9 does.
  table+="hmamba_1+3_n2      hmamba            --outer_layers 1
fixedstride_2.9    fixedstride       --chunker {stride:2.9}
"
else
  # With 128 units H-Mamba keeps 0.38 of the frames at N=3 (chunks_per_label), as a stride of 2.63 does.
  table+="hmamba_7+5_n3      hmamba,n3         --outer_layers 7
hmamba_ffn_n2      hmamba,ffn
hmamba_ffn_n3      hmamba,n3,ffn
hmamba_7+5_ffn_n3  hmamba,n3,ffn     --outer_layers 7
hmamba_6+6_n2      hmamba            --outer_layers 6
hmamba_6+6_ffn_n2  hmamba,ffn        --outer_layers 6
hmamba_6+6_n3      hmamba,n3         --outer_layers 6
hmamba_4+8_n2      hmamba            --outer_layers 4
fixedstride_4+8_2  fixedstride       --outer_layers 4
fixedstride_2.63   fixedstride       --chunker {stride:2.63}
"
fi

names=$(awk 'NF {print $1}' <<< "$table")
for name in ${VARIANTS:-}; do
  grep -qxF -- "$name" <<< "$names" || { echo "error: VARIANTS names '$name'; there are: "$names >&2; exit 2; }
done
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then gpus=$CUDA_VISIBLE_DEVICES
elif found=$(nvidia-smi -L 2> /dev/null); then gpus=$(seq -s, 0 $(($(wc -l <<< "$found") - 1)))
else gpus=
fi
more=
if [ $# -gt 2 ]; then more=$(printf '%q ' "${@:3}"); fi
export corpus data GPUS=$gpus MORE=$more

show() { # a command as it can be typed
  local word
  for word in "$@"; do
    if [[ $word =~ ^[[:alnum:]_./+=,:-]+$ ]]; then printf '%s ' "$word"
    elif [[ $word = *\'* ]]; then printf '%q ' "$word"
    else printf "'%s' " "$word"
    fi
  done
  echo
}

run() { # slot, "name variants seed overrides"
  local slot=$1 name variants seed folder word words cards
  read -r name variants seed words <<< "$2"
  folder=results/chunking_$corpus/$name/$seed
  local command=(python train.py "hparams/conmamba_$corpus.yaml")
  if [ "$variants" != - ]; then
    command+=(--variant)
    for word in ${variants//,/ }; do command+=("hparams/variants/$word.yaml"); done
  fi
  command+=(--data_folder "$data" --output_folder "$folder" --seed "$seed")
  for word in $words; do command+=("${word//:/: }"); done  # YAML wants a blank there, the table none
  eval "command+=($MORE)"
  if [ -n "${DRY_RUN:-}" ]; then show "${command[@]}"; return; fi
  if [ -e "$folder/results.json" ]; then echo "$folder is finished"; return; fi
  IFS=, read -ra cards <<< "$GPUS"
  if [ ${#cards[@]} -gt 0 ]; then export CUDA_VISIBLE_DEVICES=${cards[slot % ${#cards[@]}]}; fi
  mkdir -p "$folder"
  if OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "${command[@]}" --noprogressbar > "$folder/output.txt" 2>&1; then
    echo "$folder is finished"
  else
    code=$?
    echo "error: $folder ended with code $code; see $folder/output.txt" >&2
    return 1
  fi
}
export -f run show

for seed in ${SEEDS:-1234 1235 1236}; do
  while read -r name variants overrides; do
    [ -n "$name" ] || continue
    if [[ " ${VARIANTS:-$name} " = *" $name "* ]]; then printf '%s\0' "$name $variants $seed $overrides"; fi
  done <<< "$table"
done | xargs -0 -r -n 1 -P "${JOBS:-1}" --process-slot-var=SLOT bash -c 'run "$SLOT" "$1"' run
