#!/usr/bin/env bash
# TripletData on a Slurm array: each job works its part of the shards, no cluster software beside Slurm.
#
#   sbatch --array 1-8 examples/recipes/slurm_build.sh --input 'cc12m/{00000..01242}.tar' --output tripletdata
#   sbatch --dependency afterok:JOB --gpus 0 examples/recipes/slurm_build.sh --finish --input ... --output tripletdata
#
# All jobs share --output: a file system that every node sees, or a url (s3://bucket/tripletdata). A job that is
# requeued or started again goes on where it was. The last part to end writes sizes, summary and card by itself;
# with --top-k or --threshold, and after a failed part, run --finish once.
#SBATCH --job-name=tripletdata
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A-%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    part=(--part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT")
fi
exec "${TRIPLET_SHARDS:-triplet-shards}" build "${part[@]}" --quiet "$@"
