#!/usr/bin/env bash
# LiT style: one tower pretrained and frozen, the other from scratch.
#
#   FROZEN=image LOSS=triplet bash examples/recipes/lit.sh     # FROZEN=text, LOSS=clip for the others
#
# The start, OpenAI's tower beside a new one, is written by lit_towers.py the first time.
# Data: TripletData's shards, see tripletclip.sh.
#
# Costs under 16 A100-hours: the frozen tower has no backward pass. 90,000 steps on CC3M (Table 10).
# Paper, Table 8 (SugarCrepe, retrieval R@5, ImageNet top-1):
#   image frozen: LaCLIP 63.73 53.45 31.21; TripletCLIP 62.27 68.17 34.25
#   text frozen:  LaCLIP 58.86 11.34 5.51;  TripletCLIP 69.23 26.26 12.51
MODEL=${MODEL:-ViT-B-32-quickgelu} FROZEN=${FROZEN:-image} LOSS=${LOSS:-triplet}
source "$(dirname "$0")/common.sh"
case $FROZEN in
    image | text) ;;
    *) echo "FROZEN=$FROZEN: image or text" >&2; exit 2 ;;
esac
data=$(shards "$DATA-triplet")
start=${START:-lit-$FROZEN.pt}
if [ ! -e "$start" ] && [ -z "${DRY_RUN:-}" ]; then
    "$PYTHON" "$(dirname "$0")/lit_towers.py" --model "$MODEL" --keep "$FROZEN" --output "$start"
fi
train "lit-$FROZEN-$LOSS" "$data" --loss "$LOSS" --pretrained "$start" "--lock-$FROZEN" "$@"
