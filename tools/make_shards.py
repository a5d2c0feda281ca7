#!/usr/bin/env python
"""Build paired shards. ``python tools/make_shards.py --help`` lists the stages."""

import sys

from open_clip_triplet.make_shards import main

if __name__ == "__main__":
    sys.exit(main())
