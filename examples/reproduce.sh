#!/usr/bin/env bash
# The methods that need no pretrained tower, on the world of coloured signs: three seeds, three budgets, from
# nothing to a page with tables and a plot. Stopped, the same command goes on. Downloads nothing.
#
#   bash examples/reproduce.sh              # repro/glyphs.md
#   JOBS=2 OMP_NUM_THREADS=1 bash examples/reproduce.sh      # two runs at a time, one thread each
#   SHORT=1 bash examples/reproduce.sh      # two methods, one seed, 10 steps: that it runs
#
# What came out here: docs/results.md. The paper's ordering: LaCLIP < NegImage < NegCLIP++ < TripletCLIP (Table 3).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
if [ -n "${SHORT:-}" ]; then
    exec "$PYTHON" tools/reproduce.py --output "${OUT:-repro-short}" --steps 10 --samples 2000 --seeds 0 \
        --methods LaCLIP TripletCLIP --budgets steps --jobs 2
fi
# shellcheck disable=SC2086
exec "$PYTHON" tools/reproduce.py --output "${OUT:-repro}" --seeds 0 1 2 --jobs "${JOBS:-1}" \
    --budgets ${BUDGETS:-steps work pairs}
