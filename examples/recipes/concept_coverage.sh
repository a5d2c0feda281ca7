#!/usr/bin/env bash
# Concept coverage: subsets of CC12M that grow in WordNet synsets, 3M to 6M pairs.
#
#   PAIRS=3000000 LOSS=triplet bash examples/recipes/concept_coverage.sh     # LOSS=clip for LaCLIP
#
# LaCLIP takes all PAIRS; TripletCLIP takes half as many positives, and their negatives make up the rest.
# Data: one greedy order, each subset holding the smaller ones (see the output folder for the names):
#   triplet-shards concepts --input data/cc12m-triplet --output data/cc12m-concepts \
#       --subset 1500000 2000000 2500000 3000000 4000000 5000000 6000000
#
# Costs about 49 A100-hours a run: 200,000 steps (Table 10).
# Paper: Figure 3, a plot without numbers; TripletCLIP above LaCLIP at every size.
STEPS=${STEPS:-200000} DATA=cc12m PAIRS=${PAIRS:-3000000} LOSS=${LOSS:-triplet}
source "$(dirname "$0")/common.sh"
[ "$LOSS" = clip ] && positives=$PAIRS || positives=$((PAIRS / 2))
data=$(shards "$DATA-concepts/subset-$positives")
train "concepts-$PAIRS-$LOSS" "$data" --loss "$LOSS" "$@"
