#!/usr/bin/env bash
# Everything a machine with a GPU can tell, in one call: kernels, speed, and the three laptop models trained under the
# budget of their recipes. Interrupted runs continue where they stopped, so repeated calls finish what one cannot.
#
#   benchmarks/gpu.sh RESULTS [DATA]      RESULTS: folder to write; DATA: data/blood_cells_det by default
#   SECONDS_EACH=150 limits each training; ITERATIONS=3600 is the recipes' budget.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:?folder for the results}
data=${2:-data/blood_cells_det}
limit=${SECONDS_EACH:-150}
iterations=${ITERATIONS:-3600}
export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$results"

python3 -m detrkit env | tee "$results/env.txt"
python3 benchmarks/roi_align.py --device cuda --json "$results/roi_align.json"
python3 benchmarks/speed.py --models '*' --device cuda --out "$results/speed.json"

if [ -d "$data" ]; then
    for model in dela_detr de_detr detr; do
        run="$results/runs/${model}_lite0"
        resume=()
        if [ -d "$run/last" ]; then resume=(--resume); fi
        # SIGINT leaves a resumable checkpoint (exit code 130); timeout itself answers 124.
        timeout --signal=INT "$limit" python3 -m detrkit train "recipes/de_detr/blood_cells/${model}_lite0.yaml" \
            "data.root=$data" "training.iterations=$iterations" "training.output=$run" "${resume[@]}" || [ $? -ge 124 ]
        cp "$run/log.jsonl" "$results/${model}_lite0.jsonl"
    done
else
    echo "no data at $data: training left out"
fi
