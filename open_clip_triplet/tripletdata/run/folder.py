"""An output folder or url: what must not be written into, locks between runs, half-written files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.tables import TABLES
from open_clip_triplet.tripletdata.run.task import ShardTask

REFUSED = 2
#: errors that say that there is no room
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_foreign(output: str | os.PathLike, tasks: list[ShardTask]) -> None:
    """Refuse a folder whose shards a run would overwrite without having made them.

    Raises:
        PipelineError: it is a folder of the input, or holds shards but no ``stage.json``.
    """
    output = os.fspath(output)
    files.require_scheme(output)
    if output.startswith("pipe:"):
        raise PipelineError(f"{output}: shards cannot be written to a command", REFUSED)
    folders = {os.path.dirname(p) for t in tasks for p in t.inputs if not p.lower().endswith(TABLES)}
    same = os.path.realpath if not files.is_remote(output) else (lambda url: url.rstrip("/"))
    if same(files.local_path(output)) in {same(f) for f in folders if files.is_remote(f) == files.is_remote(output)}:
        raise PipelineError(
            f"{output}: holds the input, which must not be overwritten. Choose another --output.", REFUSED
        )
    shard = next((name for name in files.list_files(output) if name.endswith(".tar")), None)
    if shard and not files.exists(files.join(output, "stage.json")):
        raise PipelineError(
            f"{output}: holds {shard}, which no stage made (there is no stage.json). "
            "Choose another --output.",
            REFUSED,
        )


def make_folder(output: str) -> None:
    """Create an output folder.

    Raises:
        PipelineError: it cannot be created there.
    """
    if files.is_remote(output):
        return
    try:
        Path(files.local_path(output)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{output}: cannot be made ({error.strerror})", REFUSED) from error


@contextlib.contextmanager
def locked(output: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep a second run, or a second run of the same part, out of a local folder. Parts let each other in."""
    if files.is_remote(output):  # stores have no locks
        yield
        return
    folder = Path(files.local_path(output))
    wanted = [(folder / ".lock", fcntl.LOCK_SH if part else fcntl.LOCK_EX)]
    if part:
        wanted.append((folder / ".lock-{}-of-{}".format(*part), fcntl.LOCK_EX))
    with contextlib.ExitStack() as held:
        for path, kind in wanted:
            try:
                fcntl.flock(held.enter_context(open(path, "w")), kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PipelineError(
                    f"{output}: another run is writing here. Wait for it, or stop it first.", REFUSED
                ) from None
            except OSError as error:
                if error.errno in FULL:
                    raise
        yield


def remove_stale(output: str, names: Iterable[str], *, common: bool) -> None:
    """Remove the half-written files that killed workers left.

    Args:
        names: of the tasks whose files may go. common: those of the whole folder as well, which other
            parts may be writing.
    """
    if files.is_remote(output):
        return
    ours = {*names, *(("stage", "plan", "sizes", "summary", "history", "README") if common else ())}
    for stale in Path(files.local_path(output)).glob(".*.tmp"):
        if stale.name[1:].split(".", 1)[0] in ours:
            stale.unlink(missing_ok=True)
