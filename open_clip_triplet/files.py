"""Files, local and remote: durable writes (temporary name, fsync, rename), urls through fsspec.

A local path takes the short way through ``open``. A url (``s3://``, ``gs://``, ``hf://``, ``https://``,
``memory://``) goes through fsspec; object stores show a file only once it is written whole, so a
remote write needs no temporary name. ``pipe:`` is read only, by ``tar.open_tar``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from open_clip_triplet.errors import UsageError


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


def read_bytes(url: str | os.PathLike) -> bytes:
    """A small file whole.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if not is_remote(url):
        return Path(local_path(url)).read_bytes()
    fs, path = filesystem(url)
    return fs.cat_file(path)


def exists(url: str | os.PathLike) -> bool:
    if not is_remote(url):
        return os.path.exists(local_path(url))
    fs, path = filesystem(url)
    return fs.exists(path)


@contextlib.contextmanager
def write_whole(url: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name whole, on a clean exit, or not at all.

    Raises:
        OSError: the disk is full or not writable; what was there under the name is kept.
    """
    if is_remote(url):
        fs, path = filesystem(url)
        with fs.transaction, fs.open(path, "wb") as file:
            yield file
        return
    path = Path(local_path(url))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_durably(temporary, path)
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
