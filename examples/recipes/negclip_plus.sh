#!/usr/bin/env bash
# NegCLIP++: one negative caption per caption, written by a language model.
#
#   bash examples/recipes/negclip_plus.sh          # CC3M; DATA=cc12m for CC12M
#
# Data: TripletData's shards as they are (the negative images are passed over), or captions alone:
#   triplet-shards build --input data/cc3m-laclip --output data/cc3m-triplet --no-images
# Table 14 compares writers; give the others with --llm microsoft/Phi-3-mini-4k-instruct or
# --llm google/gemma-2b-it, which got SugarCrepe 61.22 and 56.00.
#
# Costs about 16 A100-hours on CC3M and 56 on CC12M (the paper's figure for any method).
# Paper: SugarCrepe 61.69 (CC3M), 72.94 (CC12M, Table 4); retrieval R@5 8.36, ImageNet top-1 3.84
# (CC3M, Table 3); ImageNet top-1 19.06 (CC12M, Table 5).
source "$(dirname "$0")/common.sh"
data=$(shards "$DATA-triplet")
train negclip-plus "$data" --loss negclip "$@"
