#!/usr/bin/env python
"""Run the paper's evaluation suite. ``python tools/evaluate.py --help`` lists the commands."""

import sys

from open_clip_triplet.evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main())
