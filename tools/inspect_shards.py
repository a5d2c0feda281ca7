#!/usr/bin/env python
"""Look at paired shards. ``python tools/inspect_shards.py --help`` lists the commands."""

import sys

from open_clip_triplet.inspect.cli import main

if __name__ == "__main__":
    sys.exit(main())
