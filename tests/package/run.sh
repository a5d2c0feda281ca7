#!/usr/bin/env bash
# The sdist and the wheel as a user gets them: built, installed into an environment of their own, used.
#
#   bash tests/package/run.sh           the wheel alone is installed; torch and the rest are the ones at hand
#   FULL=1 bash tests/package/run.sh    the wheel and all it declares, from PyPI (2.4 GB with CUDA)
#
# Also checks that the sdist's tests collect, and that its quick ones pass, from the unpacked archive.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=$(command -v "${PYTHON:-python3}")
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
unset PYTHONPATH

"$PYTHON" -m build --no-isolation --outdir "$WORK/dist" . >"$WORK/build.log" 2>&1 || { tail -20 "$WORK/build.log"; exit 1; }
"$PYTHON" -m venv "$WORK/env"
BIN=$WORK/env/bin
if [ "${FULL:-}" = 1 ]; then
    "$BIN/pip" install -q "$WORK"/dist/*.whl
else
    # a .pth line adds the folder; it does not run the folder's own .pth files, so no editable install comes along
    "$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$BIN/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
    "$BIN/pip" install -q --no-deps "$WORK"/dist/*.whl
fi

cd "$WORK"
"$BIN/python" -c 'import open_clip_triplet, sys; assert open_clip_triplet.__file__.startswith(sys.prefix)'
for command in triplet-train triplet-shards triplet-evaluate triplet-inspect; do "$BIN/$command" --version; done
"$BIN/triplet-shards" shapes --output shapes --samples 320 --val-samples 16 --shards 2 >/dev/null
cat >tiny.json <<'JSON'
{"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
 "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}
JSON
cat >run.yaml <<'YAML'
loss: triplet
train-data: shapes/train/{00000..00001}.tar
model: tiny
model-config: tiny.json
batch-size: 16
total-steps: 20
workers: 0
device: cpu
name: run
warmup: 2
YAML
"$BIN/triplet-train" --config run.yaml >train.log 2>&1 || { tail -30 train.log; exit 1; }
ls logs/run/checkpoints/*.pt
"$BIN/triplet-evaluate" convert --model-config tiny.json --pretrained "$(ls logs/run/checkpoints/*.pt | sed -n 1p)" --output hub

mkdir sdist && tar xzf dist/*.tar.gz -C sdist --strip-components 1
cd sdist
export OMP_NUM_THREADS=1
"$PYTHON" -m pytest -q -p no:cacheprovider --collect-only | tail -n 1
"$PYTHON" -m pytest -q -p no:cacheprovider tests/test_packaging.py tests/test_command.py tests/test_metrics.py -k "not triplet-train"
