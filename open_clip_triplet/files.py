"""Files, local and remote: durable writes (temporary name, fsync, rename), urls through fsspec.

A url (``s3://``, ``gs://``, ``hf://``, ``https://``, ``memory://``) and a local path are the same to everything
here. ``pipe:`` is read only, by ``tar.open_tar``.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from open_clip_triplet.errors import TripletError, UsageError


def is_remote(url: str | os.PathLike) -> bool:
    """True for ``pipe:`` and urls, whose failures may be passing ones."""
    url = os.fspath(url)
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def local_path(url: str | os.PathLike) -> str:
    """The path behind a local name, with or without ``file:``.

    >>> local_path("file:///data/0.tar"), local_path("file:0.tar")
    ('/data/0.tar', '0.tar')
    """
    return re.sub("^file:(//)?", "", os.fspath(url))


def join(folder: str | os.PathLike, *names: str) -> str:
    """Names below a folder or url.

    >>> join("s3://bucket/set/", "00000.tar")
    's3://bucket/set/00000.tar'
    """
    folder = os.fspath(folder)
    return "/".join([folder.rstrip("/"), *names]) if is_remote(folder) else os.path.join(folder, *names)


def filesystem(url: str | os.PathLike) -> tuple[Any, str]:
    """fsspec's file system for a url or local path, and the path within it.

    Raises:
        UsageError: no installed package knows the scheme; the message names the one that does.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(os.fspath(url) if is_remote(url) else local_path(url))
    except (ImportError, ValueError) as error:
        # fsspec's own text names the package: "Install s3fs to access S3"
        raise UsageError(f"{url}: cannot be opened: {error}") from error


def require_scheme(*urls: str | os.PathLike) -> None:
    """Refuse, before any work, a url whose scheme no installed package knows.

    Raises:
        UsageError: see :func:`filesystem`.
    """
    for url in urls:
        if is_remote(url) and not os.fspath(url).startswith("pipe:"):
            filesystem(url)


#: what the status of an http answer says of a file
_ANSWERS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}


@contextlib.contextmanager
def opened(url: str | os.PathLike) -> Iterator[tuple[Any, str]]:
    """:func:`filesystem`; whatever a store raises within (no credentials, no bucket) is an OSError with the url.

    FileNotFoundError and PermissionError are final; what any other says may pass.
    """
    url = os.fspath(url)
    fs, path = filesystem(url)
    try:
        yield fs, path
    except TripletError:
        raise
    except Exception as error:
        cause: BaseException = error
        if url.startswith(("http://", "https://")) and isinstance(error, FileNotFoundError):
            cause = error.__cause__ or error  # fsspec calls a file missing whatever the server answers, or nothing
        elif isinstance(error, OSError) and (not is_remote(url) or (url in str(error) and str(error) != url)):
            raise
        kind = next(kind for kind in type(cause).__mro__ if kind.__module__ == "builtins")
        what = str(cause) or type(cause).__name__
        if not issubclass(kind, OSError):
            kind = _ANSWERS.get(getattr(cause, "status", 0), OSError)
            what = f"cannot be read or written ({type(cause).__name__}: {cause})"
        if what.startswith("Forbidden"):  # gcsfs's 403
            kind = PermissionError
        missing = str(error) == url and kind is FileNotFoundError
        raise kind(f"{url}: {'not there' if missing else what}") from error


def read_bytes(url: str | os.PathLike, start: int | None = None, end: int | None = None) -> bytes:
    """A small file whole, or its bytes from ``start`` to ``end``.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    with opened(url) as (fs, path):
        return fs.cat_file(path, start=start, end=end)


def read_many(folder: str | os.PathLike, suffix: str) -> dict[str, bytes]:
    """All files of a folder whose names end with ``suffix``, by name; ``{}`` where there is no folder."""
    names = [name for name in list_files(folder) if name.endswith(suffix)]
    with opened(folder) as (fs, path):
        found = fs.cat([f"{path.rstrip('/')}/{name}" for name in names]) if names else {}
    return {os.path.basename(name): data for name, data in found.items()}


def list_files(folder: str | os.PathLike) -> dict[str, int]:
    """Name -> bytes of the files in a folder, sorted, hidden ones left out; ``{}`` where there is none."""
    try:
        if not is_remote(folder):  # where a file may be a link, which fsspec lists as another kind
            with os.scandir(local_path(folder)) as entries:
                found = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        else:
            with opened(folder) as (fs, path):
                fs.invalidate_cache()  # another part may have written since
                listed = [entry for entry in fs.ls(path.rstrip("/"), detail=True) if entry["type"] == "file"]
                found = {os.path.basename(entry["name"]): entry["size"] or 0 for entry in listed}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: size for name, size in sorted(found.items()) if name and name[0] != "."}


def size_of(url: str | os.PathLike) -> int:
    """Bytes of a file.

    Raises:
        OSError: it is not there.
    """
    with opened(url) as (fs, path):
        return int(fs.size(path) or 0)


def is_folder(url: str | os.PathLike) -> bool:
    with opened(url) as (fs, path):
        return fs.isdir(path.rstrip("/"))


def exists(url: str | os.PathLike) -> bool:
    with opened(url) as (fs, path):
        return fs.exists(path)


def remove(url: str | os.PathLike) -> None:
    """Remove a file, if it is there."""
    with opened(url) as (fs, path), contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


@contextlib.contextmanager
def write_whole(url: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name whole, on a clean exit, or not at all.

    A remote file is written to a temporary local one first and sent in one piece: stores show it when
    it is complete, and a failure half way leaves nothing to clean up there.

    Raises:
        OSError: the disk is full or not writable; what was there under the name is kept.
    """
    if is_remote(url):
        with tempfile.NamedTemporaryFile(prefix="triplet-") as file:
            yield file
            file.flush()
            with opened(url) as (fs, path):
                fs.makedirs(os.path.dirname(path), exist_ok=True)  # nothing to do in an object store
                fs.put_file(file.name, path)
        return
    final = Path(local_path(url))
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the name survives a power cut
        finally:
            os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_durably(url: str | os.PathLike, text: str) -> None:
    """Write a small file whole or not at all."""
    with write_whole(url) as file:
        file.write(text.encode("utf-8"))
