"""Every exception that a user can meet. Each message says what is wrong and what to do next.

The commands turn these into one line on stderr and an exit status; anything else is a bug.
"""

from __future__ import annotations


class TripletError(Exception):
    """Base of all of them."""


class UsageError(TripletError, ValueError):
    """The command line asks for something that cannot be done."""


class HostError(TripletError, RuntimeError):
    """The installed OpenCLIP is missing, or is not one that the hooks know."""


class NonFiniteLossError(TripletError, FloatingPointError):
    """The loss is NaN or infinite. Names step, scale and feature norms."""


class ShardError(TripletError, ValueError):
    """A shard cannot be read, or lacks members that are needed. Names the shard."""


class MembersMissing(ShardError):
    """A shard can be read, but its samples lack members that are needed."""


class TooManyDropped(ShardError):
    """A shard lost more samples to faults than the run allows. Counts them by reason."""


class ImageError(TripletError, ValueError):
    """Bytes cannot be decoded as an image. Says why; the caller knows which image it is."""


class PipelineError(TripletError):
    """A run that builds shards cannot go on. ``status`` is the exit status of the command."""

    def __init__(self, message: str, status: int = 4):
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        return PipelineError, (str(self), self.status)


class CheckpointError(TripletError, ValueError):
    """A checkpoint cannot be used as asked."""


class NonFiniteEmbeddings(TripletError, FloatingPointError, ValueError):
    """A model gives NaN or infinite embeddings. Names the model, its precision and the share of rows."""


class DataError(TripletError, ValueError):
    """A benchmark's file is there but cannot be used. Names the file."""


class MissingData(DataError):
    """A benchmark's files are not under the data root. Says what is expected where."""


class PartialData(DataError):
    """Some items of a benchmark cannot be scored, and a partial run was not allowed. Lists them."""
