"""Tar streams of unknown origin, read strictly: a cut or garbled one is an error, never an early end.

tarfile takes a bad header after the first member, and a cut between two, for the end of the archive. It
also costs fifteen times as much (42 us a member, a tenth of the time per image of the fast decoder).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import signal
import subprocess
import zlib
from collections.abc import Iterator
from typing import Any

from open_clip_triplet.errors import ShardError
from open_clip_triplet.files import is_remote, local_path, opened

BLOCK = 512
#: bytes read at a time, so that a size that is a lie costs no memory
PIECE = 2**20
#: bytes of the largest member, and of the largest extended header, that is read
LARGEST_MEMBER, LARGEST_HEADER = 2**30, 2**20
GZIP = b"\x1f\x8b"


class TarMembers:
    """Names of the regular files of a tar stream; ``read()`` gives the bytes of the current one.

    Links, devices and directories are skipped: a shard is data. ``member``, ``offset`` and ``size``
    are the current one's name and place in the stream. Unread members are skipped, by seeking in a
    plain file.

    stream: at its start. length: bytes of a plain file, which is then sought in. name: for messages.

    Raises:
        ShardError: a damaged header, a size that cannot be, or the end before the end-of-archive block.
    """

    def __init__(self, stream, *, name: str = "<stream>", length: int | None = None):
        self._stream, self._name, self._length = stream, name, length
        self._position = self._left = 0
        self.member, self.offset, self.size = "", 0, 0

    def __iter__(self) -> Iterator[str]:
        extended: dict[str, str] = {}
        while True:
            self._skip()
            header = self._exactly(BLOCK)
            if header.count(0) == BLOCK:
                return
            name, kind = self._parse(header)
            if kind in b"xL":  # a long name, or a size above 8 GB, for the member that follows
                data = self._read(LARGEST_HEADER)
                extended.update(self._pax(data) if kind == b"x" else {"path": _text(data)})
                continue
            if "size" in extended:
                self._set_size(_number(extended["size"].encode(), 10))
            if kind in b"0\0007" and not any(key.startswith("GNU.sparse") for key in extended):
                self.member = extended.get("path", name)
                yield self.member
            extended = {}

    def read(self) -> bytes:
        """Bytes of the current member. Once only."""
        return self._read(LARGEST_MEMBER)

    def _read(self, largest: int) -> bytes:
        if self.size > largest:
            raise self._damaged(f"a member of {self.size:,} bytes; the most that is read is {largest:,}")
        data = self._exactly(self.size)
        self._left -= self.size  # the padding is skipped with the next header
        return data

    def _parse(self, header: bytes) -> tuple[str, bytes]:
        checksum = sum(header) - sum(header[148:156]) + 8 * 32
        if _number(header[148:156], 8) != checksum:
            raise self._damaged("damaged, or not a tar (bad header)")
        kind = header[156:157]
        base_256 = header[124] == 0x80  # GNU's
        size = int.from_bytes(header[125:136], "big") if base_256 else _number(header[124:136], 8)
        self.offset = self._position
        self._set_size(0 if kind in b"123456" else size)  # nothing follows a link, device or directory
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        return name, kind

    def _set_size(self, size: int | None) -> None:
        if size is None:
            raise self._damaged("damaged tar (bad size)")
        self.size, self._left = size, size + -size % BLOCK

    def _exactly(self, size: int) -> bytes:
        """``size`` bytes of the stream."""
        if size <= PIECE:
            return self._piece(size)
        return b"".join(self._piece(min(PIECE, size - at)) for at in range(0, size, PIECE))

    def _piece(self, size: int) -> bytes:
        try:
            data = self._stream.read(size) if size else b""
        except ConnectionError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(str(error)) from error
        if len(data) < size:
            raise self._damaged("damaged tar (ends early)")
        self._position += size
        return data

    def _skip(self) -> None:
        if self._length is None or self._left < BLOCK:  # padding: read with the header after it
            for start in range(0, self._left, PIECE):
                self._piece(min(PIECE, self._left - start))
        elif self._left:
            self._position += self._left
            if self._position > self._length:
                raise self._damaged("damaged tar (ends early)")
            self._stream.seek(self._position)
        self._left = 0

    def _pax(self, data: bytes) -> dict[str, str]:
        """Records ``"<length> <key>=<value>\\n"`` of an extended header."""
        records, at = {}, 0
        while data[at : at + 1].strip(b"\0"):
            space = data.find(b" ", at, at + 20)
            length = _number(data[at:space], 10) if space > at else None
            key, equals, value = data[space + 1 : at + (length or 0) - 1].partition(b"=")
            if not length or not equals:
                raise self._damaged("damaged tar (bad extended header)")
            records[_text(key)] = _text(value)
            at += length
        return records

    def _damaged(self, what: str) -> ShardError:
        return ShardError(f"{self._name}: {what}")


def _number(field: bytes, base: int) -> int | None:
    """A number of a header, or None: int() would also take signs, underscores and any length."""
    digits = field.split(b"\0", 1)[0].strip(b" ") or b"0"
    if not digits.isdigit() or len(digits) > 20:
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None


def _text(field: bytes) -> str:
    """What is not UTF-8 stays apart, and printable: ``\\xff``."""
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def open_tar(url: str | os.PathLike, *, in_place: bool = False) -> Iterator[TarMembers]:
    """A plain or gzipped tar as :class:`TarMembers`; urls are read through fsspec, ``pipe:`` is a command.

    A command that is left before its end is stopped, and its status is not looked at.

    in_place: the members will be read at their offsets later, so the file must not be compressed.

    Raises:
        OSError: it cannot be opened. ShardError: compressed, and ``in_place``; the command failed.
        UsageError: a url of a scheme that nothing installed here can read.
    """
    url = os.fspath(url)
    command = url.startswith("pipe:")
    source = _command(url) if command else _remote(url) if is_remote(url) else open(local_path(url), "rb")
    with source as stream:
        compressed = stream.peek(len(GZIP))[: len(GZIP)] == GZIP
        if compressed and in_place:
            raise ShardError(f"{url}: compressed; its members are read in place, so unpack it first")
        plain = not (is_remote(url) or compressed)
        length = os.fstat(stream.fileno()).st_size if plain else None
        yield TarMembers(gzip.GzipFile(fileobj=stream) if compressed else stream, name=url, length=length)


@contextlib.contextmanager
def _command(url: str) -> Iterator[Any]:
    """The output of a ``pipe:`` command; as in webdataset, bash runs it."""
    with subprocess.Popen(
        ["bash", "-c", url[len("pipe:") :]], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            for _ in range(16):  # what pads the archive; its writer must not find the pipe closed
                if not process.stdout.read(PIECE):
                    break
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what the shell has started
            raise
    if process.returncode:
        raise ShardError(f"{url}: the command failed with status {process.returncode}")


@contextlib.contextmanager
def _remote(url: str) -> Iterator[Any]:
    """A file by fsspec, read in one go from its start."""
    # one request for the whole file, where a server may not know ranges
    options = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
    with opened(url) as (fs, path), fs.open(path, "rb", **options) as stream:
        yield io.BufferedReader(_Remote(stream, url), PIECE)


class _Remote(io.RawIOBase):
    """A remote stream; that it fails is a ConnectionError, not to be taken for a damaged tar."""

    def __init__(self, stream: Any, url: str):
        self._stream, self._url = stream, url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:
            raise ConnectionError(f"{self._url}: cannot be read ({type(error).__name__}: {error})") from error
        buffer[: len(data)] = data
        return len(data)
