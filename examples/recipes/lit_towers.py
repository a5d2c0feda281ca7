#!/usr/bin/env python
"""A starting point for LiT: one tower of a pretrained CLIP beside a new one, as an OpenCLIP checkpoint.

  python examples/recipes/lit_towers.py --model ViT-B-32-quickgelu --keep image --output lit-image.pt
"""

import argparse
import os

import open_clip
import torch

TOWERS = ("image", "text")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--pretrained", default="openai", help="OpenCLIP's tag, or a checkpoint file")
    parser.add_argument("--keep", choices=TOWERS, required=True, help="the tower that stays pretrained")
    parser.add_argument("--seed", type=int, default=0, help="of the new tower")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()

    pretrained = open_clip.create_model(args.model, pretrained=args.pretrained).state_dict()
    torch.manual_seed(args.seed)
    new = open_clip.create_model(args.model).state_dict()
    kept = {name: value for name, value in pretrained.items() if tower(name) == args.keep}
    temporary = f"{args.output}.partial"
    torch.save({**new, **kept}, temporary)
    os.replace(temporary, args.output)
    print(f"{args.output}: {args.keep} tower of {args.model}/{args.pretrained}, the rest new (seed {args.seed})")


def tower(name: str) -> str | None:
    """Which tower a weight belongs to; the temperature belongs to neither and starts anew."""
    if name in ("logit_scale", "logit_bias"):
        return None
    return "image" if name.startswith("visual.") else "text"


if __name__ == "__main__":
    main()
