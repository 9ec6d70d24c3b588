#!/usr/bin/env bash
# The same with accelerate's launcher, one per node. From the folder that has data/:
#   sbatch docs/launch/slurm_two_nodes_accelerate.sh train RECIPE key=value …
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
export HEAD OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
# $SLURM_NODEID is that of each node: it is read there, not here
exec srun --kill-on-bad-exit bash -c 'exec accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * ${GPUS:-4}))" --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD" \
    --main_process_port "${PORT:-29500}" --mixed_precision no --dynamo_backend no -m detrkit "$@"' detrkit "$@"
