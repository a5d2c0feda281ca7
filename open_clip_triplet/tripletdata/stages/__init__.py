"""What turns shards into shards: one module per stage, named as its command."""
