"""Building paired shards, one module per stage; ``triplet-shards`` runs them."""
