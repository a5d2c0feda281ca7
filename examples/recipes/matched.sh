#!/usr/bin/env bash
# A matched comparison by finetuning: the same weights, data, steps and batch for every row; only the loss differs.
#
#   bash examples/recipes/matched.sh                       # writes logs/, matched/ and matched.html
#   ROWS="clip triplet" SEEDS=0 bash examples/recipes/matched.sh
#   DRY_RUN=1 bash examples/recipes/matched.sh             # prints the commands
#
# Data: 100,000 image-caption pairs of COCO as TripletData shards in $ROOT/coco-triplet; see docs/build.md. The setting is
# that of READ (arXiv:2510.16540, Table 1): OpenAI's ViT-B/32, 100k COCO, mean of five compositional benchmarks.
# What is evaluated is what composition gains and what it costs: SugarCrepe, COCO retrieval, ImageNet.
#
# Costs have not been measured: it has not been run at full length here. 12 runs of 1,950 steps of 256 samples (5 passes).
# Paper: READ's Table 1 has NegCLIP 59.6, TripletCLIP 53.8, FSC-CLIP 62.4, READ-CLIP 64.1.
MODEL=${MODEL:-ViT-B-32-quickgelu} STEPS=${STEPS:-1950} BATCH=${BATCH:-256} LOGS=${LOGS:-logs}
source "$(dirname "$0")/common.sh"
DATA=coco
ROWS=${ROWS:-clip negclip triplet triplet-retention} SEEDS=${SEEDS:-0 1 2}
data=$(shards "$DATA-triplet")

row() { # the flags of a row
    case $1 in
        clip | negclip | triplet) echo "--loss $1" ;;
        # what the field found since: own negatives only, every second step plain, pulled to the model's start
        triplet-retention) echo "--loss triplet --neg-scope own --plain-every 2 --teacher frozen" ;;
        *) echo "ROWS: clip, negclip, triplet, triplet-retention; not $1" >&2; return 2 ;;
    esac
}

checkpoints=()
for name in $ROWS; do
    flags=$(row "$name")
    for SEED in $SEEDS; do
        # shellcheck disable=SC2086
        train "matched-$name" "$data" $flags --pretrained "${PRETRAINED:-openai}" \
            --lr 1e-5 --wd 0.1 --beta2 0.98 --eps 1e-6 --warmup 50 "$@"
        checkpoints+=("$name-$SEED=$LOGS/$DATA-matched-$name-seed$SEED/checkpoints/epoch_latest.pt")
    done
done
evaluate=("$PYTHON" "$(dirname "$0")/../../tools/evaluate.py")
run=("${evaluate[@]}" run --model "$MODEL" --benchmarks sugarcrepe,retrieval,zeroshot --data-root "$ROOT"
    --output matched --allow-partial --pretrained "start=${PRETRAINED:-openai}" "${checkpoints[@]}")
report=("${evaluate[@]}" report matched --baseline start --format html --output matched.html)
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${run[@]}"; echo
    printf '%q ' "${report[@]}"; echo
else
    "${run[@]}" && "${report[@]}"
fi
