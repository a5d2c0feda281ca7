"""Building paired shards, one module per stage. Command line: ``tools/make_shards.py`` (``triplet-shards``)."""
