#!/usr/bin/env bash
# TripletData from real pairs, every stage for real and small: captions by SmolLM2-135M, images by a tiny
# random SDXL pipeline (so the negatives are honest in form, not in quality), then an epoch of training.
#
#   DATA=data bash examples/build_tripletdata.sh      # writes tripletdata/; stopped, it goes on where it was
#
# DATA holds cc12m/*.tar and flickr8k/train-0000{0,1}.tar (jpg, txt, json). CC12M is built by both engines
# and compared byte for byte. Costs on two CPU cores: minutes for the 32 pairs of CC12M, about an hour for
# the 500 of Flickr8k with transformers; URL=http://127.0.0.1:8000/v1 asks a running server instead
# (tests/vllm/run.sh makes one's environment; vllm serve .venv-vllm/smollm2 --served-model-name smollm2).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd) PYTHON=${PYTHON:-python}
DATA=${DATA:-data} OUT=${OUT:-tripletdata}
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
shards() { "$PYTHON" "$here/tools/make_shards.py" "$@"; }

mkdir -p "$OUT"
[ -e "$OUT/sdxl/pipe/model_index.json" ] || "$PYTHON" "$here/tests/build_fixtures.py" "$OUT/sdxl"
if [ -n "${URL:-}" ]; then
    llm=(--backend openai --url "$URL" --llm smollm2)
else
    [ -e "$OUT/smollm2/config.json" ] || "$PYTHON" "$here/tests/vllm/smollm2.py" "$OUT/smollm2"
    llm=(--backend transformers --llm "$OUT/smollm2")
fi
common=("${llm[@]}" --max-tokens 48 --max-drop 0.9 --t2i "$OUT/sdxl/pipe" --size 64)

shards build --input "$DATA/cc12m" --output "$OUT/cc12m" "${common[@]}" --title "CC12M sample, 32 pairs"
if [ -z "${URL:-}" ]; then # a server batches as requests come in, so its answers are not repeatable to the byte
    shards build --input "$DATA/cc12m" --output "$OUT/cc12m-ray" "${common[@]}" \
        --title "CC12M sample, 32 pairs" --engine ray --workers 1
    diff -r -x .lock "$OUT/cc12m" "$OUT/cc12m-ray" && echo "local and ray: the same bytes"
fi
shards build --input "$DATA/flickr8k/train-{00000..00001}.tar" --output "$OUT/flickr8k" "${common[@]}" \
    --title "Flickr8k, 500 pairs"
for set in cc12m flickr8k; do
    shards validate --input "$OUT/$set"
done

# Checks of the negatives, through tiny random models: what they mark means nothing here.
tiny() { PYTHONPATH="$PYTHONPATH:$here/tests" "$PYTHON" "$here/tests/build_fixtures.py" "$OUT/$1" "$1"; }
[ -e "$OUT/clip/open_clip_config.json" ] || tiny clip
[ -e "$OUT/nli/config.json" ] || tiny nli
shards verify --input "$OUT/flickr8k" --output "$OUT/verified" --checks four-way entailment --action mark \
    --clip "local-dir:$(cd "$OUT/clip" && pwd)" --clip-pretrained "" --nli "$OUT/nli"
inspect() { "$PYTHON" "$here/tools/inspect_shards.py" "$@"; }
inspect gallery "$OUT/verified" --sample 200 --seed 1 --html "$OUT/flickr8k.html"
inspect gallery "$OUT/flickr8k" --rejected --source "$DATA"/flickr8k/train-0000{0,1}.tar --html "$OUT/rejected.html"

"$PYTHON" -m open_clip_triplet.train --loss triplet --train-data "$OUT/flickr8k/{00000..00001}.tar" \
    --dataset-type webdataset --model shapes-tiny --model-config "$here/examples/configs/shapes-tiny.json" \
    --batch-size 32 --epochs 1 --warmup 2 --workers 1 --precision fp32 --logs "$OUT/logs" --name flickr8k
