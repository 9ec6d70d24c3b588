#!/usr/bin/env bash
# Two machines with four GPUs each, without accelerate's launcher. On every machine, with the address of the first one:
#   HEAD=ADDRESS bash docs/launch/torchrun_two_nodes.sh train RECIPE key=value …
# GPUS: processes of each machine. PORT: a free one.
set -euo pipefail
exec torchrun --nnodes "${NODES:-2}" --nproc_per_node "${GPUS:-4}" --rdzv_id "${RUN:-detrkit}" --rdzv_backend c10d \
    --rdzv_endpoint "${HEAD:?the address of the first machine}:${PORT:-29500}" -m detrkit "$@"
