#!/usr/bin/env bash
# CyCLIP: CLIP with its two consistency terms. WITH_TRIPLET=1: the same terms on TripletCLIP's loss.
#
#   bash examples/recipes/cyclip.sh
#   WITH_TRIPLET=1 bash examples/recipes/cyclip.sh
#
# Data: TripletData's shards, see tripletclip.sh.
#
# Costs about 16 A100-hours (the paper's figure for any method). Table 15 has batches of 512.
# Paper, CC3M, Table 15: CyCLIP SugarCrepe 54.62, Flickr30k R@5 11.77, ImageNet top-5 13.01;
# CyCLIP+TripletLoss 58.64, 20.29, 19.05. Beside them at batch 512: LaCLIP 55.11, TripletCLIP 65.71.
BATCH=${BATCH:-512}
source "$(dirname "$0")/common.sh"
data=$(shards "$DATA-triplet")
if [ -n "${WITH_TRIPLET:-}" ]; then
    train cyclip-triplet "$data" --loss cyclip-triplet "$@"
else
    train cyclip "$data" --loss cyclip "$@"
fi
