"""``triplet-train``, or ``python -m open_clip_triplet.train``: OpenCLIP's training with the plugin's hooks in place.

Example, 8 GPUs::

    torchrun --nproc_per_node 8 -m open_clip_triplet.train --loss triplet \\
        --train-data 'shards/{00000..00999}.tar' --model ViT-B-32 --batch-size 128 \\
        --precision amp_bf16 --local-loss --gather-with-grad --workers 12
"""

from __future__ import annotations

import logging
import sys


def main(argv: list[str] | None = None) -> int:
    """Run OpenCLIP's training with hooks; ``argv`` as on the command line. Returns the exit status."""
    from open_clip_triplet.command import version_text

    argv = sys.argv[1:] if argv is None else argv
    if "--version" in argv:
        print(version_text("triplet-train"))
        return 0
    from open_clip_triplet import hooks
    from open_clip_triplet.errors import NonFiniteLossError, TripletError

    try:
        with hooks.installed():
            from open_clip_train.main import main as open_clip_main

            return open_clip_main(argv) or 0
    except TripletError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteLossError) else 2
    finally:  # OpenCLIP sets the level of all loggers, and torch's compiler would have the last word
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch."):
                logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
