"""``triplet-evaluate convert``: flags, and what is printed."""

from __future__ import annotations

import argparse
import sys

from open_clip_triplet.evaluation.checkpoints.spec import TARGETS, CheckpointSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags beyond those that name a model."""
    parser.add_argument(
        "--pretrained", required=True, metavar="[NAME=]CHECKPOINT",
        help="file, folder, Hugging Face repository or tag, as `run` takes",
    )
    parser.add_argument(
        "--to", choices=TARGETS, default="open_clip",
        help="open_clip: folder for local-dir: and hf-hub: (default); transformers: CLIPModel or SiglipModel "
        "folder; tripletclip: text-encoder/ and vision-encoder/; pt: OpenCLIP's .pt and its model config",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that holds nothing yet")
    parser.add_argument("--results", nargs="+", default=[], metavar="PATH", help="results for the model card")
    parser.add_argument("--license", default="other", help="licence for the model card (default: other)")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this repository too")
    parser.add_argument("--private", action="store_true", help="make a repository that is not there private")


def run(args, spec: CheckpointSpec) -> int:
    """Write, compare, and upload where asked; returns the exit status."""
    from open_clip_triplet.evaluation.checkpoints.card import model_card
    from open_clip_triplet.evaluation.checkpoints.export import export
    from open_clip_triplet.evaluation.checkpoints.hub import push

    card = model_card(spec, args.to, repo=args.push_to_hub or "", results=args.results, license=args.license)
    folder, difference = export(spec, args.output, args.to, card)
    print(f"wrote {folder} ({args.to}); features differ from the source's by at most {difference:.1e}")
    if args.push_to_hub:
        print(f"pushed {push(folder, args.push_to_hub, private=args.private)}", file=sys.stderr)
    return 0
