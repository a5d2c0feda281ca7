#!/usr/bin/env bash
# Any recipe on several nodes: one torchrun on each, GPUS processes under it.
#
#   GPUS=8 sbatch --nodes 4 --gpus-per-node 8 examples/recipes/slurm.sh examples/recipes/tripletclip.sh
#
# The batch stays at 1,024 samples over all GPUs, so this shortens a run and changes nothing else.
# Requeued after a time limit or a lost node, it goes on from the newest checkpoint.
#SBATCH --job-name=tripletclip
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
: "${1:?give a recipe: sbatch slurm.sh examples/recipes/tripletclip.sh}"
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD_NODE GPUS=${GPUS:-8}
srun --kill-on-bad-exit bash "$@"
