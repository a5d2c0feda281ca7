"""Files, local and remote: durable writes (temporary name, fsync, rename), urls through fsspec.

A local path takes the short way through ``open``. A url (``s3://``, ``gs://``, ``hf://``, ``https://``,
``memory://``) goes through fsspec, whole files at a time. ``pipe:`` is read only, by ``tar.open_tar``.
"""

from __future__ import annotations

import contextlib
import os
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
    url = os.fspath(url)
    if not url.startswith("file:"):
        return url
    path = url[len("file:") :]
    return path[2:] if path.startswith("//") else path


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
        return fsspec.core.url_to_fs(os.fspath(url))
    except (ImportError, ValueError) as error:
        # fsspec's own text names the package: "Install s3fs to access S3"
        raise UsageError(f"{url}: cannot be opened: {error}") from error


def is_local(url: str | os.PathLike) -> bool:
    return not is_remote(url)


def require_scheme(*urls: str | os.PathLike) -> None:
    """Refuse, before any work, a url whose scheme no installed package knows.

    Raises:
        UsageError: see :func:`filesystem`.
    """
    for url in urls:
        if is_remote(url) and not os.fspath(url).startswith("pipe:"):
            filesystem(url)


@contextlib.contextmanager
def _as_os_error(url: str | os.PathLike) -> Iterator[None]:
    """Every store has exceptions of its own (no credentials, no such bucket): one kind for all."""
    try:
        yield
    except (OSError, TripletError):
        raise
    except Exception as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


def read_bytes(url: str | os.PathLike) -> bytes:
    """A small file whole.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if is_local(url):
        return Path(local_path(url)).read_bytes()
    fs, path = filesystem(url)
    with _as_os_error(url):
        return fs.cat_file(path)


def read_range(url: str | os.PathLike, offset: int, size: int) -> bytes:
    """``size`` bytes of a file, from ``offset`` on.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if is_local(url):
        with open(local_path(url), "rb") as file:
            file.seek(offset)
            return file.read(size)
    fs, path = filesystem(url)
    with _as_os_error(url):
        return fs.cat_file(path, start=offset, end=offset + size)


def read_many(folder: str | os.PathLike, suffix: str) -> dict[str, bytes]:
    """All files of a folder whose names end with ``suffix``, by name; ``{}`` where there is no folder."""
    names = [name for name in list_files(folder) if name.endswith(suffix)]
    if is_local(folder):
        return {name: Path(local_path(folder), name).read_bytes() for name in names}
    fs, path = filesystem(folder)
    if not names:
        return {}
    with _as_os_error(folder):
        found = fs.cat([f"{path.rstrip('/')}/{name}" for name in names])
    if isinstance(found, bytes):  # fsspec unpacks a list of one
        return {names[0]: found}
    return {os.path.basename(name): data for name, data in found.items()}


def list_files(folder: str | os.PathLike) -> dict[str, int]:
    """Name -> bytes of the files in a folder, sorted, hidden ones left out; ``{}`` where there is none."""
    if is_local(folder):
        try:
            with os.scandir(local_path(folder)) as entries:
                found = {e.name: e.stat().st_size for e in entries if e.name[0] != "." and e.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return dict(sorted(found.items()))
    fs, path = filesystem(folder)
    fs.invalidate_cache()  # another part may have written since
    try:
        with _as_os_error(folder):
            entries = fs.ls(path.rstrip("/"), detail=True)
    except FileNotFoundError:
        return {}
    files = {os.path.basename(e["name"]): e["size"] or 0 for e in entries if e["type"] == "file"}
    return dict(sorted((name, size) for name, size in files.items() if name and name[0] != "."))


def size_of(url: str | os.PathLike) -> int:
    """Bytes of a file.

    Raises:
        OSError: it is not there.
    """
    if is_local(url):
        return os.path.getsize(local_path(url))
    fs, path = filesystem(url)
    with _as_os_error(url):
        return int(fs.size(path) or 0)


def is_folder(url: str | os.PathLike) -> bool:
    if is_local(url):
        return os.path.isdir(local_path(url))
    fs, path = filesystem(url)
    with _as_os_error(url):
        return fs.isdir(path.rstrip("/"))


def exists(url: str | os.PathLike) -> bool:
    if is_local(url):
        return os.path.exists(local_path(url))
    fs, path = filesystem(url)
    with _as_os_error(url):
        return fs.exists(path)


def remove(url: str | os.PathLike) -> None:
    """Remove a file, if it is there."""
    if is_local(url):
        Path(local_path(url)).unlink(missing_ok=True)
    elif exists(url):
        fs, path = filesystem(url)
        with _as_os_error(url):
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
        fs, path = filesystem(url)
        with tempfile.NamedTemporaryFile(prefix="triplet-") as file:
            yield file
            file.flush()
            with _as_os_error(url):
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
        replace_durably(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_durably(temporary: Path, final: Path) -> None:
    """Rename over ``final`` and flush the folder, so that the name survives a power cut."""
    os.replace(temporary, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text_durably(url: str | os.PathLike, text: str) -> None:
    """Write a small file whole or not at all."""
    with write_whole(url) as file:
        file.write(text.encode("utf-8"))
