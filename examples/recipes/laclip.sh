#!/usr/bin/env bash
# LaCLIP, the baseline of every table: CLIP's loss on images and rewritten captions.
#
#   bash examples/recipes/laclip.sh                # CC3M; DATA=cc12m for CC12M
#
# Data: LaCLIP's released rewrites joined to img2dataset's shards, or rewrites of your own:
#   triplet-shards rewrite --input cc3m/ --output data/cc3m-laclip \
#       --laclip-original cc3m_original.csv --laclip-rewrites cc3m_chatgpt.txt cc3m_bard.txt
# The paired shards of the other recipes do as well: stock OpenCLIP and --loss clip read their positives.
#
# Costs about 16 A100-hours on CC3M and 56 on CC12M (the paper's figure for any method).
# Paper: SugarCrepe 54.09 (CC3M), 63.54 (CC12M, Table 4); retrieval R@5 8.19, ImageNet top-1 3.79
# (CC3M, Table 3); ImageNet top-1 19.72 (CC12M, Table 5).
source "$(dirname "$0")/common.sh"
data=$(shards "$DATA-laclip")
train laclip "$data" --loss clip "$@"
