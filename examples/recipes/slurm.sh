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
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
: "${1:?give a recipe: sbatch slurm.sh examples/recipes/tripletclip.sh}"
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # head would end scontrol by a signal
export HEAD_NODE GPUS=${GPUS:-8}
# since Slurm 22.05 srun does not take --cpus-per-task from the job: without this a task gets one core
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-64}
# of the job's own, so that two jobs on one node do not meet
export RDZV_ID=$SLURM_JOB_ID RDZV_PORT=$((20000 + SLURM_JOB_ID % 10000))
srun --kill-on-bad-exit bash "$@"
