#!/usr/bin/env bash
# Benchmarks on a GPU, in sections of at most two minutes, most important first, nine minutes in total.
#
#   benchmarks/gpu.sh OUT [SECTION ...]           all sections or some of them; OUT: folder to write
#   DEVICE=cpu SIZE=tiny benchmarks/gpu.sh OUT    a small trial on any machine: does every section run? Kernels run in
#                                                 Triton's interpreter then
#
# If packages are in a folder instead of an environment, put them on PYTHONPATH first, for example with
# `source .gpu/enter.sh && benchmarks/gpu.sh OUT`. PYTHON is the interpreter (default: .venv, else python3).
#
# STRETCH=5 multiplies every time limit, for a trial on a busy machine. TOTAL=530 is the total limit in seconds.
#
# Each section appends one line to OUT/sections.jsonl: whether it passed, its seconds, and the results of its
# benchmarks, complete or not. OUT/log.txt has all output. A section that fails or takes too long does not stop the next
# one, but the exit code is then 1. Nothing is resumed; an existing OUT is extended.
#
# To add a section, write a function below and add one line to `sections`. It writes any files of JSON or JSON lines
# into "$into", and can use "$device" and `tiny`, which is true in a trial.
set -uo pipefail
cd "$(dirname "$0")/.."

sections=( # name and time limit in seconds
    "kernels 90"
    "step 90"
    "speed 90"
    "check 70"
    "tune 50"
    "tests 50"
    "operators 20"
    "relation 25"
    "dense 25"
    "ablation 20"
)

# Correctness and time of the Triton kernels; on a CPU in Triton's interpreter, whose times mean nothing.
kernels() {
    local small=() pairs=() code=0
    if [ "$device" = cpu ]; then export DETRKIT_BACKEND=triton TRITON_INTERPRET=1; fi
    if tiny; then small=(--scale 0.01 --heads 1 --repeats 1 --settings 1) pairs=(--queries 10 --images 1 --repeats 1); fi
    python -m detrkit env --torch
    bench ms_deform_attn.py --device "$device" --dtypes bf16 fp32 --json "$into/ms_deform_attn.json" "${small[@]}" || code=1
    bench relation_attention.py --device "$device" --json "$into/relation_attention.json" "${pairs[@]}" || code=1
    return $code
}

# Training steps beside the published formulation of Relation-DETR, which is checked where its recordings are.
step() {
    local small=() golden=()
    if tiny; then small=(--models relation_detr_lite0 dape_lite0 --size 64 96 --images 1 --repeats 1); fi
    if [ -d "${DETRKIT_SHARED:-../shared}/golden" ] && ! tiny; then golden=(--golden "${DETRKIT_SHARED:-../shared}"); fi
    bench relation_step.py --device "$device" --json "$into/step.json" "${small[@]}" "${golden[@]}"
}

# Images per second of every R50 preset, the best known first.
speed() {
    local what=(--models relation_detr_r50 dape_r50 dino_r50_4scale detr_r50 de_detr_r50 deformable_detr_r50_two_stage
        salience_detr_r50 conditional_detr_r50 '*_r50' '*_r50_*' --repeats 3 --bf16)
    if tiny; then what=(--models detr_r50 --repeats 1 --short-side 64 --batch-size 1 --threads 1); fi
    bench speed.py --device "$device" --out "$into/speed.json" "${what[@]}"
}

check() {
    if tiny; then
        bench gpu_check.py --device "$device" --out "$into/check.jsonl" --size tiny --models detr_lite0 dape_lite0
        return
    fi
    local code=0 share running=()
    for share in 'c*_lite0 di*_lite0' 'da*_lite0 de_*_lite0' 'def*_lite0 del*_lite0' 'det*_lite0 [e-z]*_lite0'; do
        read -ra share <<<"$share"
        OMP_NUM_THREADS=4 bench gpu_check.py --device "$device" --out "$into/check.jsonl" --models "${share[@]}" &
        running+=($!)
    done
    for share in "${running[@]}"; do wait "$share" || code=1; done
    return $code
}

# The tests of the kernels, on the GPU; on a CPU a few of them, in the interpreter.
tests() {
    local where=(tests/ops/test_ms_deform_attn_triton.py tests/nn/test_relation_attention_triton.py) what=(-n 12)
    if [ "$device" = cpu ]; then what=(-n 0 -k trial) TRITON_INTERPRET=1; else TRITON_INTERPRET=0; fi
    export TRITON_INTERPRET
    python -m pytest -q "${what[@]}" --junit-xml "$into/tests.xml" "${where[@]}"
    local code=$?
    python - "$into" <<'PROGRAM'
import json, pathlib, sys, xml.etree.ElementTree
folder = pathlib.Path(sys.argv[1])
suite = xml.etree.ElementTree.parse(folder / "tests.xml").getroot().find("testsuite")
folder.joinpath("tests.json").write_text(json.dumps({k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")}))
PROGRAM
    rm -f "$into/tests.xml"
    return $code
}

tune() {
    local small=()
    if [ "$device" = cpu ]; then export DETRKIT_BACKEND=triton TRITON_INTERPRET=1; fi
    if tiny; then small=(--scale 0.01 --heads 1 --repeats 1 --most 1 --widths 34 --relation 10); fi
    bench tune_kernels.py --device "$device" --json "$into/tuning.json" "${small[@]}"
}

operators() {
    local small=()
    if tiny; then small=(--scale 0.2); fi
    bench roi_align.py --device "$device" --json "$into/roi_align.json" "${small[@]}"
}

relation() {
    local small=()
    if tiny; then small=(--queries 120 --repeats 1); fi
    bench relation.py --device "$device" --json "$into/relation.json" "${small[@]}"
}

dense() {
    local models=(relation_detr_r50 dape_r50) small=() code=0
    if tiny; then models=(dape_lite0) small=(--objects 20 --size 64 96); fi
    for model in "${models[@]}"; do
        bench dense_scene.py --model "$model" --device "$device" --json "$into/$model.json" "${small[@]}" || code=1
    done
    return $code
}

ablation() {
    local what=(--rows upstream relation_detr_lite0 dape_rank16 dape_rank128 dape_full_harmonized dape_harmonized)
    if tiny; then what=(--rows dape_harmonized --model dape_lite0 --size 64 96 --repeats 1); fi
    bench dape_ablation.py cost --device "$device" --out "$into/ablation.jsonl" "${what[@]}"
}

# ----------------------------------------------------------------------------------------------------------------------

tiny() { [ "$size" = tiny ]; }
bench() { python "benchmarks/$1" "${@:2}"; }
python() { command "$interpreter" "$@"; }

device=${DEVICE:-cuda} size=${SIZE:-full}
interpreter=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONUNBUFFERED=1
if tiny; then export OMP_NUM_THREADS=1; fi
if [ -n "${SECTION_INTO:-}" ]; then # run one section in this process, which its time limit may end
    into=$SECTION_INTO
    "$1"
    exit
fi

out=${1:?folder for the results}
shift
for name in "$@"; do
    [[ " ${sections[*]% *} " == *" $name "* ]] || { echo "no section '$name', only: ${sections[*]% *}" >&2; exit 2; }
done
mkdir -p "$out"
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stretch=${STRETCH:-1} failed=0
total=$((${TOTAL:-530} * stretch))
for line in "${sections[@]}"; do
    read -r name limit <<<"$line"
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
    limit=$((limit * stretch)) left=$((total - SECONDS)) began=$SECONDS code=124
    if [ $left -lt $limit ]; then limit=$left; fi
    mkdir "$work/$name"
    if [ $limit -ge 20 ]; then # less is too short for any result
        echo "== $name, at most $limit s" | tee -a "$out/log.txt"
        SECTION_INTO=$work/$name timeout --kill-after=5 $limit "$0" "$name" 2>&1 | tee -a "$out/log.txt"
        code=${PIPESTATUS[0]}
    fi
    [ "$code" -eq 0 ] || failed=1
    python3 benchmarks/gpu_section.py "$out/sections.jsonl" "$name" "$code" $((SECONDS - began)) "$work/$name" | tee -a "$out/log.txt"
done
exit $failed
