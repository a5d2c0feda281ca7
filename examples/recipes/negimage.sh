#!/usr/bin/env bash
# NegImage: negative images only, NegCLIP's loss with the modalities swapped.
#
#   bash examples/recipes/negimage.sh              # CC3M; the paper has no CC12M row
#
# Data: TripletData's shards, see tripletclip.sh; the negative captions are passed over.
#
# Costs about 16 A100-hours (the paper's figure for any method).
# Paper: SugarCrepe 56.28, retrieval R@5 9.20, ImageNet top-1 4.48 (CC3M, Table 3).
source "$(dirname "$0")/common.sh"
data=$(shards "$DATA-triplet")
train negimage "$data" --loss negimage "$@"
