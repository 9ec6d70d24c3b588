#!/usr/bin/env bash
# Two nodes with four GPUs each under SLURM, one torchrun per node. From the folder that has data/:
#   sbatch docs/launch/slurm_two_nodes.sh train RECIPE key=value …
# The environment with detrkit is the one that is active at sbatch. A run that was stopped: add --resume.
#SBATCH --job-name=detrkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
exec srun --kill-on-bad-exit torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "${GPUS:-4}" --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}" -m detrkit "$@"
