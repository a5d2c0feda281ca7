"""Samples of shards as encoded bytes, from files, urls and pipes: ranges, retries, failures by reason."""

from __future__ import annotations

import contextlib
import gzip
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass

from open_clip_triplet.epochs import Part
from open_clip_triplet.shards import ROLES, MembersMissing, ShardError, require_roles, split_name

BLOCK = 512
#: attempts after the first to read a remote shard, counted anew after every sample that comes through
RETRIES = 5
#: seconds before the first of them; doubled every time
BACK_OFF = 1.0


@dataclass(frozen=True)
class Unreadable:
    """Stands in for a sample that cannot be read; ``reason`` is one of ``counts.DROPPED``."""

    reason: str


def is_remote(url: str) -> bool:
    """True for ``pipe:`` and urls, whose failures may be passing ones."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


class TarMembers:
    """Names of the regular files of a tar stream; ``read()`` gives the bytes of the current one.

    Unread members are passed over, by seeking where the stream can. tarfile does the same at fifteen
    times the cost (42 us a member, which is a tenth of the time per image of the fast decoder).

    Raises:
        ShardError: a damaged header, or the stream ends before the end-of-archive block.
    """

    def __init__(self, stream, *, seekable: bool):
        self._stream = stream
        self._seekable = seekable
        self._size = self._left = 0

    def __iter__(self) -> Iterator[str]:
        extended: dict[str, str] = {}
        while True:
            self._pass_over()
            header = self._exactly(BLOCK)
            if header.count(0) == BLOCK:
                return
            name, kind = self._parse(header)
            if kind in b"xL":  # a long name, or a size above 8 GB, for the member that follows
                extended.update(_pax(self.read()) if kind == b"x" else {"path": _text(self.read())})
                continue
            if "size" in extended:
                self._size = int(extended["size"])
                self._left = self._size + -self._size % BLOCK
            if kind in b"0\0" and not any(key.startswith("GNU.sparse") for key in extended):
                yield extended.get("path", name)
            extended = {}

    def read(self) -> bytes:
        """Bytes of the current member. Once only."""
        data = self._exactly(self._left)
        self._left = 0
        return data[: self._size]

    def _parse(self, header: bytes) -> tuple[str, bytes]:
        checksum = sum(header) - sum(header[148:156]) + 8 * 32
        try:
            if int(_text(header[148:156]), 8) != checksum:
                raise ValueError
            if header[124] & 0x80:
                self._size = int.from_bytes(header[125:136], "big")
            else:
                self._size = int(_text(header[124:136]) or "0", 8)
        except ValueError:
            raise ShardError("damaged tar (bad header)") from None
        self._left = self._size + -self._size % BLOCK
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        return name, header[156:157]

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size) if size else b""
        if len(data) < size:
            raise ShardError("truncated tar")
        return data

    def _pass_over(self) -> None:
        if self._seekable:
            if self._left:
                self._stream.seek(self._left, 1)
        else:
            for start in range(0, self._left, 2**20):
                self._exactly(min(2**20, self._left - start))
        self._left = 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].strip(b" ").decode("utf-8", "surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records ``"<length> <key>=<value>\\n"`` of an extended header."""
    records = {}
    while data.strip(b"\0"):
        try:
            length = int(data[: data.index(b" ")])
            key, value = data[data.index(b" ") + 1 : length - 1].split(b"=", 1)
        except ValueError:
            raise ShardError("damaged tar (bad extended header)") from None
        if length <= 0:
            raise ShardError("damaged tar (bad extended header)")
        records[_text(key)] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


@contextlib.contextmanager
def open_shard(url: str):
    """A shard as :class:`TarMembers`. Remote ones go through webdataset's ``gopen``.

    A remote command that is left before its end is stopped, and its status is not looked at.
    """
    if not is_remote(url):
        path = url[len("file:") :].replace("//", "/", 1) if url.startswith("file:") else url
        opener = gzip.open if path.endswith("gz") else open
        with opener(path, "rb") as stream:
            yield TarMembers(stream, seekable=True)
        return

    from webdataset.gopen import gopen

    stream = gopen(url, "rb")
    try:
        yield TarMembers(gzip.open(stream) if url.endswith("gz") else stream, seekable=False)
    except BaseException:
        if hasattr(stream, "proc"):
            stream.proc.kill()
        with contextlib.suppress(Exception):
            stream.close()
        raise
    stream.close()  # raises where the command failed


def read_shard(url: str, roles: Container[str], skip: Callable[[int], bool]) -> Iterator[tuple[int, dict]]:
    """(index, sample) of one shard under role names; only ``roles`` are read.

    A sample is yielded once the member after it, or the end of the archive, has been seen, so a half
    of one never is. Indices that ``skip`` are yielded with their key alone.
    """
    index, sample, suffixes = -1, None, set()
    with open_shard(url) as members:
        for name in members:
            key, suffix = split_name(name)
            if key is None:
                continue
            if sample is None or key != sample["__key__"] or suffix in suffixes:
                if sample is not None:
                    yield index, sample
                index, sample, suffixes = index + 1, {"__key__": key, "__url__": url}, set()
            suffixes.add(suffix)
            role = ROLES.get(suffix)
            if role in roles and role not in sample and not skip(index):
                sample[role] = members.read()
    if sample is not None:
        yield index, sample


def read_part(
    part: Part, roles: Container[str], wanted: Callable[[int], bool], note: Callable[[str], None]
) -> Iterator[tuple[int, dict | Unreadable | None]]:
    """(index, sample) of every index of a part, ascending, each exactly once; None for unwanted samples.

    A remote shard that fails is opened again, after a pause, and continued at the sample that was
    being read. What cannot be read comes as :class:`Unreadable`. Where the size is unknown and the
    shard damaged, one stands for all that is lost. ``note`` is told of samples that sizes.json lacks.
    """
    position, attempts, reason = part.first, 0, "shard shorter than sizes.json"
    while True:
        try:
            for index, sample in read_shard(part.url, roles, _behind_or_not(wanted, position)):
                if part.last is not None and index >= part.last:
                    note("not in sizes.json")
                elif index >= position:
                    position, attempts = index + 1, 0
                    yield index, sample if wanted(index) else None
                if part.last is not None and position >= part.last < (part.size or 0):
                    return
            break
        except (OSError, EOFError, ShardError) as error:
            if position == part.last:  # everything wanted has come through
                return
            if not is_remote(part.url) or attempts >= RETRIES:
                logging.warning("%s: %s at sample %d; the rest is skipped", part.url, error, position)
                reason = "damaged shard"
                break
            _pause(part.url, error, attempts)
            attempts += 1
    if part.last is None:
        if reason == "damaged shard":
            yield position, Unreadable(reason)
        return
    for index in range(position, part.last):
        yield index, Unreadable(reason) if wanted(index) else None


def _pause(url: str, error: Exception, attempts: int) -> None:
    pause = BACK_OFF * 2**attempts
    logging.warning("%s: %s; attempt %d of %d in %g s", url, error, attempts + 1, RETRIES, pause)
    time.sleep(pause)


def check_shard(url: str, roles: Iterable[str], *, reader: str) -> None:
    """:func:`shards.require_roles`, tried again where a remote shard cannot be read."""
    for attempts in range(RETRIES + 1):
        try:
            return require_roles(url, roles, reader=reader)
        except MembersMissing:
            raise
        except ShardError as error:
            if not is_remote(url) or attempts == RETRIES:
                raise
            _pause(url, error, attempts)


def _behind_or_not(wanted: Callable[[int], bool], position: int) -> Callable[[int], bool]:
    return lambda index: index < position or not wanted(index)
