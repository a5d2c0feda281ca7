"""Look at paired shards and embeddings: ``triplet-inspect``."""
