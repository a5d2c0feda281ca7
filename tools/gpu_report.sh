#!/usr/bin/env bash
# Everything that needs a GPU, in one command: about ten minutes on one card, nothing to download.
# Stopped, the same command goes on; a part that is done is kept.
#
#   bash tools/gpu_report.sh OUT            # OUT/gpu_report.md and OUT/gpu_report.json
#   TINY=1 bash tools/gpu_report.sh OUT     # small shapes on a CPU: that it runs
set -euo pipefail
out=${1:?usage: bash tools/gpu_report.sh OUT}
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" tools/gpu_report.py --output "$out" ${TINY:+--tiny}
