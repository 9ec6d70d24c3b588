#!/usr/bin/env bash
# AP against training images for the whole family, and the ablation of DAPE, on a machine with a GPU. Finished cells of
# the grid are kept and an interrupted one is resumed, so repeated calls complete the grid. Other benchmarks: gpu.sh.
#
#   benchmarks/gpu_grid.sh RESULTS [NAME=DIR ...]    RESULTS: folder to write; data sets: blood_cells=data/blood_cells_det by default
#   MINUTES=4 limits each of the three groups of runs; RUNS=runs/data_efficiency is the folder of the checkpoints.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:?folder for the results}
shift
if [ $# -eq 0 ]; then set -- blood_cells=data/blood_cells_det; fi
[ -d "${1#*=}" ] || { echo "no data at ${1#*=}" >&2; exit 2; }
runs=${RUNS:-runs/data_efficiency}
export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$results"
ablation="$results/dape_ablation.jsonl" # existing results are kept

python3 benchmarks/dape_ablation.py fit --out "$ablation"
family=(detr_lite0 conditional_detr_lite0 de_detr_lite0 dela_detr_lite0 de_conditional_detr_lite0 dela_conditional_detr_lite0
    deformable_detr_lite0 dino_lite0)
grid=(--data "$@" --iterations 1500 --parallel 4 --threads 4 --minutes "${MINUTES:-4}" --out "$runs" --seeds 0 1 2)
python3 benchmarks/data_efficiency.py run "${grid[@]}" --models "${family[@]}" --percent 10 25 50 100
python3 benchmarks/data_efficiency.py run "${grid[@]}" --models walk --percent 100
python3 benchmarks/data_efficiency.py run "${grid[@]}" --models ablation --percent 100
# spectrum of a trained full relation, and the effect of permuting its learned query content
relation=$runs/${1%%=*}/relation_detr_lite0_100pct_seed0_1500x320
if grep -qs "relation_detr_lite0\", \"percent\": 100, \"seed\": 0" "$runs/results.jsonl"; then
    python3 benchmarks/dape_ablation.py spectrum --checkpoint "$relation" --out "$ablation"
    python3 benchmarks/dape_ablation.py permute --checkpoint "$relation" --out "$ablation"
    python3 benchmarks/dape_ablation.py fit --checkpoint "$relation" --out "$ablation"
fi
if [ -f "$runs/results.jsonl" ]; then
    cp "$runs/results.jsonl" "$results/data_efficiency.jsonl"
    python3 benchmarks/data_efficiency.py report "$results/data_efficiency.jsonl" --images "$results" | tee "$results/tables.md"
    python3 benchmarks/dape_ablation.py report "$ablation" --grid "$results/data_efficiency.jsonl" | tee "$results/dape_ablation.md"
fi
