#!/usr/bin/env bash
# NegCLIP: four rule-made negative captions per caption (attribute, relation, object, action).
#
#   bash examples/recipes/negclip.sh               # CC3M; DATA=cc12m for CC12M
#
# Data, on CPUs:
#   triplet-shards build --input data/cc3m-laclip --output data/cc3m-rules \
#       --backend rules --negatives 4 --no-images
#
# Costs about 16 A100-hours on CC3M and 56 on CC12M (the paper's figure for any method).
# Paper: SugarCrepe 57.18 (CC3M), 68.00 (CC12M, Table 4); ImageNet top-1 4.67 and 20.22 (Table 5).
source "$(dirname "$0")/common.sh"
data=$(shards "$DATA-rules")
train negclip "$data" --loss negclip --neg-captions 4 "$@"
