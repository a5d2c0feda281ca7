"""TripletCLIP for OpenCLIP: losses, paired shards and training hooks."""

__version__ = "0.1.0"
