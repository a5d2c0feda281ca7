"""The entry point ``open_clip_train.plugins``: the hooks for a launcher that calls OpenCLIP's own program.

An OpenCLIP with one of ``patches/`` applied calls every entry point of that group before it starts, so that
``python -m open_clip_train.main --loss triplet ...`` does what ``triplet-train`` does.
"""

from __future__ import annotations

import sys


def install() -> None:
    """Put the hooks in for the life of the process; errors a user can meet end it with one line."""
    from open_clip_triplet import hooks
    from open_clip_triplet.errors import TripletError

    before = sys.excepthook

    def one_line(kind, error, traceback) -> None:
        if issubclass(kind, TripletError):
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, error, traceback)

    sys.excepthook = one_line
    try:
        hooks.install()
    except TripletError as error:
        raise SystemExit(f"error: {error}") from error
