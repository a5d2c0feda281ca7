"""Embedded worlds: paired shards drawn by a program, without a download."""
