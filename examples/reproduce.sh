#!/usr/bin/env bash
# The methods of the paper that need no pretrained tower, on the shape world: 8 methods, 3 seeds, two
# budgets, from nothing to a page with tables and a plot. Stopped, the same command goes on.
#
#   bash examples/reproduce.sh              # repro/shapes.md
#   SHORT=1 bash examples/reproduce.sh      # two methods, one seed, 10 steps: that it runs
#
# 1 hour 50 minutes on one of two cores with OMP_NUM_THREADS=1, 86 minutes of processor time. Downloads nothing.
# What came out here: examples/results/shapes.md. The paper's ordering: LaCLIP < NegImage <
# NegCLIP++ < TripletCLIP (Table 3).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
if [ -n "${SHORT:-}" ]; then
    exec "$PYTHON" tools/reproduce.py --output "${OUT:-repro-short}" --steps 10 --seeds 0 \
        --methods LaCLIP TripletCLIP --budgets steps
fi
# shellcheck disable=SC2086
exec "$PYTHON" tools/reproduce.py --output "${OUT:-repro}" --steps 300 --seeds 0 1 2 \
    --budgets ${BUDGETS:-steps work}
