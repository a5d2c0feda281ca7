# What the recipes share: Table 10's settings and the launcher. Sourced by them, not run by itself.
#
#   DATA=cc3m|cc12m   collection: folder of the shards, and the number of steps (90,000 or 230,000)
#   ROOT=data         where the collections' shards are: $ROOT/$DATA-laclip, $ROOT/$DATA-triplet, ...
#   GPUS=1            GPUs of this machine, or of each node; slurm.sh takes it over several nodes
#   ACCUM=1           gradient accumulation, where 1,024 samples do not fit
#   BATCH=1024        samples in a batch, over all GPUs and accumulation steps
#   STEPS=            optimizer steps, in place of the paper's
#   DRY_RUN=1         print the command, run nothing
#
# 1 GPU:   bash examples/recipes/tripletclip.sh
# 8 GPUs:  GPUS=8 bash examples/recipes/tripletclip.sh
# 4 nodes: sbatch --nodes 4 examples/recipes/slurm.sh examples/recipes/tripletclip.sh
#
# The same command continues a run that was stopped (--resume latest). What the paper leaves open:
# warm-up (2,000 steps here, as LaCLIP's and OpenCLIP's runs commonly have). The released code also
# decays biases, gains and the temperature: add --decay-all for that. OpenCLIP's ViT-B-32 has GELU;
# OpenAI's weights want MODEL=ViT-B-32-quickgelu. The temperature starts at 0.07, is learned, and its
# inverse is kept under 100, by OpenCLIP.
set -euo pipefail
DATA=${DATA:-cc3m} ROOT=${ROOT:-data} GPUS=${GPUS:-1} ACCUM=${ACCUM:-1} BATCH=${BATCH:-1024}
MODEL=${MODEL:-ViT-B-32} NODES=${SLURM_NNODES:-1} PYTHON=${PYTHON:-python}
case $DATA in
    cc3m) STEPS=${STEPS:-90000} ;;
    cc12m) STEPS=${STEPS:-230000} ;;
    *) echo "DATA=$DATA: cc3m or cc12m" >&2; exit 2 ;;
esac

# shards FOLDER: its tars as one range; FOLDER/<00000..00331>.tar
shards() {
    local tars
    tars=$(cd "$ROOT/$1" 2>/dev/null && ls -- *.tar 2>/dev/null) || true
    if [ -z "$tars" ]; then
        [ -n "${DRY_RUN:-}" ] && { echo "$ROOT/$1/<00000..00099>.tar"; return; }
        echo "no shards in $ROOT/$1: the head of this recipe says how to make them" >&2
        return 2
    fi
    echo "$ROOT/$1/<$(head -n 1 <<<"$tars" | sed 's/\.tar$//')..$(tail -n 1 <<<"$tars" | sed 's/\.tar$//')>.tar"
}

# train NAME SHARDS FLAG...: later flags win over the shared ones
train() {
    local name=$1 data=$2 world=$((GPUS * NODES)) launcher
    shift 2
    if ((BATCH % (world * ACCUM))); then
        echo "BATCH=$BATCH cannot be divided over $world GPUs and $ACCUM accumulation steps" >&2
        exit 2
    fi
    launcher=("$PYTHON" -m)
    if ((world > 1)); then
        launcher=(torchrun --nproc_per_node "$GPUS" --nnodes "$NODES")
        ((NODES > 1)) && launcher+=(
            --rdzv_backend c10d --rdzv_id "${RDZV_ID:-0}"
            --rdzv_endpoint "${HEAD_NODE:?set by slurm.sh}:${RDZV_PORT:-29500}"
        )
        launcher+=(-m --)  # else torchrun takes OpenCLIP's --logs for its own
        set -- --local-loss --gather-with-grad "$@"
    fi
    ((ACCUM > 1)) && set -- --accum-freq "$ACCUM" "$@"
    set -- "${launcher[@]}" open_clip_triplet.train --train-data "$data" \
        --model "$MODEL" --batch-size $((BATCH / world / ACCUM)) --total-steps "$STEPS" \
        --lr 5e-4 --wd 0.5 --beta1 0.9 --beta2 0.999 --eps 1e-8 --lr-scheduler cosine --warmup 2000 \
        --precision amp_bf16 --workers "${WORKERS:-8}" --seed "${SEED:-0}" \
        --epochs $(((STEPS + 4999) / 5000)) --save-frequency 0 --save-most-recent --resume latest \
        --report-to tensorboard \
        --logs "${LOGS:-logs}" --name "$DATA-$name-seed${SEED:-0}" "$@"
    if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
