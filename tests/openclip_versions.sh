#!/usr/bin/env bash
# Train a few steps with every method on the sources of other OpenCLIP versions, one and two processes.
#   bash tests/openclip_versions.sh open_clip_torch-3.0.0/src open_clip/src ...
# Sources: pip download --no-deps --no-binary :all: open_clip_torch==3.0.0, or a checkout of the main branch.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
for source in "$@"; do
    source="$(cd "$source" && pwd)"
    for processes in 1 2; do
        PYTHONPATH="$source:$here:$here/tests" "$python" -m torch.distributed.run --standalone \
            --nproc_per_node "$processes" -m -- openclip_versions "$work/$(echo "$source" | md5sum | cut -c1-8)"
    done
done
