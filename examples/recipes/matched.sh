#!/usr/bin/env bash
# A matched comparison by finetuning: the same weights, data, steps and batch for every row; only the loss differs.
#
#   bash examples/recipes/matched.sh                       # writes logs/, matched/, matched.html and matched.md
#   ROWS="clip triplet" SEEDS=0 bash examples/recipes/matched.sh
#   DRY_RUN=1 bash examples/recipes/matched.sh             # prints the commands
#   bash examples/flickr8k_matched.sh                      # the same on Flickr8k and two small pretrained towers
#
#   SETUP=coco        $ROOT/coco-triplet has the shards      PRETRAINED=openai  where every row starts
#   MODEL_CONFIG=     of a model that OpenCLIP does not know OUT=matched        results, page and report
#   BENCHMARKS=       of triplet-evaluate                    further flags      go to every training
#
# Data: 100,000 image-caption pairs of COCO as TripletData shards in $ROOT/coco-triplet; see docs/build.md. The setting is
# that of READ (arXiv:2510.16540, Table 1): OpenAI's ViT-B/32, 100k COCO, mean of five compositional benchmarks.
# What is evaluated is what composition gains and what it costs: SugarCrepe, COCO retrieval, ImageNet.
#
# Costs at full length have not been measured: 12 runs of 1,950 steps of 256 samples (5 passes). What the small form gives
# and costs: examples/results/matched.md.
# Paper: READ's Table 1 has NegCLIP 59.6, TripletCLIP 53.8, FSC-CLIP 62.4, READ-CLIP 64.1.
MODEL=${MODEL:-ViT-B-32-quickgelu} STEPS=${STEPS:-1950} BATCH=${BATCH:-256} LOGS=${LOGS:-logs}
SETUP=${SETUP:-coco} PRETRAINED=${PRETRAINED:-openai} OUT=${OUT:-matched} MODEL_CONFIG=${MODEL_CONFIG:-}
BENCHMARKS=${BENCHMARKS:-sugarcrepe,retrieval,zeroshot}
unset DATA  # common.sh knows two collections by name; STEPS is given
source "$(dirname "$0")/common.sh"
DATA=$SETUP
ROWS=${ROWS:-clip negclip triplet triplet-retention} SEEDS=${SEEDS:-0 1 2}
data=$(shards "$DATA-triplet")
model=(--model "$MODEL")
[ -z "$MODEL_CONFIG" ] || model+=(--model-config "$MODEL_CONFIG")

row() { # the flags of a row
    case $1 in
        clip | negclip | triplet) echo "--loss $1" ;;
        # what the field found since: own negatives only, every second step plain, pulled to the model's start
        triplet-retention) echo "--loss triplet --neg-scope own --plain-every 2 --teacher frozen" ;;
        *) echo "ROWS: clip, negclip, triplet, triplet-retention; not $1" >&2; return 2 ;;
    esac
}

do_or_print() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

checkpoints=()
for SEED in $SEEDS; do
    for name in $ROWS; do
        flags=$(row "$name")
        TIMEFORMAT="$name, seed $SEED: %R s; processor time %U + %S s"
        # shellcheck disable=SC2086
        time train "matched-$name" "$data" "${model[@]}" $flags --pretrained "$PRETRAINED" \
            --lr 1e-5 --wd 0.1 --beta2 0.98 --eps 1e-6 --warmup 50 "$@"
        checkpoints+=("$name-$SEED=$LOGS/$DATA-matched-$name-seed$SEED/checkpoints/epoch_latest.pt")
    done
done
tools=$(dirname "$0")/../../tools
run=("$PYTHON" "$tools/evaluate.py" run "${model[@]}" --benchmarks "$BENCHMARKS" --data-root "$ROOT"
    --output "$OUT" --allow-partial --pretrained "start=$PRETRAINED" "${checkpoints[@]}")
report=("$PYTHON" "$tools/evaluate.py" report "$OUT" --baseline start --format html --output "$OUT.html")
table=("$PYTHON" "$tools/seed_table.py" "$OUT" --start start --baseline clip --output "$OUT.md")
do_or_print "${run[@]}"
do_or_print "${report[@]}"
do_or_print "${table[@]}"
