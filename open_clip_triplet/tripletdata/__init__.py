"""Building paired shards, one module per stage; ``tools/make_shards.py`` (``triplet-shards``) runs them."""
